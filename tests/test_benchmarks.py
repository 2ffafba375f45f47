"""Benchmarks still fit the package: each can be imported, and the small ones that call its inside run."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests import quick

ROOT = Path(__file__).resolve().parents[1]
NAMES = sorted(p.stem for p in (ROOT / "benchmarks").glob("*.py"))


def python(*words: str) -> str:
    done = subprocess.run(
        [sys.executable, *words], env=quick.environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-3000:]
    return done.stdout


def test_every_benchmark_is_imported():
    assert len(NAMES) > 10
    code = "import importlib, sys; [importlib.import_module(f'benchmarks.{n}') for n in sys.argv[1:]]"
    python("-c", code, *NAMES)


def test_configs_of_the_networks_are_loaded(tmp_path):
    """With the benchmark's own overrides: one of them was refused for weeks."""
    code = "from benchmarks import bench_editor_networks as b; [print(b.timed_config(n).name) for n in b.NETWORKS]"
    assert python("-c", code).split() == ["editor_tiny", "editor_tiny_flux_kontext"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "words", [("bench_grpo_update", "--prompts", "2", "--repeats", "1"), ("bench_first_log_ratio",)]
)
def test_it_runs(words):
    assert "date" in python(str(ROOT / "benchmarks" / f"{words[0]}.py"), *words[1:])
