"""Installs configs/, which the checkout has beside the package, in the package."""

from setuptools import find_packages, setup

setup(
    packages=[*find_packages(include=["convit_jax*"]), "convit_jax.configs"],
    package_dir={"convit_jax.configs": "configs"},
)
