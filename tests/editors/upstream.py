"""OmniGen2's torch reference, as the wheel `editscore` carries it among its examples: for parity tests only."""

import importlib.metadata
import importlib.util
import sys
import warnings
from types import ModuleType

import pytest


def upstream(module: str) -> ModuleType:
    """`omnigen2.<module>` of the installed wheel (installed with --no-deps); skips the test without it."""
    try:
        files = importlib.metadata.files("editscore") or []
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("no torch reference: pip install --no-deps editscore==0.2", allow_module_level=True)
    init = next(f for f in files if f.parts[-2:] == ("omnigen2", "__init__.py"))
    root = str(init.locate().parent.parent)
    with warnings.catch_warnings():  # it warns of missing GPU kernels
        warnings.simplefilter("ignore")
        sys.path.insert(0, root)
        try:
            return importlib.import_module(f"omnigen2.{module}")
        finally:
            sys.path.remove(root)
