"""Runs of scripts/train_rm.py in this process, watched: what is written when, what is measured, what is let go."""

import importlib.util
import json
import re
import signal
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
from etils import epath

from edit_rl_jax.evals.judges import editworld
from edit_rl_jax.training import checkpoint, metrics, on_mesh, workdir
from edit_rl_jax.training import supervised as run_lib
from tests.system.sharded_step import FAST
from tests.training import toy

ROOT = Path(__file__).resolve().parents[2]
PAUSE = 1e4  # seconds by which validation moves the clock that the script looks at

pytestmark = pytest.mark.standard_promotion


@pytest.fixture(scope="module")
def train_rm():
    spec = importlib.util.spec_from_file_location("train_rm", ROOT / "scripts/train_rm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def main(train_rm, tmp_path_factory):
    """Runs the script on the toy config, on one device; keywords and **{"dotted.key": value} are overrides."""
    tokenizer = toy.save_tokenizer(tmp_path_factory.mktemp("tokenizer"))
    one_device = lambda config, real=on_mesh.make_mesh: real(config, jax.devices()[:1])
    quickly = lambda self, real=jax.stages.Lowered.compile: real(self, compiler_options=FAST)

    def run(workdir, **changes):
        changes = {"model.tokenizer": tokenizer, "data.buckets": "((64,1,64,16),)", "compilation_cache": ""} | changes
        words = [f"--config.{k}={v}" for k, v in changes.items()]
        config = str(ROOT / "tests/training/toy_config.py")
        with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
            patch.setattr(on_mesh, "make_mesh", one_device)
            patch.setattr(jax.stages.Lowered, "compile", quickly)
            return train_rm.main(["--config", config, "--workdir", str(workdir), *words])

    return run


@pytest.fixture(scope="module")
def run(train_rm, main, tmp_path_factory):
    """(folder, remote folder, what was seen) of a finished run of 4 steps with a remote workdir."""
    folder, remote = tmp_path_factory.mktemp("local"), epath.Path(tmp_path_factory.mktemp("remote"))
    seen = SimpleNamespace(late=0, compiled=0, compiled_validating=[], mirrored={}, held=[], signal=None)
    before = {id(x) for x in jax.live_arrays()}
    weights = set()

    def count(event, duration, **_):
        seen.compiled += event == "/jax/core/compile/backend_compile_duration"

    def validation_batches(*args, real=run_lib.Input.validation_batches):
        began = seen.compiled
        yield from real(*args)
        seen.late += PAUSE
        seen.compiled_validating.append(seen.compiled - began)

    def save(self, step, trees, *args, real=checkpoint.Checkpoints.save):
        rows = metrics.read(remote / "metrics.jsonl")
        seen.mirrored[step] = rows[-1]["step"] if rows else 0
        weights.update(x.shape for x in jax.tree.leaves(trees) if x.size > 1000)
        return real(self, step, trees, *args)

    def judge(model, output, **_):  # the toy model writes no scores: only the moment matters
        seen.held = [x.shape for x in jax.live_arrays() if id(x) not in before and x.shape in weights]
        seen.signal = signal.getsignal(signal.SIGTERM)
        assert weights and (Path(model) / "model.safetensors").exists() and not (remote / "finished").exists()
        figures = dict(pair_accuracy=0.5, pair_accuracy_ci95=[0.4, 0.6], n_pairs=1, untrained_pair_accuracy=0.5)
        for name in ("eval.json", "report.html"):
            (Path(output) / name).write_text(json.dumps(figures))
        return figures | {"ties": 0, "invalid_pairs": 0}

    handler = signal.getsignal(signal.SIGTERM)
    jax.monitoring.register_event_duration_secs_listener(count)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lib, "time", SimpleNamespace(monotonic=lambda: time.monotonic() + seen.late))
        patch.setattr(workdir, "local_folder", lambda name: (folder, remote))
        patch.setattr(run_lib.Input, "validation_batches", validation_batches)
        patch.setattr(checkpoint.Checkpoints, "save", save)
        patch.setattr(editworld, "load", lambda model, *_, **__: (model, None))
        patch.setattr(editworld, "run", judge)
        every = {"eval.every": 2, "checkpoint.every": 2, "eval.pairs": 1, "log.profile_steps": "2:3"}
        assert main("gs://nowhere/run", steps=4, **every) == 0
    jax.monitoring.unregister_event_duration_listener(count)
    assert signal.getsignal(signal.SIGTERM) == handler
    return folder, remote, seen


def test_a_profile_is_written(run):
    for folder in run[:2]:
        (trace,) = Path(folder, "profile").rglob("*.xplane.pb")
        assert trace.stat().st_size > 10_000


def test_validation_is_no_part_of_a_steps_time(run):
    rows = metrics.read(run[0] / "metrics.jsonl")
    assert [r["step"] for r in rows if "validation_loss" in r] == [2, 4]
    for row in rows:
        assert 0 < row["step_s"] < PAUSE / 2
        assert row["tokens_per_s"] == pytest.approx(row["tokens"] / row["step_s"])
        assert 0 <= row["host_s"] <= row["step_s"] and row["bytes_read"] >= 0
        assert row["step"] == 1 or 0 <= row["device_idle_share"] <= 1


def test_validation_records_that_are_skipped_are_counted(main, tmp_path, caplog):
    where = {"data.validation": "tests.training.test_data:partly_spoilt", "eval.pairs": 0, "eval.batches": 4}
    assert main(tmp_path, steps=1, **where) == 0
    (row,) = metrics.read(tmp_path / "metrics.jsonl")
    assert row["validation_skipped"] == 2 and row["skipped"] == 0
    assert json.loads((tmp_path / "model" / "edit_rl.json").read_text())
    assert sum("validation: record toy/" in m for m in caplog.messages) == 2


def test_validation_is_compiled_before_the_first_step(run):
    assert run[2].compiled_validating == [0, 0] and run[2].compiled > 2


def test_metrics_are_remote_before_their_checkpoint(run):
    assert run[2].mirrored == {2: 2, 4: 4}


def test_state_and_signal_are_let_go_before_the_final_evaluation(run):
    assert run[2].held == [] and run[2].signal == signal.getsignal(signal.SIGTERM)


def test_the_remote_workdir_is_whole_and_says_that_the_run_has_finished(run):
    folder, remote, _ = run
    for name in ("finished", "config.json", "metrics.jsonl", "eval.json", "report.html", "model/model.safetensors"):
        assert (remote / name).exists(), name
    assert json.loads((remote / "config.json").read_text())["base_revision"] == ""
    assert not (folder / "finished").exists()  # one place says it


def test_bad_input_is_one_line(main, tmp_path, caplog):
    assert main(tmp_path, epochs=1.0, steps=0, **{"data.train": "tests.training.test_data:spoilt"}) == 1
    assert main(tmp_path, **{"mesh.fsdp": 3}) == 1
    assert main(tmp_path, **{"model.tokenizer": tmp_path / "nothing"}) == 1
    assert main(tmp_path, **{"model.config": "", "model.init_from": tmp_path / "nothing"}) == 1
    assert main(tmp_path, **{"data.buckets": "((64,1,60,8),)"}) == 1
    lines = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    said = "no usable record", "needs 3 devices", "no tokenizer in", "'model.init_from'.*neither a folder", "windows"
    assert len(lines) == len(said) and not any("\n" in line for line in lines)
    assert not [s for s, line in zip(said, lines) if not re.search(s, line)], lines


def test_a_sick_run_stops_and_is_closed(train_rm, main, tmp_path, caplog):
    """Weights that are NaN: it gives up in one line, what it wrote is whole, nothing is left open."""
    closed, handler = [], signal.getsignal(signal.SIGTERM)
    real = run_lib.interfaces.initial_weights
    initial = lambda *args: jax.tree.map(lambda x: x * float("nan"), real(*args))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_lib.interfaces, "initial_weights", initial)
        for owner in (run_lib.metrics.Writer, checkpoint.Checkpoints):
            close = lambda self, real=owner.close: (closed.append(type(self).__name__), real(self))
            patch.setattr(owner, "close", close)
        assert main(tmp_path, max_bad_steps=2, **{"eval.batches": 0}) == 1
    (line,) = [r.getMessage() for r in caplog.records if r.levelname == "ERROR"]
    assert "2 such steps in a row" in line and "toy/" in line and "\n" not in line
    assert closed == ["Writer", "Checkpoints"] and not (tmp_path / "finished").exists()
    assert [row["bad_steps"] for row in metrics.read(tmp_path / "metrics.jsonl")] == [1]
    assert signal.getsignal(signal.SIGTERM) == handler
