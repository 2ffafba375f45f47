"""The verifier goes the whole way of a judge: scored, served, best of N, evaluated, filtered by, a reward of RL; with
an edit's own principles."""

import json

import jax
import numpy as np
import pytest

from edit_rl_jax.cli import judge_flags
from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord, PreferenceRecord
from edit_rl_jax.data.tfds_builder import write_dataset
from edit_rl_jax.editworld import dataset
from edit_rl_jax.evals.filtering import scoring
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.edit_rrm.options import Options
from edit_rl_jax.rewards.serving.client import TOKEN, RewardClient
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import prompts
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import metrics, on_mesh
from scripts import best_of_n, eval_rm, score, train_grpo
from tests.rewards.edit_rrm import chain
from tests.rl import tiny_editor
from tests.system.test_editreward import compiled_once  # noqa: F401
from tests.system.test_toy_judge import served

MESH = make_mesh({"data": 1}, jax.devices()[:1])
PRINCIPLES = [{"question": "extra none", "category": "Follow"}, {"question": "blur none", "category": "Quality"}]
EXTRAS = {"principles": PRINCIPLES}
OPTIONS = dict(max_new_tokens=16, rows=2, mode="verify", reward="verdicts", expected=True)
FLAGS = [w for k, v in OPTIONS.items() for w in (f"--{k.replace('_', '-')}", *([] if v is True else [str(v)]))]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return chain.save(tmp_path_factory.mktemp("judge"))


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three files of noise: 0.png is a source."""
    home, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(3):
        (home / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (56, 56, 3), np.uint8)))
    return home


def edits(pictures):
    image = [(pictures / f"{i}.png").read_bytes() for i in range(3)]
    return [Edit(image[0], image[n], "make it red", EXTRAS) for n in (1, 2)]


@pytest.fixture(scope="module")
def judge(model):
    return judges.load(model, options=Options(**OPTIONS))


@pytest.fixture(scope="module")
def judged(judge, pictures):
    found = judge.score(edits(pictures), progress=False)
    assert all(j.valid and set(j.dimensions) == {"score", "verdicts", "follow", "quality"} for j in found)
    assert found[0].overall.value != found[1].overall.value
    return found


def same(lines, judged):
    for line, want in zip(lines, judged, strict=True):
        assert line["valid"] and line["principles_from"] == "edit" and set(line["dimensions"]) == set(want.dimensions)
        np.testing.assert_allclose(line["overall"], want.overall.value, rtol=1e-4)


def test_scored_and_served(model, pictures, judged, tmp_path, monkeypatch):
    made = [{"source": "0.png", "edited": f"{n}.png", "instruction": "make it red", "extras": EXTRAS} for n in (1, 2)]
    (pictures / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in made))
    here, there = tmp_path / "here.jsonl", tmp_path / "there.jsonl"
    words = ["--input", str(pictures / "in.jsonl"), "--output"]
    read = lambda file: [json.loads(x)["scores"] for x in file.read_text().splitlines()]
    assert score.main(["--model", str(model), *FLAGS, *words, str(here)]) == 0
    same(read(here), judged)
    with pytest.raises(SystemExit, match="reward: 'verdicts' -> 'score'"):
        score.main(["--model", str(model), *FLAGS, "--reward", "score", *words, str(here)])
    monkeypatch.setenv(TOKEN, "t")
    with served(monkeypatch, ["--model", str(model), *FLAGS]) as url:
        assert score.main(["--server", url, *words, str(there)]) == 0
        client = RewardClient(url, "t")
        assert client.dimensions() == ("score", "verdicts", "follow", "keep", "quality")
        assert client.settings()["server"]["mode"] == "verify"
    same(read(there), judged)


def test_best_of_n_evaluated_and_filtered_by(model, judge, pictures, judged, tmp_path, monkeypatch):
    line = {"source": "0.png", "instruction": "make it red", "candidates": ["1.png", "2.png"], "extras": EXTRAS}
    (pictures / "c.jsonl").write_text(json.dumps(line) + "\n")
    words = ["--model", str(model), *FLAGS]
    assert best_of_n.main([*words, "--candidates", str(pictures / "c.jsonl"), "--output", str(tmp_path / "best")]) == 0
    best = 1 + int(np.argmax([j.overall.value for j in judged]))
    pick = json.loads((tmp_path / "best/picks.jsonl").read_text())
    assert pick["pick"] == f"{best}.png"
    np.testing.assert_allclose(pick["rewards"], [j.overall.value for j in judged], rtol=1e-4)
    one = {e.edited: e for e in edits(pictures)}
    names = [(pictures / f"{n}.png").read_bytes() for n in (best, 3 - best)]
    record = lambda n, sc: EditRecord(
        f"{n}", one[names[n]].sources[0], names[n], "make it red", "colour", (sc, 25), (sc, 25), meta=dict(EXTRAS)
    )
    drawn = [dataset.Pair(record(0, 25), record(1, 5), "colour", "half", 0)]
    drawn += [dataset.Pair(record(1, 25), record(0, 5), "colour", "half", 0)] * 2
    monkeypatch.setattr(dataset, "pairs", lambda *args: drawn)  # the world's own take a minute
    assert eval_rm.main(["--benchmark", "editworld", *words, "--no-controls", "--output", str(tmp_path / "eval")]) == 0
    found = json.loads((tmp_path / "eval/eval.json").read_text())
    assert found["pair_accuracy"] == pytest.approx(1 / 3) and found["settings"]["reward"] == "verdicts"
    ranked = scoring.ask(judge)([record(0, 25), record(1, 25)])
    assert [j.details["principles_from"] for j in ranked] == ["edit"] * 2
    assert ranked[0].overall.value > ranked[1].overall.value


def test_its_reward_is_fitted_to_pairs(model, judge, tmp_path, capsys):
    """People agree with its verdicts. What was judged is remembered, and the flags give the reward that was fitted."""
    rng, records = np.random.default_rng(0), []
    picture = lambda: encode_png(rng.integers(0, 256, (56, 56, 3), np.uint8))
    for i in range(12):
        source, *images = (picture() for _ in range(3))
        a, b = (
            j.value("verdicts") for j in judge.score([Edit(source, x, "make it red") for x in images], progress=False)
        )
        label = 1 if a > b else -1
        records.append(PreferenceRecord(f"k{i}", source, tuple(images), "make it red", label, group=f"g{i // 2}"))
    write_dataset(tmp_path / "pairs", {"train": records})
    words = ["--model", str(model), "--mode", "verify", "--max-new-tokens", "16", "--rows", "2", "--expected"]
    fit = ["--fit", str(tmp_path / "pairs"), *words, "--output", str(tmp_path / "fit")]
    assert eval_rm.main(fit) == 0
    found = json.loads((tmp_path / "fit/fit.json").read_text())
    assert (found["n_pairs"], found["invalid_pairs"], found["split"]) == (12, 0, "train")
    said = capsys.readouterr().out
    assert "12 pairs, 0 not valid" in said and found["flags"] in said and "fit.json" in said
    remembered = (tmp_path / "fit/cache.jsonl").read_bytes()
    assert eval_rm.main(fit) == 0 and (tmp_path / "fit/cache.jsonl").read_bytes() == remembered
    args = eval_rm.parse(["--benchmark", "editworld", *words, *found["flags"].split(), "--output", "x"])
    weights = {name.lower(): weight for name, weight in judge_flags.options_of(args).weights.items()}
    assert {"score": 0.0} | weights == pytest.approx(found["weights"]) and sum(weights.values()) == pytest.approx(
        1, abs=1e-3
    )
    with pytest.raises(SystemExit):
        eval_rm.main(["--fit", "editworld", "--predictions", "x", "--output", "x"])


def test_a_reward_of_rl(model, pictures, judged, tmp_path):
    """By the name of the judge, with its own options, of prompts that bring their principles: lines or the world's."""
    config = tiny_editor.config("none", data__train="editworld")
    with config.unlocked():
        config.rl.judge = rl_config.default(judge="edit_rrm").rl.judge
        config.rl.judge.update(OPTIONS)
    config.rl.rewards, config.rl.judge.model = (("edit_rrm", 1.0),), str(model)
    rl_config.check(config)
    line = {"source": "0.png", "instruction": "make it red", "extras": EXTRAS}
    (pictures / "p.jsonl").write_text(json.dumps(line) + "\n")
    prompt = prompts.Lines(pictures / "p.jsonl", 56, 56)[0]
    images = np.stack([decode_image((pictures / f"{i}.png").read_bytes()) for i in (1, 2)])
    scores = rewards.make(config, MESH)(rewards.Samples([prompt] * 2, images))
    np.testing.assert_allclose(scores.values, [j.overall.value for j in judged], rtol=1e-3)
    assert scores.valid.all()
    world = prompts.source(config, "train")[0]
    assert {p["category"] for p in world.extras["principles"]} == {"Follow", "Keep", "Quality"}
    (pictures / "p.jsonl").write_text(json.dumps(line | {"extras": 3}) + "\n")
    with pytest.raises(ValueError, match="extras is no object"):
        prompts.Lines(pictures / "p.jsonl", 56, 56)


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_online_rl(model, pictures, tmp_path, monkeypatch):
    editor = tiny_editor.save(tmp_path / "editor")
    lines = [{"source": "0.png", "instruction": f"make it {c}", "extras": EXTRAS} for c in ("red", "blue", "pink")]
    (pictures / "rl.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    words = dict(steps=1, rl__eval_prompts=0, data__train=str(pictures / "rl.jsonl"), rl__judge__model=str(model))
    (tmp_path / "config.py").write_text(f"""from edit_rl_jax.rl.editors.config import default
from tests.rl import tiny_editor
def get_config():
    c = tiny_editor.config({str(editor)!r})
    with c.unlocked():
        c.rl.judge = default(judge="edit_rrm").rl.judge
        c.rl.judge.update({OPTIONS!r})
        c.update_from_flattened_dict({{k.replace("__", "."): v for k, v in {words!r}.items()}})
        c.rl.rewards = (("edit_rrm", 1.0),)
    return c
""")
    one = lambda config, devices=None, real=on_mesh.make_mesh: real(config, devices or jax.devices()[:1])
    monkeypatch.setattr(on_mesh, "make_mesh", one)
    assert train_grpo.main(["--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]) == 0
    (row,) = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert row["samples_invalid"] == 0 and row["reward_group_std"] > 0
