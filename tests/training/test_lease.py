"""One run, one workdir: a second writer is refused at once, a dead owner's folder is free again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edit_rl_jax.training.lease import Lease, LeaseError
from tests.system import resume

ROOT = Path(__file__).resolve().parents[2]
# Holds the lease of a folder until its input ends; says so.
OWNER = """
import sys
from edit_rl_jax.training import lease
try:
    held = lease.Lease(sys.argv[1], locked=sys.argv[2] == "local", beat=0.1, expiry=30.0)
except lease.LeaseError as e:
    print("refused", e, flush=True)
    sys.exit(3)
assert "jax" not in sys.modules
print("held", flush=True)
sys.stdin.read()
held.close()
"""


def owner(folder, kind):
    pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    return subprocess.Popen([sys.executable, "-c", OWNER, str(folder), kind], cwd=ROOT, **pipes)


def end(process):
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        pipe.close()


@pytest.mark.parametrize("kind", ["local", "remote"])
def test_of_two_writers_one_is_refused(tmp_path, kind):
    """Twenty times at the same moment; the refusal names the other."""
    pairs = [[owner(tmp_path / f"{n}", kind) for _ in range(2)] for n in range(20)]
    try:
        for n, pair in enumerate(pairs):
            said = [p.stdout.readline() for p in pair]
            assert sorted(s.split()[0] for s in said) == ["held", "refused"], (n, said)
            holder, refusal = pair[said.index("held\n")], next(s for s in said if s.startswith("refused"))
            while not (text := (tmp_path / f"{n}" / "lease.json").read_text()):
                time.sleep(0.01)  # it is being renewed
            about = json.loads(text)
            assert f"process {holder.pid}, started {about['started']}" in refusal and about["host"] in refusal
    finally:
        for process in (p for pair in pairs for p in pair):
            end(process)


def test_a_killed_owners_folder_is_free(tmp_path):
    """At once where there are locks, else after the lease has expired; until then the refusal says when."""
    for kind in ("local", "remote"):
        folder, process = tmp_path / kind, owner(tmp_path / kind, kind)
        assert process.stdout.readline() == "held\n"
        with pytest.raises(LeaseError, match=f"process {process.pid}"):
            Lease(folder, locked=kind == "local", expiry=2.0)
        os.kill(process.pid, signal.SIGKILL)
        end(process)
        killed = time.monotonic()
        if kind == "remote":
            with pytest.raises(LeaseError, match="free in [123] s"):
                Lease(folder, locked=False, expiry=2.0)
            time.sleep(3.1 - (time.monotonic() - killed))
        Lease(folder, locked=kind == "local", expiry=2.0).close()
        assert not list(folder.iterdir())


def test_an_owner_that_ends_gives_the_folder_back(tmp_path):
    for locked in (True, False):
        with pytest.raises(LeaseError, match=f"process {os.getpid()}"):
            held = Lease(tmp_path / "run", locked=locked)
            try:
                Lease(tmp_path / "run", locked=locked)
            finally:
                held.close()
        Lease(tmp_path / "run", locked=locked).close()


def test_another_hosts_lease_counts_on_a_shared_disk_without_locks(tmp_path):
    """Its lock is not seen here: its heartbeat is."""
    there = {"host": "elsewhere", "process": 1, "started": "2026-11-28T00:00:00+00:00", "token": "x"}
    (tmp_path / "lease.json").write_text(json.dumps(there))
    with pytest.raises(LeaseError, match="host elsewhere, process 1, started 2026"):
        Lease(tmp_path, expiry=30.0)
    old = time.time() - 31
    os.utime(tmp_path / "lease.json", (old, old))
    Lease(tmp_path, expiry=30.0).close()


@pytest.mark.parametrize("content", ["", "null", "[]", "{", '"x"', "\0" * 20])
def test_a_damaged_lease_blocks_nobody_for_ever(tmp_path, content):
    for locked in (True, False):
        (tmp_path / "lease.json").write_text(content)
        old = time.time() - 100
        os.utime(tmp_path / "lease.json", (old, old))
        Lease(tmp_path, locked=locked).close()


def test_an_owner_notices_that_it_lost_the_folder(tmp_path):
    """It stood still for too long and another took over: it writes no more, and leaves the other's lease alone."""
    held = Lease(tmp_path, locked=False, beat=100.0, expiry=1.0)
    held.check()
    time.sleep(2.1)  # remote storage counts seconds
    other = Lease(tmp_path, locked=False, expiry=1.0)
    with pytest.raises(LeaseError, match="another run writes"):
        held.check()
    held.close()
    other.check()
    other.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("locked", [True, False])
def test_the_heartbeat_renews(tmp_path, locked):
    held = Lease(tmp_path, locked=locked, beat=0.05, expiry=1.0)
    first = json.loads((tmp_path / "lease.json").read_text())["renewed"]
    time.sleep(1.2)
    assert held._read()["renewed"] > first + 0.5
    with pytest.raises(LeaseError):
        Lease(tmp_path, locked=locked, expiry=1.0)
    held.close()


@pytest.mark.slow
def test_two_trainings_in_one_workdir(tmp_path):
    """One trains, the other says in one line who it is; a killed run's folder is free at once."""
    resume.prepare(tmp_path)
    run, logs = tmp_path / "run", [tmp_path / f"{n}.log" for n in range(3)]
    both = [resume.start(tmp_path, run, log) for log in logs[:2]]
    codes = [p.wait() for p in both]
    assert sorted(codes) == [0, 1]
    assert f"process {both[codes.index(0)].pid}, started" in logs[codes.index(1)].read_text().splitlines()[-1]
    killed = resume.start(tmp_path, tmp_path / "killed", logs[2])
    while resume.steps_done(tmp_path / "killed") < 5:
        time.sleep(0.05)
    killed.kill()
    killed.wait()
    resume.finish(tmp_path, tmp_path / "killed", logs[2])
    assert (tmp_path / "killed" / "finished").exists()
