"""Devices and hosts: the mesh, how arrays lie on it, and several processes of one program."""
