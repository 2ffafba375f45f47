"""All else is in pyproject.toml. This maps scripts/ and configs/ into the installed package, for `edit-rl JOB`."""

from setuptools import find_packages, setup

beside = {"edit_rl_jax.scripts": "scripts", "edit_rl_jax.configs": "configs"}
setup(packages=[*find_packages(include=["edit_rl_jax*"]), *beside], package_dir=beside)
