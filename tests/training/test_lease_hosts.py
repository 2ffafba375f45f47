"""Leases as several hosts see them, on an object store, in forks, with storage that fails, and around whole trainings.

`pytest tests/training/test_lease_hosts.py -m slow` tries the object store twenty times, and trains.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edit_rl_jax.names import ConfigError
from edit_rl_jax.training import lease
from tests.training import object_store

ROOT = Path(__file__).parents[2]

# Takes the lease of FOLDER, says so or why not, and holds it until its input ends, when it checks it.
PROGRAM = """
import os, sys, time
from edit_rl_jax.training import lease
from tests.training import object_store
folder, store, fork, settings = sys.argv[1:5]
if store:
    object_store.register(store)
print("ready", flush=True)
sys.stdin.readline()
try:
    held = lease.Lease(folder, **eval(settings))
except lease.LeaseError as e:
    print(f"refused: {e}", flush=True)
    sys.exit(1)
if fork and os.fork() == 0:  # a data worker that outlives its owner
    print("forked", flush=True)
    time.sleep(20)
    os._exit(0)
print(f"held since {held._own['started']}", flush=True)
sys.stdin.readline()
try:
    held.check(sure=False)
    print("still held", flush=True)
except lease.LeaseError as e:
    print(f"lost: {e}", flush=True)
held.close()
"""


class Writer:
    """The program above in a process of its own."""

    def __init__(self, folder, store="", fork="", **settings):
        words = [sys.executable, "-c", PROGRAM, str(folder), str(store), fork, repr(settings)]
        pipes = dict(stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        self.process = subprocess.Popen(words, cwd=ROOT, text=True, **pipes)
        self.pid = self.process.pid

    def line(self):
        return self.process.stdout.readline() or self.process.stderr.read()

    def go_on(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()

    def start(self):
        """What it says of the lease."""
        assert self.line() == "ready\n"
        self.go_on()
        return self.line()

    def end(self):
        out, err = self.process.communicate("\n", timeout=60)
        assert err == "", err
        return out

    def kill(self):
        self.process.kill()
        self.process.wait()


@pytest.mark.parametrize("tries", [2, pytest.param(20, marks=pytest.mark.slow)])
def test_of_two_writers_on_an_object_store_one_is_refused(tmp_path, tries):
    """They ask at the same moment."""
    for number in range(tries):
        writers = [Writer(f"gs://bucket/run{number}", store=tmp_path) for _ in range(2)]
        assert [w.line() for w in writers] == ["ready\n"] * 2
        for w in writers:
            w.go_on()
        said = {w: w.line() for w in writers}
        (winner,) = [w for w in writers if "held since" in said[w]]
        (loser,) = [w for w in writers if w is not winner]
        owner = f"host {socket.gethostname()}, process {winner.pid}, started {said[winner].split()[-1]}"
        assert "refused" in said[loser] and owner in said[loser], said
        loser.process.communicate()
        assert winner.end() == "still held\n"
        assert not [p for p in tmp_path.rglob("*") if p.is_file()]


def test_a_killed_owners_remote_folder_is_free_when_its_lease_has_expired(tmp_path):
    first, early, late = (Writer("gs://bucket/run", store=tmp_path, beat=0.5, expiry=3.0) for _ in range(3))
    assert "held since" in first.start()
    first.kill()
    died = time.monotonic()
    assert "refused" in (said := early.start()) and "if it is dead, the folder is free in" in said
    time.sleep(max(0.0, died + 4.2 - time.monotonic()))
    assert "held since" in late.start()
    assert late.end() == "still held\n"


def test_a_worker_that_was_forked_does_not_keep_its_owners_folder(tmp_path):
    first, second = Writer(tmp_path, fork="yes"), Writer(tmp_path)
    said = first.start() + first.line()
    assert "held since" in said and "forked" in said
    first.kill()
    assert "held since" in second.start()
    assert second.end() == "still held\n"


def test_an_owner_that_was_suspended_stops_before_it_writes(tmp_path):
    first, second = (Writer("gs://bucket/run", store=tmp_path, beat=0.2, expiry=2.0) for _ in range(2))
    assert "held since" in first.start()
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(3.2)
    assert "held since" in (said := second.start()), said
    first.go_on()
    os.kill(first.pid, signal.SIGCONT)
    assert (
        f"lost: gs://bucket/run: another run writes this folder (host {socket.gethostname()}, process {second.pid}"
        in (first.line())
    )
    first.end()
    assert second.end() == "still held\n"


def test_a_suspended_owner_of_a_local_folder_keeps_it(tmp_path):
    first, second = (Writer(tmp_path, beat=0.2, expiry=1.0) for _ in range(2))
    assert "held since" in first.start()
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(1.5)
    assert f"process {first.pid}" in second.start()
    os.kill(first.pid, signal.SIGCONT)
    assert first.end() == "still held\n"


def test_another_host_of_the_same_name_is_another_host(tmp_path):
    """Containers and laboratory machines are all called alike: the lock is believed for one kernel only."""
    there = {"host": socket.gethostname(), "process": 1, "started": "then", "token": "x", "boot": "another"}
    (tmp_path / lease.FILE).write_text(json.dumps(there))
    with pytest.raises(lease.LeaseError, match="process 1, started then"):
        lease.Lease(tmp_path)
    (tmp_path / lease.FILE).write_text(json.dumps(there | {"boot": lease._boot()}))
    lease.Lease(tmp_path).close()


@pytest.mark.parametrize("number", lease.NO_LOCKS)
def test_a_file_system_without_locks_has_the_lease(tmp_path, monkeypatch, number):
    def none(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lease.fcntl, "flock", none)
    held = lease.Lease(tmp_path)
    with pytest.raises(lease.LeaseError, match=f"process {os.getpid()}"):
        lease.Lease(tmp_path)
    held.check()
    held.close()
    assert not list(tmp_path.iterdir())


class StoreError(Exception):
    """What a store's client may raise: no OSError."""


def test_storage_that_fails_for_a_while_does_no_harm(tmp_path, monkeypatch):
    object_store.register(tmp_path)
    held = lease.Lease("gs://bucket/run", beat=0.1, expiry=1.0)
    file = tmp_path / "bucket/run" / lease.FILE

    def fail(*_):
        raise StoreError("503")

    with monkeypatch.context() as patch:
        patch.setattr(type(held._file), "write_text", fail)
        time.sleep(1.3)
        held.check(sure=False)  # it may have expired, but nobody took it
        patch.setattr(type(held._file), "read_bytes", fail)
        held._taken = ""
        with pytest.raises(lease.LeaseError, match="could not be renewed or read for 1 s"):
            held.check(sure=False)
        held._taken = ""
    before = json.loads(file.read_text())["renewed"]
    time.sleep(0.5)
    assert json.loads(file.read_text())["renewed"] > before  # the beats went on
    held.check()
    held.close()
    assert not file.exists()


def test_storage_that_refuses_from_the_start_is_one_line(monkeypatch):
    def make():
        raise StoreError("403\nno such bucket")

    with pytest.raises(ConfigError, match="^--workdir: StoreError: 403 no such bucket$"):
        lease.agreed(make)


# -- Trainings ---------------------------------------------------------------------------------------------------------
def train(home, *overrides):
    """The training of the case `two_runs_one_workdir`, in a process of its own."""
    small = "rows=2 eval.pairs=0 eval.batches=0 optim.warmup=1 steps=20 checkpoint.every=2".split()
    words = [f"--config.{o}" for o in (*small, *overrides)]
    command = [sys.executable, "scripts/train_rm.py", "--config", "configs/rm_tiny.py", "--workdir", str(home), *words]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True)
    return subprocess.Popen(command, cwd=ROOT, text=True, **pipes)


def steps(home):
    return [json.loads(line)["step"] for line in (home / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.slow
def test_two_trainings_of_one_workdir(tmp_path):
    """One goes through, the other says who has the folder; config.json is the first's."""
    runs = {lr: train(tmp_path, f"optim.lr={lr}") for lr in ("2e-3", "1e-5")}
    said = {lr: run.communicate()[0] for lr, run in runs.items()}
    assert sorted(run.returncode for run in runs.values()) == [0, 1], said
    (winner,), (loser,) = ([lr for lr, run in runs.items() if run.returncode == code] for code in (0, 1))
    assert f"process {runs[winner].pid}, started" in said[loser] and "Traceback" not in said[loser]
    assert json.loads((tmp_path / "config.json").read_text())["config"]["optim"]["lr"] == float(winner)
    assert steps(tmp_path) == list(range(1, 21)) and not list(tmp_path.glob("lease*"))


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_killed_trainings_workdir_resumes_at_once(tmp_path, kind):
    """Also where data workers outlive it."""
    options = [f"data.worker_kind={kind}", "data.workers=2"]
    first = train(tmp_path, *options)
    while not any((tmp_path / "checkpoints" / str(n)).exists() for n in range(2, 20)):
        assert first.poll() is None, first.communicate()[0]
        time.sleep(0.05)
    first.kill()
    second = train(tmp_path, *options)
    said = second.communicate()[0]
    if kind == "process":
        os.killpg(first.pid, signal.SIGKILL)  # its workers did outlive it
    assert second.returncode == 0 and "resuming after step" in said, said
    assert steps(tmp_path) == list(range(1, 21)) and not list(tmp_path.glob("lease*"))


MEMBER = """
import sys, jax
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from edit_rl_jax.training import lease
try:
    held = lease.agreed(lambda: lease.Lease(sys.argv[3]))
    print("held" if held else "nothing to hold", flush=True)
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("end")
    if held:
        held.close()
except lease.LeaseError as e:
    print(e, flush=True)
"""


@pytest.mark.slow
def test_all_processes_of_a_run_are_refused_alike(tmp_path):
    def both():
        with socket.socket() as s:
            s.bind(("localhost", 0))
            port = s.getsockname()[1]
        words = [[sys.executable, "-c", MEMBER, f"localhost:{port}", str(i), str(tmp_path)] for i in range(2)]
        runs = [subprocess.Popen(w, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE) for w in words]
        return [run.communicate(timeout=300)[0].splitlines()[-1] for run in runs]

    assert both() == ["held", "nothing to hold"]
    first = Writer(tmp_path)
    assert "held since" in first.start()
    said = both()
    assert f"process {first.pid}, started" in said[0] and "its message says why" in said[1]
    assert first.end() == "still held\n"
