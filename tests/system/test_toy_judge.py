"""A judge from outside goes the whole way without a line in the package: scored, served, evaluated, in RL, planned."""

import contextlib
import json
import threading
import time

import jax
import numpy as np
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.editworld import dataset
from edit_rl_jax.names import ConfigError
from edit_rl_jax.plan import rl as plan_rl
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.serving import server as S
from edit_rl_jax.rewards.serving.client import TOKEN
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import prompts
from edit_rl_jax.sharding import make_mesh
from scripts import best_of_n, eval_rm, score, serve_reward
from tests.rl import tiny_editor
from tests.toys.judge import Options

JUDGE = "tests.toys.judge:Pixels"
MESH = make_mesh({"data": 1}, jax.devices()[:1])


@pytest.fixture
def model(tmp_path):
    home = tmp_path / "model"
    home.mkdir()
    (home / "pixels.json").write_text('{"weight": 0.75}')
    (home / "edit_rl.json").write_text(json.dumps({"objective": JUDGE}))
    return home


@pytest.fixture
def pictures(tmp_path):
    """{name: file}: greys by level, and one red."""
    found = {}
    for name, colour in {"0": (0, 0, 0), "100": (100,) * 3, "50": (50,) * 3, "red": (200, 0, 0)}.items():
        found[name] = tmp_path / f"{name}.png"
        found[name].write_bytes(encode_png(np.full((8, 8, 3), colour, np.uint8)))
    return found


def flags(model, *more):
    return ["--model", str(model), "--judge", JUDGE, *map(str, more)]


def scored(capsys, *words):
    capsys.readouterr()
    status = score.main(list(words))
    return status, json.loads(capsys.readouterr().out)


def test_scored_with_its_own_dimensions_and_flags(model, pictures, tmp_path, capsys):
    both = [str(pictures["0"]), str(pictures["100"])]
    one = ["--edited", str(pictures["50"]), "--instruction", "mix", "--source", *both]
    status, line = scored(capsys, *flags(model, *one))
    assert status == 0 and line["valid"] and line["success"] and line["reasons"] == ["looked at 2"]
    assert line["dimensions"] == {
        "closeness": {"value": 1.0, "spread": 0.0, "scale": 1.0},
        "colour": {"value": 0.0, "spread": None, "scale": 255.0},
    }
    assert (line["overall"], line["scale"], line["words"]) == (0.75, 1.0, "mix")
    assert list(scored(capsys, *flags(model, *one, "--blind"))[1]["dimensions"]) == ["closeness"]
    assert not scored(capsys, *flags(model, "--near", 1.5, *one))[1]["success"]
    with pytest.raises(SystemExit, match="no judge.*--judge mod:Class"):  # a folder does not choose what is imported
        score.main(["--model", str(model), *one])
    edits = [{"source": "0.png", "edited": "50.png", "instruction": "a", "extras": {"asked": "peeked"}}]
    edits += [{"source": ["0.png", "100.png"], "edited": "absent.png", "instruction": "b"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in edits))
    words = flags(model, "--input", tmp_path / "in.jsonl", "--output", tmp_path / "out.jsonl")
    assert score.main(words) == 0 and "2 edits, 1 without a score, mean overall" in capsys.readouterr().out
    first, second = (json.loads(x)["scores"] for x in (tmp_path / "out.jsonl").read_text().splitlines())
    assert first["reasons"] == ["peeked at 1"] and first["dimensions"]["closeness"]["value"] == 1 - 50 / 255
    assert not second["valid"] and "absent.png" in second["problem"]
    assert score.main(words) == 0
    with pytest.raises(SystemExit, match="blind: False -> True"):
        score.main([*words, "--blind"])


@contextlib.contextmanager
def served(monkeypatch, words):
    """The URL of `serve_reward.py`, run in a thread."""
    made = []
    monkeypatch.setattr(S, "server", lambda *a, real=S.server, **k: made.append(real(*a, **k)) or made[0])
    thread = threading.Thread(target=serve_reward.main, args=([*words, "--port", "0"],))
    thread.start()
    while not (made and made[0].started):
        assert thread.is_alive()
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{made[0].servers[0].sockets[0].getsockname()[1]}"
    finally:
        made[0].should_exit = True
        thread.join(20)
        assert not thread.is_alive()


def test_served_and_asked(model, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "t")
    line = {"source": "0.png", "edited": "red.png", "instruction": "redder"}
    (tmp_path / "in.jsonl").write_text(json.dumps(line) + "\n")
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    assert score.main(flags(model, "--input", tmp_path / "in.jsonl", "--output", here)) == 0
    with served(monkeypatch, flags(model)) as url:
        assert score.main(["--server", url, "--input", str(tmp_path / "in.jsonl"), "--output", str(there)]) == 0
        client = rewards.RewardClient(url, "t")
        assert client.dimensions() == ("closeness", "colour") and client.settings()["server"]["weight"] == 0.75
        (part,) = client.score([Edit(pictures["0"].read_bytes(), pictures["red"].read_bytes(), "x")], only=["colour"])
        assert part.value("colour") == 200 and part.value("closeness") is None and part.overall is None
    assert there.read_text() == here.read_text()
    assert Judgement.from_json(json.loads(here.read_text())["scores"]).dimensions["colour"].share == 200 / 255


def test_evaluated_and_best_of_n(model, pictures, tmp_path, capsys, monkeypatch):
    image = {name: file.read_bytes() for name, file in pictures.items()}
    record = lambda edited, sc: EditRecord(edited, image["0"], image[edited], f"as {sc}", "colour", sc, (25, 25))
    drawn = [dataset.Pair(record("50", (25, 25)), record("100", (n, 25)), "colour", "half", 0) for n in (2, 5)]
    monkeypatch.setattr(dataset, "pairs", lambda *args: drawn)  # the world's own take a minute
    words = flags(model, "--output", tmp_path / "eval")
    assert eval_rm.main(["--benchmark", "editworld", *words, "--untrained", str(model)]) == 0
    found = json.loads((tmp_path / "eval/eval.json").read_text())
    assert found["pair_accuracy"] == 1 and found["gain"] == 0 and found["settings"]["weight"] == 0.75
    assert "sc_pair_accuracy" not in found and "instruction shuffled (overall)" in found["controls"]
    assert found["controls"]["instruction shuffled (overall)"]["accuracy"] == found["pair_accuracy"]  # it cannot read
    assert "closeness" not in capsys.readouterr().out and (tmp_path / "eval/report.html").exists()
    line = {"source": ["0.png", "100.png"], "instruction": "mix", "candidates": ["0.png", "50.png", "100.png"]}
    (tmp_path / "c.jsonl").write_text(json.dumps(line) + "\n")
    words = flags(model, "--candidates", tmp_path / "c.jsonl", "--output", tmp_path / "best")
    assert best_of_n.main(words) == best_of_n.main(words) == 0  # the second time from its cache
    assert json.loads((tmp_path / "best/picks.jsonl").read_text())["pick"] == "50.png"


def test_a_reward_of_rl_and_its_plan(model):
    config = tiny_editor.config("none", rl__size=(84, 84))
    config.rl.rewards, config.rl.judge.model, config.rl.success_bonus = ((JUDGE, 1.0),), str(model), 1.0
    source = prompts.source(config, "train")
    asked = [source[i] for i in range(2)]
    images = np.stack([asked[0].source, 255 - asked[1].source])
    reward = rewards.make(config, MESH)
    scores = reward(rewards.Samples(asked, images))
    edits = [Edit(p.source, i, "") for p, i in zip(asked, images)]
    judged = [j.overall.share for j in judges.load(model, JUDGE).score(edits)]
    np.testing.assert_allclose(scores.values, [(judged[0] + 1) / 2, judged[1] / 2], rtol=1e-6)
    assert scores.valid.all()
    assert plan_rl.judge_architecture(config) is None  # it needs no device
    config.rl.rewards = (("judge", 1.0),)
    for ask in (lambda: rewards.make(config, MESH), lambda: plan_rl.judge_architecture(config)):
        with pytest.raises((ConfigError, ValueError), match="is no judge"):
            ask()


def test_its_options_are_keys_of_rl(model):
    """In the place of EditScore's, where the config is made for it; a config made for another judge still takes it."""
    config = rl_config.default(judge=JUDGE)
    assert set(config.rl.judge) == {"model", "base", "server", "tensor", "near", "blind"}
    config.steps, config.model.init_from, config.rl.judge.model = 1, "somewhere", str(model)
    config.rl.judge.blind = True
    rl_config.check(config)
    assert rewards.make(config, MESH)  # which reads them
    config.rl.judge.near = 0.0  # a value like any other
    assert rewards.JudgeReward(config, MESH, JUDGE).judge.options == Options(near=0.0, blind=True)
    with config.unlocked():
        config.rl.judge.passes = 4
    with pytest.raises(ConfigError, match="no config key 'rl.judge.passes'"):
        rl_config.check(config)
    config = rl_config.default()
    config.steps, config.model.init_from, config.rl.rewards = 1, "somewhere", ((JUDGE, 1.0),)
    rl_config.check(config)
