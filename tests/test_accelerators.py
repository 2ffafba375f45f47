"""Commands are quiet on a machine with libtpu and no TPU, and leave the choice to JAX wherever there may be one."""

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from edit_rl_jax import accelerators
from edit_rl_jax.accelerators import has_tpu, platforms

ROOT = Path(__file__).resolve().parents[1]


def machine(root: Path, *files: str, pci: tuple[str, str] | None = None) -> Path:
    for name in files:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).touch()
    if pci:
        device = root / "sys/bus/pci/devices/0000:00:04.0"
        device.mkdir(parents=True)
        for name, text in zip(("vendor", "class"), pci):
            (device / name).write_text(text + "\n")
    return root


MACHINES = {
    "nothing": ({}, False),
    "v4": (dict(files=["dev/accel0", "dev/accel1"]), True),
    "v5e": (dict(files=["dev/vfio/0", "dev/vfio/vfio"]), True),
    "vfio without a device": (dict(files=["dev/vfio/vfio"]), False),
    "a TPU without its device file": (dict(pci=("0x1ae0", "0x120000")), True),
    "Google's network": (dict(pci=("0x1ae0", "0x020000")), False),
    "Google's disk": (dict(pci=("0x1ae0", "0x010802")), False),
    "another's chip": (dict(pci=("0x8086", "0x120000")), False),
}


@pytest.mark.parametrize("name", MACHINES)
def test_a_tpu_is_seen(tmp_path, monkeypatch, name):
    shown, there = MACHINES[name]
    root = machine(tmp_path, *shown.get("files", ()), pci=shown.get("pci"))
    monkeypatch.setattr(accelerators, "find_spec", lambda module: module == "libtpu" or None)
    assert has_tpu(root) == there and platforms({}, root) == (None if there else "cpu")


def test_the_choice_is_left_to_jax(tmp_path, monkeypatch):
    modules = {"libtpu"}
    monkeypatch.setattr(accelerators, "find_spec", lambda name: name in modules or None)
    assert platforms({}, tmp_path) == platforms({"JAX_PLATFORMS": ""}, tmp_path) == "cpu"
    for name in ("JAX_PLATFORMS", "TPU_NAME", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "JAX_FORCE_TPU_INIT"):
        assert platforms({name: "x"}, tmp_path) is None
    modules |= {"jax_plugins"}
    assert platforms({}, tmp_path) is None  # an accelerator of another make
    modules |= {"jax_cuda12_plugin"}
    assert platforms({}, tmp_path) is None  # and no GPU to be seen
    machine(tmp_path, "dev/nvidia0")
    assert platforms({}, tmp_path) == "cuda,cpu" and platforms({"CUDA_VISIBLE_DEVICES": "1"}, tmp_path) == "cuda,cpu"
    assert platforms({"CUDA_VISIBLE_DEVICES": ""}, tmp_path) is None
    modules.clear()
    assert platforms({}, tmp_path) is None  # no libtpu, no alarm


CODE = """
import sys
{imports}
assert "--workers" not in sys.argv or "jax" not in sys.modules
import jax
print(jax.devices()[0].platform)
"""


@pytest.mark.skipif(find_spec("libtpu") is None or has_tpu(), reason="wants libtpu and no TPU")
@pytest.mark.parametrize("imports", ["import jax, edit_rl_jax", "import edit_rl_jax"])
def test_a_start_without_a_tpu_is_quiet(imports):
    env = {k: v for k, v in os.environ.items() if not k.startswith(("JAX_", "TPU_", "TF_CPP", "XLA_"))}
    args = [] if "jax," in imports else ["--workers"]  # the package by itself imports no JAX
    command = [sys.executable, "-c", CODE.format(imports=imports), *args]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "cpu\n", "")
