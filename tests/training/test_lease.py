"""One run, one workdir: a second writer is refused and told by whom, a dead owner's folder goes to the next."""

import errno
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from edit_rl_jax.training import lease, run, workdir
from edit_rl_jax.training.config import ConfigError
from tests.training import object_store

ROOT = Path(__file__).parents[2]
QUICK = dict(beat=0.2, expiry=1.0)

# Takes the lease of FOLDER with the lock LOCK, says so (or why not), and holds it until its standard input ends.
PROGRAM = """
import sys, time
from edit_rl_jax.training import lease
from tests.training import object_store
folder, lock, store, fork, settings = sys.argv[1:6]
if store:
    object_store.register(store)
import pathlib
assert "jax" not in sys.modules
print("ready", flush=True)
sys.stdin.readline()
began = time.monotonic()
try:
    held = lease.Lease(folder, pathlib.Path(lock), **eval(settings))
except lease.LeaseError as e:
    print(f"{time.monotonic() - began:.2f} refused: {e}", flush=True)
    sys.exit(1)
if fork:  # a data worker that outlives its owner
    import os
    if os.fork() == 0:
        print("forked", flush=True)
        time.sleep(float(fork))
        os._exit(0)
print(f"{time.monotonic() - began:.2f} held since {held._mine['started']}", flush=True)
sys.stdin.readline()
try:
    held.check()
    print("still held", flush=True)
except lease.LeaseError as e:
    print(f"lost: {e}", flush=True)
held.release()
"""


class Writer:
    """The program above in a process of its own."""

    def __init__(self, folder, lock, store="", fork="", **settings):
        words = [sys.executable, "-c", PROGRAM, str(folder), str(lock), str(store), fork, repr(settings)]
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
        assert err == "" or "watching" in err, err
        return out

    def kill(self):
        self.process.kill()
        self.process.communicate()


def two(tmp_path, number, remote):
    """Two writers of one folder; on the object store they are of two hosts, which share no lock."""
    if remote:
        words = dict(store=tmp_path, settle=1.0)
        return [Writer(f"gs://bucket/run{number}", tmp_path / f"host{i}/{number}.lock", **words) for i in range(2)]
    folder = tmp_path / f"run{number}"
    return [Writer(folder, folder / lease.LOCK) for _ in range(2)]


@pytest.mark.parametrize("tries", [2, pytest.param(20, marks=pytest.mark.slow)])
@pytest.mark.parametrize("remote", [False, True], ids=["local", "gs"])
def test_of_two_writers_one_is_refused_and_told_by_whom(tmp_path, remote, tries):
    """Both ask at the same moment."""
    for number in range(tries):
        writers = two(tmp_path, number, remote)
        assert [w.line() for w in writers] == ["ready\n"] * 2
        for w in writers:
            w.go_on()
        said = {w: w.line() for w in writers}
        (winner,) = [w for w in writers if "held since" in said[w]]
        (loser,) = [w for w in writers if w is not winner]
        started = said[winner].split()[-1]
        owner = f"written by process {winner.pid} on host {socket.gethostname()}, started {started}; use another --work"
        assert "refused" in said[loser] and owner in said[loser], said
        assert float(said[loser].split()[0]) < 5
        loser.process.communicate()
        assert winner.end() == "still held\n"
        left = [p.name for p in tmp_path.rglob("*") if p.is_file()]
        assert left == [], left


@pytest.mark.parametrize("fork", ["", "20"], ids=["alone", "with a worker that outlives it"])
def test_a_killed_owners_local_folder_is_free_at_once(tmp_path, fork):
    for _ in range(3):
        first, second = Writer(tmp_path, tmp_path / lease.LOCK, fork=fork), Writer(tmp_path, tmp_path / lease.LOCK)
        said = first.start() + (first.line() if fork else "")
        assert "held since" in said and ("forked" in said) == bool(fork)
        first.process.kill()
        first.process.wait()
        assert (tmp_path / lease.NAME).exists()
        said = second.start()
        assert "held since" in said and float(said.split()[0]) < 1
        second.end()


def test_a_killed_owners_remote_folder_is_free_when_its_lease_has_expired(tmp_path):
    def writer(host):
        settings = dict(store=tmp_path, beat=0.5, expiry=3.0, settle=0.1)
        return Writer("gs://bucket/run", tmp_path / host / "lock", **settings)

    first, early, late, same = writer("a"), writer("b"), writer("c"), writer("c")
    assert "held since" in first.start()
    first.kill()
    died = time.time()
    said = early.start()
    assert "refused" in said and float(said.split()[0]) < 1
    free = re.search(r"free from (\S+) on", said)[1]
    assert died - 4 < lease.datetime.datetime.fromisoformat(free).timestamp() < died + 4
    time.sleep(3.2)
    assert "held since" in late.start()
    late.kill()
    assert "held since" in same.start()  # it shares the lock of the one that died: at once
    same.end()


def test_an_owner_that_was_suspended_stops_before_it_writes(tmp_path):
    """Of another host, so that no lock speaks: another took the folder over meanwhile, and keeps it."""
    store = dict(store=tmp_path, settle=0.1, **QUICK)
    first = Writer("gs://bucket/run", tmp_path / "a", **store)
    second = Writer("gs://bucket/run", tmp_path / "b", **store)
    assert "held since" in first.start()
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(1.5)
    said = second.start()
    assert "held since" in said, said
    first.go_on()
    os.kill(first.pid, signal.SIGCONT)
    said = first.line()
    assert f"lost: gs://bucket/run is written by process {second.pid} on host" in said
    first.end()
    assert second.end() == "still held\n"


def test_a_suspended_owner_on_the_same_host_keeps_its_folder(tmp_path):
    first = Writer(tmp_path, tmp_path / lease.LOCK, **QUICK)
    second = Writer(tmp_path, tmp_path / lease.LOCK, **QUICK)
    assert "held since" in first.start()
    os.kill(first.pid, signal.SIGSTOP)
    time.sleep(1.5)
    assert f"written by process {first.pid} on host" in second.start()
    os.kill(first.pid, signal.SIGCONT)
    assert first.end() == "still held\n"


@pytest.fixture
def store(tmp_path):
    object_store.register(tmp_path)
    return "gs://bucket/run", tmp_path / "bucket/run" / lease.NAME


def other(file, **changes):
    """Writes the lease of another host; returns it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    found = dict(host="far", pid=7, started="2026-01-01T00:00:00+00:00", token="t", lock="there", expiry=1.0, beats=3)
    found |= dict(renewed=time.time()) | changes
    file.write_text(json.dumps(found))
    return found


@pytest.mark.parametrize("off", [-3600, -5, 0, 0.5, 5, 3600])
def test_clocks_that_differ(store, tmp_path, off):
    """A live owner keeps its folder whatever its clock says; a dead one's is free."""
    folder, file = store
    stop = threading.Event()

    def live():
        n = 0
        while not stop.wait(0.1):
            n += 1
            other(file, renewed=time.time() + off, beats=n)

    other(file, renewed=time.time() + off)
    thread = threading.Thread(target=live)
    thread.start()
    try:
        if off > -10:  # by an hour, it would count as dead without a look: no clock is so wrong
            with pytest.raises(lease.LeaseError, match="process 7 on host far"):
                lease.Lease(folder, tmp_path / "lock", settle=0.1, **QUICK)
    finally:
        stop.set()
        thread.join()
    other(file, renewed=time.time() - 1.1 if abs(off) < 1 else time.time() + off)
    lease.Lease(folder, tmp_path / "lock", settle=0.1, **QUICK).release()
    assert not file.exists()


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"renewed": "now"}', '{"renewed": NaN}', "[" * 5000, '{"expiry": null}']
)
def test_a_damaged_lease_is_watched_and_taken_over(tmp_path, text):
    (tmp_path / lease.NAME).write_text(text)
    held = lease.Lease(tmp_path, tmp_path / lease.LOCK, **QUICK)
    held.check(surely=True)
    held.release()
    assert list(tmp_path.iterdir()) == []


def test_beats_that_fail_for_a_while_do_no_harm(store, tmp_path, monkeypatch, caplog):
    folder, file = store
    held = lease.Lease(folder, tmp_path / "lock", settle=0.1, **QUICK)

    def full(path, *_):
        raise OSError(errno.ENOSPC, "no space left", path)

    class Refused(Exception):
        """What a store may raise."""

    def unreachable(path):
        raise Refused("503")

    with monkeypatch.context() as patch:
        patch.setattr(type(held.path), "write_text", full)
        time.sleep(1.5)
        held.check()  # expired, but nobody took it
        patch.setattr(lease, "_parsed", unreachable)
        with pytest.raises(lease.LeaseError, match="was not renewed for 1 s, another may have taken it: 503"):
            held.check()
    assert "cannot be renewed" in caplog.text
    held.release()
    again = lease.Lease(folder, tmp_path / "lock", settle=0.1, **QUICK)
    with monkeypatch.context() as patch:
        patch.setattr(type(again.path), "write_text", full)
        time.sleep(0.5)
    before = json.loads(file.read_text())["beats"]
    time.sleep(0.5)
    assert json.loads(file.read_text())["beats"] > before
    again.check(surely=True)
    again.release()


def test_a_lease_that_was_taken_is_neither_renewed_nor_removed(store, tmp_path):
    folder, file = store
    held, seen = lease.Lease(folder, tmp_path / "lock", settle=0.1, **QUICK), []
    held.on_loss = lambda: seen.append(1)
    held.check(surely=True)
    theirs = other(file)
    with pytest.raises(lease.LeaseError, match="process 7 on host far"):
        held.check(surely=True)
    time.sleep(0.5)
    with pytest.raises(lease.LeaseError):
        held.check()
    held.release()
    assert json.loads(file.read_text()) == theirs and seen == [1, 1]
    file.unlink()
    held = lease.Lease(folder, tmp_path / "lock", settle=0.1, **QUICK)
    file.unlink()
    with pytest.raises(lease.LeaseError, match="is gone: removed by hand"):
        held.check(surely=True)
    held.release()


def test_a_file_system_without_locks_has_the_lease(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr(lease.fcntl, "flock", none)
    held = lease.Lease(tmp_path, tmp_path / lease.LOCK, **QUICK)
    with pytest.raises(lease.LeaseError, match=f"process {os.getpid()} on host"):
        lease.Lease(tmp_path, tmp_path / lease.LOCK, **QUICK)
    held.release()
    lease.Lease(tmp_path, tmp_path / lease.LOCK, **QUICK).release()


def test_nfs_hosts_have_the_lease(tmp_path):
    """One local folder, another host's kernel: its lock is not seen."""
    other(tmp_path / lease.NAME)
    with pytest.raises(lease.LeaseError, match="process 7 on host far.*free from"):
        lease.Lease(tmp_path, tmp_path / lease.LOCK, **QUICK)
    assert [p.name for p in tmp_path.iterdir()] == [lease.NAME]


# -- Runs --------------------------------------------------------------------------------------------------------------
def test_a_run_refuses_a_folder_in_use_and_changes_nothing(tmp_path, caplog):
    home = tmp_path / "run"
    first = Writer(home, home / lease.LOCK)
    assert "held since" in first.start()
    (home / "metrics.jsonl").write_text('{"step": 1}\n')
    before = {p.name: p.read_bytes() for p in home.iterdir()}
    words = ["--config", str(ROOT / "configs/rm_tiny.py"), "--workdir", str(home), "--config.rows=8"]
    assert run.main(words, "", pytest.fail) == 1
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert f"{home} is written by process {first.pid} on host {socket.gethostname()}, started " in line
    assert {p.name: p.read_bytes() for p in home.iterdir()} == before
    assert first.end() == "still held\n"


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file/run"):
        with pytest.raises(ConfigError, match="--workdir: .*(exists|Not a directory)"):
            workdir.hold(folder, None)

    def denied(*_):
        raise PermissionError(errno.EACCES, "Permission denied", str(tmp_path))

    monkeypatch.setattr(lease.os, "open", denied)
    with pytest.raises(ConfigError, match="--workdir: .*Permission denied"):
        workdir.hold(tmp_path, None)


def test_the_lock_of_a_remote_run_lies_beside_its_local_folder(tmp_path):
    """What lies in that folder is mirrored."""
    object_store.register(tmp_path / "store")
    held = workdir.hold(tmp_path / "local/run", lease.epath.Path("gs://bucket/run"))
    assert sorted(p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()) == [
        "local/run.lock",
        "store/bucket/run/lease.json",
    ]
    held.release()


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
    assert f"written by process {runs[winner].pid} on host" in said[loser] and "Traceback" not in said[loser]
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
import sys, jax, pathlib
jax.distributed.initialize(sys.argv[1], 2, int(sys.argv[2]))
from edit_rl_jax.training import lease, workdir
try:
    held = workdir.hold(pathlib.Path(sys.argv[3]), None)
    print("held" if held else "nothing to hold", flush=True)
    from jax.experimental import multihost_utils
    multihost_utils.sync_global_devices("end")
    if held:
        held.release()
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
        return [run.communicate(timeout=120)[0].splitlines()[-1] for run in runs]

    assert both() == ["held", "nothing to hold"]
    first = Writer(tmp_path, tmp_path / lease.LOCK)
    assert "held since" in first.start()
    said = both()
    assert said[0] == said[1] and f"written by process {first.pid} on host" in said[0]
    first.end()
