"""The import contracts of pyproject.toml hold: imports run one way, names in registries included, without a circle; and
the package needs no PyTorch or TensorFlow."""

import ast
import graphlib
import re
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
NAME = re.compile(r"(edit_rl_jax(?:\.\w+)+)(?::\w+)?")  # as registries write modules and what is in them


def test_import_contracts():
    lint = "from importlinter.cli import lint_imports; import sys; sys.exit(lint_imports())"
    done = subprocess.run([sys.executable, "-c", lint], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@cache
def modules() -> dict[str, Path]:
    """{name: file} of every module of the package."""
    files = {p.relative_to(ROOT).with_suffix(""): p for p in (ROOT / "edit_rl_jax").rglob("*.py")}
    return {".".join(p.parts).removesuffix(".__init__"): file for p, file in files.items()}


@cache
def imports() -> dict[str, set[str]]:
    """{module: modules of the package that it imports, anywhere in its file, or names in a text}."""
    found: dict[str, set[str]] = {}
    for module, file in modules().items():
        named = found[module] = set()
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Import):
                named |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                assert not node.level, f"{file}: a relative import"
                inside = {f"{node.module}.{alias.name}" for alias in node.names}
                named |= {name if name in modules() else node.module for name in inside}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (m := NAME.fullmatch(node.value)):
                named.add(m[1])
        named &= modules().keys() - {module}
    return found


def layers() -> dict[str, int]:
    """{part of the package: its floor}, from the contract."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    floors = next(c for c in contracts if c["type"] == "layers")["layers"]
    return {name: -n for n, names in enumerate(floors) for name in re.split(r" [|:] ", names)}


def test_registries_name_modules_that_are_there():
    """A name in a text counts as an import only where it is one: else a renamed module would leave this test."""
    for module, file in modules().items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and (m := NAME.fullmatch(node.value)):
                assert m[1] in modules(), f"{module} names {node.value}"


def test_no_import_runs_up_or_in_a_circle_registries_included():
    floor = layers()
    part = lambda module: module.split(".")[1]
    upward = [
        f"{module} -> {other}"
        for module, named in imports().items()
        for other in named
        if module.count(".") and other.count(".") and floor[part(module)] < floor[part(other)]
    ]
    assert not upward
    try:
        tuple(graphlib.TopologicalSorter(imports()).static_order())
    except graphlib.CycleError as e:
        raise AssertionError(f"a circle: {' -> '.join(e.args[1])}") from None


def test_no_file_is_long_and_every_folder_says_what_it_is():
    """Tables of data would be exempt; there are none."""
    for module, file in modules().items():
        text = file.read_text()
        assert text.count("\n") <= 400, f"{module} has over 400 lines"
        if file.name == "__init__.py":
            assert ast.get_docstring(ast.parse(text)), f"{file.parent.name}/__init__.py says nothing"
