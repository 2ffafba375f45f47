"""Damaged runs: nothing wrong without a word, nothing lost, no traceback; what cannot be written is tried again."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from edit_rl_jax import sharding
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rl.editors import evaluation
from edit_rl_jax.training import checkpoint, metrics, report, session, workdir
from tests.training import damaged_checkpoints as damaged
from tests.training import micro

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("original") / "checkpoints"
    damaged.write(folder)
    return folder


def test_damaged_checkpoints_are_named(original):
    """A part of the table that `tests/training/damaged_checkpoints.py` prints: each tenth, all of the folders."""
    every = damaged.damages(original)
    chosen = [d for n, d in enumerate(every) if n % 10 == 0 or d[0] in ("steps swapped", "host: malformed")]
    text, bad = damaged.table(original, chosen)
    assert len(every) >= 350 and len(chosen) > 50 and not bad, "\n".join(bad)
    assert "named" in text


@pytest.mark.slow
def test_every_damage_is_named_or_harmless(original):
    text, bad = damaged.table(original, damaged.damages(original))
    print(text)
    assert not bad, "\n".join(bad)


def test_a_step_without_a_checksum_of_the_host_is_of_an_earlier_version(original, tmp_path, caplog):
    def old(folder):
        for step in damaged.STEPS:
            path = folder / str(step) / damaged.META
            meta = json.loads(path.read_text())
            del meta["sha256"]
            path.write_text(json.dumps(meta))

    found, _ = damaged.verdict(original, old)
    assert found == "harmless" and "earlier version" in caplog.text


# -- Saves that fail ---------------------------------------------------------------------------------------------------


class Flaky(checkpoint.Checkpoints):
    """Checkpoints that cannot be saved at some tries; in the background where `late`."""

    def __init__(self, bad, late=False):
        self.bad, self.late, self.tries, self.saved, self._error = set(bad), late, 0, [], None

    def save(self, step, trees, data, extra):
        self.tries += 1
        if self._error:
            raise self._error
        if self.tries in self.bad:
            self._error = checkpoint.SaveError("No space left on device")
            if not self.late:
                self.wait()
        self.saved.append(step)

    def saving(self):
        return False

    def wait(self):
        error, self._error = self._error, None
        if error:
            self.saved = self.saved[:-1] if self.late else self.saved
            raise error


@pytest.mark.parametrize(
    ("bad", "late", "saved", "failed"),
    [
        ((), False, [3, 6, 9], 0),
        ((2, 3), False, [3, 8, 9], 2),
        ((1,), True, [4, 6, 9], 1),
        ((2, 3), True, [3, 8, 9], 2),
    ],
)
def test_a_failed_save_is_tried_again_at_the_next_step(bad, late, saved, failed):
    checkpoints = Flaky(bad, late)
    saver = session.Saver(checkpoints, None, every=3, limit=3)
    for step in range(1, 10):
        if saver.due(step):
            saver.save(step, {}, {}, {}, stopping=False)
    assert not saver.due(10) and checkpoints.saved == saved and saver.failed == failed


def test_saves_that_fail_on_end_the_run(monkeypatch):
    monkeypatch.setattr(session, "PAUSE", 0.0)
    saver = session.Saver(Flaky(range(100)), None, every=1, limit=3)
    for step in (1, 2):
        assert saver.due(step)
        saver.save(step, {}, {}, {}, stopping=False)
    with pytest.raises(checkpoint.SaveError, match=r"step 3: No space left.*\(3 tries in a row\)"):
        saver.save(3, {}, {}, {}, stopping=False)
    last = Flaky((1, 2), late=True)
    session.Saver(last, None, every=50, limit=3).save(7, {}, {}, {}, stopping=True)  # nothing comes after: waits, again
    assert last.saved == [7] and last.tries == 3


def test_orbax_goes_on_after_a_save_that_failed(tmp_path, monkeypatch):
    """The error of the storage is named, earlier steps stay, the next save is whole."""
    saver = checkpoint.Checkpoints(tmp_path, keep=2)
    saver.save(1, damaged.trees(1), {"position": 1})
    saver.wait()

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    with (
        monkeypatch.context() as patch,
        pytest.raises(checkpoint.SaveError, match="saved under.*No space"),
    ):
        patch.setattr(saver._manager, "save", full)
        saver.save(2, damaged.trees(2), {"position": 2})
        saver.wait()
    assert (tmp_path / "1").exists()
    saver.save(3, damaged.trees(3), {"position": 3})
    saver.wait()
    assert saver.steps() == [1, 3] and sorted(p.name for p in tmp_path.iterdir()) == ["1", "3"]
    wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), damaged.trees(0))
    step, found, data, _ = saver.restore(wanted)
    assert (step, data) == (3, {"position": 3})
    np.testing.assert_array_equal(found["trainable"]["a.kernel"], damaged.trees(3)["trainable"]["a.kernel"])
    saver.close()


# -- Figures -----------------------------------------------------------------------------------------------------------

ROWS = [{"step": s, "loss": 1.0 / s} for s in range(1, 7)]
LINES = [json.dumps(row).encode() for row in ROWS]


@pytest.mark.parametrize(
    ("data", "kept", "said"),
    [
        (b"\n".join(LINES) + b"\n", [1, 2, 3, 4, 5], None),
        (b"\n".join(LINES) + b'\n{"step": 7, "lo', [1, 2, 3, 4, 5], None),  # a kill
        (b"\n".join([*LINES[:2], b'{"step": 3, "lo', *LINES[3:]]) + b"\n", [1, 2, 4, 5], "line 3: malformed JSON"),
        (b"\n".join([*LINES[:2], b"\0" * 40, *LINES[3:]]) + b"\n", [1, 2, 4, 5], "line 3"),
        (b"\n".join([*LINES[:2], b'{"a": "\xff"}', *LINES[2:]]) + b"\n", [1, 2, 3, 4, 5], "line 3: not UTF-8"),
        (
            b"\n".join([b'{"loss": 1}', b"[1]", b'{"step": "2"}', *LINES]) + b"\n",
            [1, 2, 3, 4, 5],
            "no object with a step",
        ),
        (b"\n".join([*LINES[:3], LINES[1], *LINES[3:]]) + b"\n", [1, 2, 3, 4, 5], "line 4: step 2 after step 3"),
        (b"\n".join(LINES[2:]) + b"\n", [3, 4, 5], "no figures of 2 of 5 steps, the first is 1"),
        (b"", [], "no figures of 5 of 5 steps"),
        (None, [], "no figures of 5 of 5 steps"),
        ("folder", [], "cannot be read"),
        ("loop", [], "cannot be read"),
    ],
)
def test_damaged_metrics_are_named_kept_and_read(tmp_path, caplog, data, kept, said):
    path = tmp_path / "metrics.jsonl"
    if data == "folder":
        path.mkdir()
    elif data == "loop":
        path.symlink_to(path.name)
    elif data is not None:
        path.write_bytes(data)
    for n in (1, 2):
        writer = metrics.Writer(tmp_path, 5, config=micro.config(log__tensorboard=False))
        assert [row["step"] for row in metrics.read(path)] == kept and n
        if n == 1:
            assert len(caplog.records) <= 2 and (not said and not caplog.records or said in caplog.text), caplog.text
        writer.close()
    aside = [p.name for p in tmp_path.iterdir() if "damaged" in p.name]
    assert aside == (["metrics.damaged-1.jsonl"] if said and "figures" not in said else [])
    writer.write(6, {"loss": 0.5})
    assert metrics.read(path)[-1] == {"step": 6, "loss": 0.5}
    report.write_report(tmp_path)


def test_figures_that_cannot_be_written_are_written_later(tmp_path, caplog):
    writer = metrics.Writer(tmp_path, 0, config=micro.config(log__tensorboard=True))
    writer.write(1, {"loss": 1.0})
    path = tmp_path / "metrics.jsonl"
    path.rename(tmp_path / "away")
    writer.write(2, {"loss": 0.5})
    writer.write(3, {"loss": 0.4})
    with pytest.raises(OSError, match="metrics.jsonl"):
        writer.mirror_now()
    assert len(caplog.records) == 1 and "step 2: figures cannot be written" in caplog.text
    (tmp_path / "away").rename(path)
    with open(path, "a") as file:
        file.write('{"step": 2, "lo')  # of an attempt that came half through
    writer.mirror_now()
    writer.close()
    assert path.read_text().splitlines() == [
        json.dumps({"step": s, "loss": v}) for s, v in ((1, 1.0), (2, 0.5), (3, 0.4))
    ]


def test_events_that_cannot_be_written_are_left_out(tmp_path, caplog):
    """And are in TensorBoard's format else: two events of two figures each, as tensorboardX reads them."""
    (tmp_path / "events").touch()
    writer = metrics.Writer(tmp_path, 0, config=micro.config(log__tensorboard=True))
    writer.write(1, {"loss": 1.0})
    writer.write(2, {"loss": 0.5})
    assert len(caplog.records) == 1 and "events for TensorBoard cannot be written" in caplog.text
    (tmp_path / "events").unlink()
    writer.write(3, {"loss": 0.4, "lr": 0.1})
    writer.close()
    assert [row["step"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    (file,) = (tmp_path / "events").iterdir()
    assert _events(file) == [(3, "loss", pytest.approx(0.4)), (3, "lr", pytest.approx(0.1))]


def _events(file):
    from tensorboardX.proto.event_pb2 import Event

    data, found = file.read_bytes(), []
    while data:
        size = int.from_bytes(data[:8], "little")
        event = Event.FromString(data[12 : 12 + size])
        found += [(event.step, v.tag, v.simple_value) for v in event.summary.value]
        data = data[16 + size :]
    return found


# -- What the folder says of itself ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "content", [b"{", b"null", b"[]", b"{}", b"", b"\0\0", b"\xff", b'{"config": 3}', "folder", None]
)
def test_a_damaged_config_of_a_run_is_refused_and_kept(tmp_path, content):
    mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    about = workdir.describe(micro.config(), mesh, steps=4, data_hash="d", base_hash="b")
    (tmp_path / "checkpoints/4").mkdir(parents=True)
    path = tmp_path / "config.json"
    if content == "folder":
        path.mkdir()
    elif content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match="holds checkpoints, but of which run cannot be read.*config.json") as e:
        workdir.enter(tmp_path, None, about)
    assert "\n" not in str(e.value)
    assert path.exists() == (content is not None) and (content in ("folder", None) or path.read_bytes() == content)


def test_a_damaged_report_source_is_left_out(tmp_path, caplog):
    (tmp_path / "config.json").write_text("[]")
    (tmp_path / "eval.json").write_text("{")
    assert report.write_report(tmp_path).exists()
    assert caplog.text.count("which cannot be read") == 2


def test_damaged_evaluations_are_named_and_kept(tmp_path, caplog):
    found = {"task": ["add"], "reward": [0.5], "valid": [True]}
    for step in (0, 5, 9):
        evaluation.store(tmp_path, step, found, (), np.zeros((1, 4, 4, 3), np.uint8), 1)
    home = tmp_path / "evaluations"
    assert evaluation.read(tmp_path) == dict.fromkeys((0, 5, 9), found) and not caplog.records
    for name, edit in (("000000", lambda t: t.replace("0.5", "0.6")), ("000005", lambda t: t[:20])):
        path = home / f"{name}.json"
        path.write_text(edit(path.read_text()))
    (home / "000007.json").mkdir()
    (home / "notes.json").write_text("mine")
    assert evaluation.read(tmp_path, last=7) == {} and len(caplog.records) == 3
    assert {p.name for p in home.glob("*.json")} == {f"damaged-{n:06d}.json" for n in (0, 5, 7)} | {"notes.json"}
    (home / "000005.png").write_bytes((home / "000005.png").read_bytes()[:40])
    with pytest.raises(OSError, match="000005.png|truncated"):
        evaluation.shown(tmp_path, 5, (4, 4))


# -- Errors, signals, output -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EDQUOT, "Disk quota exceeded", "/data/run/model"), "/data/run/model: Disk quota exceeded"),
        (OSError(errno.EIO, "Input/output error"), "Input/output error"),
        (checkpoint.SaveError("step 3: full"), "step 3: full"),
        (KeyboardInterrupt(), "interrupted; the same command goes on from the last checkpoint"),
    ],
)
def test_errors_are_one_line(error, said, caplog):
    closed, handler = [], signal.getsignal(signal.SIGINT)

    def job(stack):
        session.closing(stack, lambda: closed.append(1) or (_ for _ in ()).throw(OSError("again")))
        raise error

    try:
        assert session.run(job) == (130 if isinstance(error, KeyboardInterrupt) else 1)
    finally:
        signal.signal(signal.SIGINT, handler)
    assert closed == [1] and [r.getMessage() for r in caplog.records] == [said]


def test_an_interruption_in_a_callback_is_not_lost(caplog):
    """JAX's callback of the garbage collector runs at any moment, and Python ignores what it raises."""
    handler = signal.getsignal(signal.SIGINT)

    class Callback:
        def __del__(self):
            raise KeyboardInterrupt

    def job(stack):
        Callback()
        for _ in range(500):
            time.sleep(0.01)
        return 0

    try:
        assert session.run(job) == 130
    finally:
        signal.signal(signal.SIGINT, handler)
    assert [r.getMessage() for r in caplog.records] == [
        "interrupted; the same command goes on from the last checkpoint"
    ]


def test_what_cannot_be_closed_is_an_error_of_a_good_job(caplog):
    def job(stack):
        session.closing(stack, lambda: (_ for _ in ()).throw(OSError(errno.ENOSPC, "No space left on device", "m")))
        return 0

    assert session.run(job) == 1 and "m: No space left on device" in caplog.text


SLEEPER = """
import ctypes, signal, sys
from edit_rl_jax.training import session, terminal

def job(stack):
    interruption = terminal.Interruption()
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))  # other threads take them: it sleeps on
    print("ready", flush=True)
    while True:  # it sleeps before it asks: the first signal may come before it sleeps
        ctypes.CDLL(None).usleep(60_000_000)  # as a device is waited for: Python runs no handler meanwhile
        if interruption.now(1):
            break
    interruption.restore()
    print("saved", flush=True)
    return 0

sys.exit(session.run(job))
"""


def sleeper(*signals, pause=1.3):
    """(exit status, output) of a job whose steps wait for something, sent signals."""
    words = [sys.executable, "-c", SLEEPER]
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    process = subprocess.Popen(words, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    try:
        first = process.stdout.readline()
        for number in signals:
            process.send_signal(number)
            time.sleep(pause)
        rest = process.communicate(timeout=60)[0]
    finally:
        process.kill()
    return process.returncode, first + rest


def test_a_second_signal_stops_at_once():
    code, text = sleeper(signal.SIGINT, signal.SIGTERM)
    assert code == 128 + signal.SIGTERM and "Traceback" not in text and "saved" not in text
    assert "SIGINT: saving after this step" in text and "SIGTERM again: stopped at once" in text


def test_output_that_breaks_ends_nothing():
    """A reader that leaves, a full disk, no streams: the status is 0 and nothing is said of it."""
    job = "print('x' * 100_000, flush=True); print('y'); log.warning('z'); print('w', file=sys.stderr)"
    code = "import sys\nfrom edit_rl_jax.training.session import log, run\n"
    code += f"def job(stack):\n    {job}\n    return 0\nsys.exit(run(job))"
    env = os.environ | {"PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    where = ("2>&1 | head -c 5", "> /dev/full 2>&1", ">&- 2>&-")
    lines = "; ".join(f'"$0" -c "$1" {to}; echo " ${{PIPESTATUS[0]}}"' for to in where)
    found = subprocess.run(["bash", "-c", lines, sys.executable, code], env=env, capture_output=True, text=True)
    assert found.stdout == "xxxxx 0\n 0\n 0\n" and not found.stderr
