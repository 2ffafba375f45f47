"""What the package imports is what pyproject.toml asks for: nothing missing, nothing for nothing."""

import ast
import re
import sys
import tomllib
from importlib.metadata import packages_distributions
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
TFDS_NEEDS = {"importlib-resources", "array-record"}  # it imports them and does not ask for them


def normal(name):
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", name)[0]).lower()


def imported():
    """Distributions imported anywhere in the package, scripts and configs, with one place for each."""
    found = {}
    for path in [p for folder in ("edit_rl_jax", "scripts", "configs") for p in (ROOT / folder).rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            for name in {n.split(".")[0] for n in names} - sys.stdlib_module_names - {"edit_rl_jax"}:
                found.setdefault(name, f"{path.relative_to(ROOT)}:{node.lineno}")
    owners = packages_distributions()
    return {normal(owners.get(name, [name])[0]): place for name, place in found.items()}


def test_every_import_is_declared():
    extras = [d for extra in PROJECT["optional-dependencies"].values() for d in extra]
    declared = {normal(d) for d in PROJECT["dependencies"] + extras} | {"jaxlib", "libtpu"}
    assert not {name: place for name, place in imported().items() if name not in declared}


def test_every_dependency_is_used():
    assert {normal(d) for d in PROJECT["dependencies"]} - set(imported()) - TFDS_NEEDS == set()
