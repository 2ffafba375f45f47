"""The training step on many devices, and in two processes, against one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import sharded_step

ROOT = Path(__file__).resolve().parents[2]


def agree(got, want):
    """Every tensor within 1e-5 of its largest entry."""
    assert got.keys() == want.keys() and len(want) == 3 + 28
    for name, expected in want.items():
        top = np.abs(expected).max()
        assert top > 0 or name == "token_accuracy", f"{name} has no gradient"
        error = np.abs(got[name] - expected).max() / max(top, 1e-30)
        assert error <= 1e-5, f"{name}: {error:.2e} of its maximum"


@pytest.fixture(scope="module")
def one_device():
    return sharded_step.run(1, 1)


# a minute less: two of the three are slow
ONE_AXIS = [pytest.param(mesh, marks=pytest.mark.slow) for mesh in ((8, 1), (4, 2))]


@pytest.mark.parametrize("mesh", [*ONE_AXIS, (2, 4)])
def test_loss_and_gradients_equal_one_device(mesh, one_device):
    agree(sharded_step.run(*mesh), one_device)


def test_two_processes_equal_one(one_device, tmp_path):
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    command = [sys.executable, str(Path(sharded_step.__file__)), str(tmp_path / "out.npz"), "4", "2", address, "2"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with open(tmp_path / "log", "w+") as log:
        processes = [
            subprocess.Popen([*command, str(i)], env=env, stdout=log, stderr=subprocess.STDOUT) for i in (0, 1)
        ]
        try:
            codes = [p.wait(timeout=300) for p in processes]
        finally:
            for p in processes:
                p.kill()
        log.seek(0)
        assert codes == [0, 0], log.read()[-3000:]
    with np.load(tmp_path / "out.npz") as out:
        agree(dict(out), one_device)
