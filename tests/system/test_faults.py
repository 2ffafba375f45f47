"""Whole runs under faults of storage, users and terminals, by `faults.py` (slow): nothing lost, no traceback."""

import os
import shutil
import signal
import time

import pytest

from tests.system import faults, resume


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults")
    resume.prepare(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("fault", faults.FAULTS, ids=lambda f: f.__name__)
def test_a_fault_ends_in_a_line_and_loses_nothing(folder, fault):
    if "disk" in fault.__name__ and (os.geteuid() or not shutil.which("mount")):
        pytest.skip("only root may mount a small disk")
    print(fault(folder, folder / fault.__name__))


@pytest.mark.slow
def test_ctrl_c_in_one_of_two_processes_stops_both(folder):
    """As SIGTERM does: JAX's coordination service has them agree on the step."""
    workdir, log = folder / "two", folder / "two.log"
    processes = resume.start_two(folder, workdir, log, **{"eval.batches": 0})
    try:
        while resume.steps_done(workdir) < 3 and all(p.poll() is None for p in processes):
            time.sleep(0.01)
        processes[1].send_signal(signal.SIGINT)
        codes = [p.wait() for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert codes == [0, 0] and "Traceback" not in log.read_text(), log.read_text()[-3000:]
    assert (workdir / "checkpoints" / str(resume.steps_done(workdir))).exists() and not (workdir / "finished").exists()
