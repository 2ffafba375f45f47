"""What `pip install .` gives: the package without PyTorch or TensorFlow, the `edit-rl` jobs, configs and assets."""

import ast
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from edit_rl_jax.cli import main as main_module
from edit_rl_jax.cli.main import main

ROOT = Path(__file__).resolve().parents[2]

ABSENT = ["torch", "torchvision", "tensorflow", "peft", "accelerate", "libtpu"]
BLOCK = f"""
import sys
from importlib.machinery import PathFinder
class Without(PathFinder):  # as if they were not installed
    find_spec = lambda name, *rest: None if name.split(".")[0] in {ABSENT} else PathFinder.find_spec(name, *rest)
sys.meta_path[:] = [Without if finder is PathFinder else finder for finder in sys.meta_path]
"""
IMPORT_ALL = """
import importlib, pkgutil, edit_rl_jax
names = [m.name for m in pkgutil.walk_packages(edit_rl_jax.__path__, "edit_rl_jax.")]
for name in names:
    importlib.import_module(name)
assert not {"matplotlib", "jinja2"} & set(sys.modules), "only a report that is written needs them"
print(len(names))
"""


def python(code, *args, **env):
    """Runs code in a new interpreter with no accelerator and no torch, outside the checkout."""
    return subprocess.run(
        [sys.executable, "-c", BLOCK + code, *args],
        env=os.environ | {"JAX_PLATFORMS": "cpu"} | env,
        cwd=env.get("PYTHONPATH", ROOT),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
    )


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The wheel's content, in a folder of its own."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in ("edit_rl_jax", "scripts", "configs"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "setup.py", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, source]
    done = subprocess.run(build, capture_output=True, text=True, stdin=subprocess.DEVNULL)
    assert done.returncode == 0, done.stderr
    folder = tmp_path_factory.mktemp("installed")
    with zipfile.ZipFile(next(out.glob("*.whl"))) as wheel:
        wheel.extractall(folder)
    return folder


def test_every_module_imports_without_torch(installed):
    done = python(IMPORT_ALL, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert int(done.stdout.split()[-1]) > 20


def test_wheel_holds_scripts_configs_and_assets(installed):
    package = installed / "edit_rl_jax"
    for name in ("scripts", "configs"):
        here = {p.name for p in (ROOT / name).glob("*.py")}
        assert here and {p.name for p in (package / name).glob("*.py")} == here
    assets = {p.relative_to(ROOT) for p in (ROOT / "edit_rl_jax/assets").rglob("*") if p.is_file()}
    assert {installed / p for p in assets if "__pycache__" not in p.parts} <= set(package.rglob("*"))
    assert (package / "py.typed").exists() and (package / "training/report.html.j2").exists()
    (info,) = installed.glob("*.dist-info")
    assert "edit-rl = edit_rl_jax.cli.main:main" in (info / "entry_points.txt").read_text()
    assert (info / "licenses/LICENSE").read_text() == (ROOT / "LICENSE").read_text()


CLI = "from edit_rl_jax.cli.main import main; sys.argv[0] = 'edit-rl'; sys.exit(main())"


def test_entry_point_lists_jobs(installed):
    done = python(CLI, PYTHONPATH=str(installed))
    assert done.returncode == 0
    jobs = {p.stem: ast.get_docstring(ast.parse(p.read_text())) for p in (ROOT / "scripts").glob("*.py")}
    lines = done.stdout.split("jobs:\n")[1].splitlines()
    assert {line.split()[0]: " ".join(line.split()[1:]) for line in lines} == {
        k: v.split("\n")[0] for k, v in jobs.items()
    }
    assert all(len(line) <= 120 for line in lines)


@pytest.mark.parametrize(
    "wrong, near",
    [("traim_rm", "train_rm"), ("train-rm", "train_rm"), ("Score.py", "score"), ("grpo", "train_grpo"), ("qqq", "")],
)
def test_a_job_that_is_none_is_told_the_nearest(capsys, monkeypatch, wrong, near):
    monkeypatch.setattr(sys, "argv", ["edit-rl", wrong])
    assert main() == 2
    first, second = capsys.readouterr().err.splitlines()
    assert first == f"edit-rl: there is no job {wrong!r}" + (f"; the nearest is {near}" if near else "")
    assert second.startswith("jobs: ") and "train_grpo, train_rm" in second


ALL_HELP = """
from edit_rl_jax.cli import main
for job in sys.argv[1:]:
    sys.argv = ["edit-rl", job, "--help"]
    try:
        main.main()
    except SystemExit as end:
        assert not end.code, job
"""


def test_every_job_has_help_and_needs_no_torch(installed):
    jobs = sorted(p.stem for p in (ROOT / "scripts").glob("*.py"))
    done = python(ALL_HELP, *jobs, PYTHONPATH=str(installed))
    assert done.returncode == 0, done.stderr
    assert [j for j in jobs if f"usage: {j}.py" not in done.stdout] == []


def test_config_by_name(installed):
    code = "from edit_rl_jax.cli.main import arguments; print(arguments(sys.argv[1:]))"
    done = python(code, "--config", "rm_tiny", "--config=rm_7b", "--config.seed=1", "x", PYTHONPATH=str(installed))
    paths = [str(installed / "edit_rl_jax/configs" / f"{n}.py") for n in ("rm_tiny", "rm_7b")]
    assert eval(done.stdout) == ["--config", paths[0], f"--config={paths[1]}", "--config.seed=1", "x"]


def test_config_by_name_with_an_argument(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("rm:72b", "rm.py:7b,editreward"):
        argument = name.partition(":")[2]
        assert main_module.arguments(["--config", name]) == ["--config", f"{ROOT}/configs/rm.py:{argument}"]
    (tmp_path / "rm.py").write_text("")
    for given in ("rm.py", "rm.py:72b", f"{tmp_path}/rm.py:72b", "nothing:72b"):  # the user's own, and what is none
        assert main_module.arguments(["--config", given]) == ["--config", given]
