"""Maps the top-level folders to the package `fastjukebox`.

A top-level package called `kernels` would overwrite Hugging Face's package of that name, so nothing is installed
outside the `fastjukebox` namespace. The metadata is in pyproject.toml.
"""

from setuptools import setup

FOLDERS = ("engine", "kernels", "distill")

setup(
    packages=[f"fastjukebox.{folder}" for folder in FOLDERS],
    package_dir={f"fastjukebox.{folder}": folder for folder in FOLDERS},
    package_data={"fastjukebox.engine": ["demo/*"]},
)
