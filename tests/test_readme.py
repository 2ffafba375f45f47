"""The README keeps its word: it opens with the two commands, its paths exist, and its Python runs as it stands."""

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{p.name}" for p in (ROOT / "docs").glob("*.md"))]


def blocks(document):
    """The (language, code) of each fenced block."""
    return re.findall(r"^```(\w+)\n(.*?)^```", (ROOT / document).read_text(), re.M | re.S)


BLOCKS = blocks("README.md")


def test_opens_with_the_two_commands():
    language, first = BLOCKS[0]
    assert language == "bash" and [line.split("#")[0].strip() for line in first.splitlines()] == [
        "make demo",
        "make test",
    ]
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.M))
    assert {"demo", "test", "plans", "lint"} <= targets


@pytest.mark.parametrize("document", DOCUMENTS)
def test_named_files_exist(document):
    text = (ROOT / document).read_text()
    inside = r"\b(?:scripts|configs|tpu|tests|edit_rl_jax)/[\w/.-]*\w"
    named = {ROOT / name for name in re.findall(inside, text)}
    named |= {(ROOT / document).parent / name for name in re.findall(r"\]\(([\w./-]+)\)", text)}
    assert named and not [str(n) for n in sorted(named) if not n.exists()]


def test_named_flags_exist(capsys):
    """Every flag of a shown `scripts/NAME.py` command is one that the script takes (config overrides aside)."""
    every = [block for document in DOCUMENTS for block in blocks(document)]
    shown = "\n".join(code for language, code in every if language == "bash").replace("\\\n", " ")
    commands = re.findall(r"scripts/(\w+)\.py(.*)", shown)
    assert len(commands) >= 20
    for script, rest in commands:
        with pytest.raises(SystemExit):
            importlib.import_module(f"scripts.{script}").main(["--help"])
        known = set(re.findall(r"--[a-z_-]+", capsys.readouterr().out))
        unknown = [f for f in re.findall(r"--[a-z_-]+(?=[ =]|$)", rest.split("#")[0]) if f not in known]
        assert not unknown, (script, unknown)


def test_python_runs(tmp_path):
    code = "\n".join(code for language, code in BLOCKS if language == "python")
    assert code.strip()
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) == 2
