"""The loop's parts: which rows a process holds, whose the signal is, metrics of a run that moved between machines."""

import json
import os
import signal
import sys
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from etils import epath

from edit_rl_jax import chips, sharding
from edit_rl_jax.data import principles
from edit_rl_jax.names import ConfigError
from edit_rl_jax.training import feed, metrics, session, terminal, workdir
from tests.training import micro


def test_rows_that_do_not_lie_together_are_named_rightly():
    """Four hosts of a 4x4 slice hold squares of chips: their rows are not a contiguous part of the batch."""
    mesh = sharding.make_mesh({"fsdp": 16}, chips.describe("v5e:4x4")[1])
    held = [feed.local_rows(mesh, 32, process) for process in range(4)]
    assert sorted(sum(held, [])) == list(range(32)) and all(len(rows) == 8 for rows in held)
    assert any(rows != list(range(rows[0], rows[0] + 8)) for rows in held)
    for process, rows in enumerate(held):
        sums, keys = np.zeros((1, 32)), [[[f"p{process}-{i}"] for i in range(8)]]
        sums[0, rows[5]] = np.nan
        line = session.Guard(limit=9).check(1, False, sums, keys, rows)
        assert f"row {rows[5]} (p{process}-5)" in line
        others = session.Guard(limit=9).check(1, False, sums, keys, held[process - 1])
        assert "of another process" in others


def test_the_signal_is_given_back():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("outside"))
    try:
        interruption = terminal.Interruption()
        os.kill(os.getpid(), signal.SIGTERM)
        assert interruption.now(1) and not heard
        interruption.restore()
        interruption.restore()
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["outside"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_trace_stops_only_what_it_started(tmp_path):
    """Resumed behind its steps it does nothing; in the midst of them it takes the rest; an early end writes it."""
    late, rest = session.Trace("2:3", tmp_path / "late"), session.Trace("2:9", tmp_path / "rest")
    for trace, steps in ((late, (4, 5)), (rest, (7, 8))):
        for step in steps:
            trace.before(step)
            trace.after(step, jax.jit(lambda x: x + 1)(1.0))
        trace.stop()
        trace.stop()
    assert not (tmp_path / "late").exists() and list((tmp_path / "rest").rglob("*.xplane.pb"))


def test_remote_metrics_win_over_those_of_a_machine_left_behind(tmp_path):
    config, remote = micro.config(log__tensorboard=False), tmp_path / "remote"
    remote.mkdir()
    here, there = ([{"step": s, "loss": loss} for s in range(1, n + 1)] for n, loss in ((6, 1.0), (9, 2.0)))
    write = lambda folder, rows: (folder / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for folder, local in ((tmp_path / "fresh", None), (tmp_path / "left behind", here)):
        if local:
            folder.mkdir()
            write(folder, local)
        write(remote, there)
        metrics.Writer(folder, 8, config=config, mirror=epath.Path(remote)).close()
        assert metrics.read(folder / "metrics.jsonl") == there[:8] == metrics.read(remote / "metrics.jsonl")


def test_runs_have_ids_of_their_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demo = [
        metrics.run_id(tmp_path / "a/demo", "rm"),
        metrics.run_id(tmp_path / "b/demo", "rm"),
        metrics.run_id(tmp_path / "a/demo", "base"),
        metrics.run_id(epath.Path("gs://bucket/demo"), "rm"),
    ]
    assert len(set(demo)) == 4 and all(identity.startswith("demo-") for identity in demo)
    assert metrics.run_id(epath.Path("a/../a/demo"), "rm") == demo[0] == metrics.run_id(tmp_path / "a/demo", "rm")


def test_wandb_goes_on_under_its_id_or_says_what_is_missing(tmp_path, monkeypatch):
    config = micro.config(log__tensorboard=False, log__wandb=True, name="rm")
    monkeypatch.setitem(sys.modules, "wandb", None)  # as if it were not installed
    with pytest.raises(ConfigError, match=r"log.wandb.*\[wandb\]"):
        metrics.Writer(tmp_path, 0, config=config)
    asked = []
    run = SimpleNamespace(log=lambda *_, **__: None, finish=lambda: None)
    stub = SimpleNamespace(init=lambda **settings: asked.append(settings) or run)
    monkeypatch.setitem(sys.modules, "wandb", stub)
    for step in (0, 4):
        metrics.Writer(tmp_path, step, config=config).close()
    assert asked[0] == asked[1] and (asked[0]["id"], asked[0]["resume"]) == (metrics.run_id(tmp_path, "rm"), "allow")


def test_a_moved_checkout_and_a_fresh_machine_continue_a_run(tmp_path):
    """A packaged base is recorded by its name in the package; config.json comes from the remote folder."""
    mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    folder, remote = tmp_path / "local", epath.Path(tmp_path / "remote")

    def about(base, name=""):
        config = micro.config(model__config="", model__init_from=base, name=name)
        found = workdir.describe(config, mesh, steps=4, data_hash="d", base_hash="b", base_revision="r")
        return json.loads(json.dumps(found))

    first = about("/first/checkout/edit_rl_jax/assets/tiny_vl")
    assert first["config"]["model"]["init_from"] == "edit_rl_jax/assets/tiny_vl" and first["base_revision"] == "r"
    workdir.enter(folder, None, first)
    (folder / "checkpoints/4").mkdir(parents=True)
    workdir.enter(folder, None, about("/moved/edit_rl_jax/assets/tiny_vl", name="another"))
    assert json.loads((folder / "config.json").read_text()) == first
    with pytest.raises(ConfigError, match="init_from: 'edit_rl_jax/assets/tiny_vl' -> '/my/tiny_vl'"):
        workdir.enter(folder, None, about("/my/tiny_vl"))
    absolute = json.loads(json.dumps(first))  # as it was recorded in an earlier version
    absolute["config"]["model"]["init_from"] = "/first/checkout/edit_rl_jax/assets/tiny_vl"
    (remote / "checkpoints/4").mkdir(parents=True)
    (remote / "config.json").write_text(json.dumps(absolute))
    workdir.enter(tmp_path / "fresh", remote, about("/moved/edit_rl_jax/assets/tiny_vl"))
    assert json.loads((tmp_path / "fresh/config.json").read_text()) == absolute


def test_a_folder_without_a_checkpoint_takes_the_corrected_command(tmp_path):
    mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    about = lambda **changes: workdir.describe(micro.config(**changes), mesh, steps=4, data_hash="d", base_hash="b")
    workdir.enter(tmp_path, None, about(optim__lr=0.5))
    (tmp_path / "checkpoints/7.orbax-checkpoint-tmp").mkdir(parents=True)  # a save that was never complete
    workdir.enter(tmp_path, None, about(optim__lr=0.25))
    assert json.loads((tmp_path / "config.json").read_text())["config"]["optim"]["lr"] == 0.25
    (tmp_path / "checkpoints/8").mkdir()
    with pytest.raises(ConfigError, match="optim.lr: 0.25 -> 0.125"):
        workdir.enter(tmp_path, None, about(optim__lr=0.125))
    sets = tmp_path / "sets.jsonl"
    for text, message in (("a", "principles_hash: None -> '"), ("b", "principles_hash: '.* -> '")):
        sets.write_text(text)
        asked = about(optim__lr=0.25) | principles.digest(str(sets))
        with pytest.raises(ConfigError, match=message):  # the same file of principles, with another content
            workdir.enter(tmp_path, None, asked)
        (tmp_path / "config.json").write_text(json.dumps(asked))
    assert principles.digest("") == {}
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="--workdir.*file"):
        workdir.enter(tmp_path / "file", None, about())
