"""Devices and hosts: the device mesh, shardings of arrays, and multi-process runs."""
