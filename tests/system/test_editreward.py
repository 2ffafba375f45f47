"""EditReward goes the whole way of a judge: scored, served, best of N, evaluated, a reward of RL."""

import json
import shutil
import urllib.request

import jax
import numpy as np
import pytest
from flax import nnx
from jax.experimental.compilation_cache import compilation_cache

from edit_rl_jax import chips
from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, EditRecord
from edit_rl_jax.editworld import dataset
from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.plan import rl as plan_rl
from edit_rl_jax.plan import scoring
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.editreward.judge import EditReward
from edit_rl_jax.rewards.editreward.options import Options
from edit_rl_jax.rewards.editreward.prompts import TINY
from edit_rl_jax.rewards.serving.client import TOKEN, RewardClient
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import prompts
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import metrics, on_mesh
from scripts import best_of_n, eval_rm, score, train_grpo
from tests.rewards.editreward import reference
from tests.rl import tiny_editor
from tests.system.test_toy_judge import served

FOLLOWING, QUALITY = PREFERENCE_DIMENSIONS
MESH = make_mesh({"data": 1}, jax.devices()[:1])


@pytest.fixture(scope="module", autouse=True)
def compiled_once(tmp_path_factory):
    """Every script loads its own judge: the later ones find its programs compiled."""
    names = ("jax_compilation_cache_dir", "jax_persistent_cache_min_compile_time_secs")
    old = [getattr(jax.config, name) for name in names]
    for name, value in zip(names, (str(tmp_path_factory.mktemp("cache")), 0.0)):
        jax.config.update(name, value)
    compilation_cache.reset_cache()
    yield
    for name, value in zip(names, old):
        jax.config.update(name, value)
    compilation_cache.reset_cache()


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A folder as an export leaves it: the released layout, with what this project stores beside it."""
    home = tmp_path_factory.mktemp("judge") / "model"
    shutil.copytree(reference.folder("untied"), home)
    stored = {"objective": "editreward", "prompts": TINY.to_json(), "images": reference.PIXELS}
    model_files.stamp(home, stored | {"heads": {"fusion": "mean", "positions": "mrope"}})
    return home


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Five files of noise: 0.png is a source."""
    home, rng = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for i in range(5):
        (home / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (84, 84, 3), np.uint8)))
    return home


@pytest.fixture(scope="module")
def judged(model, pictures):
    """What the judge says of 1.png and 2.png, asked directly."""
    edits = [Edit(*(((pictures / f"{i}.png").read_bytes()) for i in (0, n)), "make it red") for n in (1, 2)]
    return judges.load(model).score(edits, progress=False)


def lines(pictures):
    made = [{"source": "0.png", "edited": f"{n}.png", "instruction": "make it red"} for n in (1, 2)]
    (pictures / "in.jsonl").write_text("".join(json.dumps(x) + "\n" for x in made))
    return str(pictures / "in.jsonl")


def read(file):
    return [json.loads(x)["scores"] for x in file.read_text().splitlines()]


def test_scored(model, pictures, judged, tmp_path):
    words = ["--model", str(model), "--input", lines(pictures)]
    assert score.main([*words, "--output", str(tmp_path / "out.jsonl")]) == 0
    for line, want in zip(read(tmp_path / "out.jsonl"), judged):
        assert line["valid"] and list(line["dimensions"]) == [FOLLOWING, QUALITY]
        np.testing.assert_allclose(line["overall"], want.overall.value, rtol=1e-5)
        np.testing.assert_allclose(line["overall_std"], want.overall.spread, rtol=1e-5)
        assert all(d["spread"] > 0 and d["scale"] == 1 for d in line["dimensions"].values())
    assert score.main([*words, "--output", str(tmp_path / "sum.jsonl"), "--fusion", "sum"]) == 0
    for line in read(tmp_path / "sum.jsonl"):
        np.testing.assert_allclose(line["overall"], sum(d["value"] for d in line["dimensions"].values()), rtol=1e-6)
    with pytest.raises(SystemExit, match="fusion: 'mean' -> 'sum'"):
        score.main([*words, "--output", str(tmp_path / "out.jsonl"), "--fusion", "sum"])
    there = ["--judge", "editreward", "--endpoint", "http://127.0.0.1:9/v1", "--endpoint-model", "m", *words[2:]]
    with pytest.raises(SystemExit, match="--judge editreward wants --model"):
        score.main([*there, "--output", str(tmp_path / "there.jsonl")])


def test_released_weights_want_to_be_told_their_prompts(model, tmp_path):
    """They say nothing of themselves; the rest is what they were trained with."""
    with pytest.raises(WeightsError, match="no prompts are stored.*upstream:FOLDER"):
        judges.load(reference.folder("untied"), "editreward")
    judge = judges.load(reference.folder("untied"), "editreward", Options(prompts="tiny"))
    assert (judge.fusion, judge.positions) == ("mean", "1d")
    assert judge.images.min_pixels == judge.images.max_pixels == 448 * 448
    assert judge.settings()["weights_sha256"] and judges.load(model).settings()["positions"] == "mrope"
    with pytest.raises(WeightsError, match="is not the judge 'editscore'"):
        judges.load(model, "editscore")
    broken = shutil.copytree(model, tmp_path / "broken")
    stored = json.loads((broken / "edit_rl.json").read_text())
    model_files.stamp(broken, {k: v for k, v in stored.items() if "sha256" not in k} | {"heads": {"fusion": "median"}})
    with pytest.raises(WeightsError, match=r"edit_rl\.json: fusion is one of"):
        judges.load(broken)


def test_served_with_its_page(model, pictures, judged, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "t")
    with served(monkeypatch, ["--model", str(model)]) as url:
        words = ["--server", url, "--input", lines(pictures), "--output", str(tmp_path / "there.jsonl")]
        assert score.main(words) == 0
        client = RewardClient(url, "t")
        assert client.dimensions() == PREFERENCE_DIMENSIONS and client.settings()["server"]["fusion"] == "mean"
        edit = Edit((pictures / "0.png").read_bytes(), (pictures / "1.png").read_bytes(), "make it red")
        (part,) = client.score([edit], only=[QUALITY])
        assert list(part.dimensions) == [QUALITY] and part.overall is None and part.valid
        with urllib.request.urlopen(url + "/") as page:
            assert b"Instruction" in page.read()
    for line, want in zip(read(tmp_path / "there.jsonl"), judged):
        np.testing.assert_allclose(line["overall"], want.overall.value, rtol=1e-5)


def test_best_of_n_and_evaluated(model, pictures, judged, tmp_path, monkeypatch):
    line = {"source": "0.png", "instruction": "make it red", "candidates": ["1.png", "2.png"]}
    (pictures / "c.jsonl").write_text(json.dumps(line) + "\n")
    words = ["--model", str(model), "--candidates", str(pictures / "c.jsonl"), "--output", str(tmp_path / "best")]
    assert best_of_n.main(words) == 0
    best = 1 + int(np.argmax([j.overall.value for j in judged]))
    assert json.loads((tmp_path / "best/picks.jsonl").read_text())["pick"] == f"{best}.png"
    image = {i: (pictures / f"{i}.png").read_bytes() for i in range(5)}
    record = lambda n, sc: EditRecord(f"{n}", image[0], image[n], "make it red", "colour", (sc, 25), (sc, 25))
    other = 3 - best
    drawn = [dataset.Pair(record(best, 25), record(other, 5), "colour", "half", 0)]
    drawn += [dataset.Pair(record(other, 25), record(best, 5), "colour", "half", 0)] * 2
    monkeypatch.setattr(dataset, "pairs", lambda *args: drawn)  # the world's own take a minute
    words = ["--benchmark", "editworld", "--model", str(model), "--output", str(tmp_path / "eval")]
    assert eval_rm.main(words) == 0
    found = json.loads((tmp_path / "eval/eval.json").read_text())
    assert found["pair_accuracy"] == pytest.approx(1 / 3) and found["settings"]["positions"] == "mrope"


def test_a_reward_of_rl(model, pictures, judged):
    """The overall figure as it is; a judge without one gives no reward."""
    config = tiny_editor.config("none", rl__rewards=(("editreward", 1.0),), rl__judge__model=str(model))
    prompt = prompts.Prompt("", decode_image((pictures / "0.png").read_bytes()), "make it red")
    images = np.stack([decode_image((pictures / f"{i}.png").read_bytes()) for i in (1, 2)])
    scores = rewards.make(config, MESH)(rewards.Samples([prompt] * 2, images))
    np.testing.assert_allclose(scores.values, [j.overall.value for j in judged], rtol=1e-4)
    assert scores.valid.all()


def test_its_scoring_is_planned(model):
    """One prefill and one reading, of the network with heads; a judge that writes is planned as before."""
    chip, devices = chips.describe("v5e:2x2")
    engine = scoring.describe(EditReward.architecture(str(model)), chip, devices, judge=EditReward)
    assert engine.readout is not None and any("rm_heads" in str(p) for p, _ in nnx.to_flat_state(engine.state))
    assert [job.name for job in scoring.jobs(engine, chip, 8)] == ["prefill", "read"]
    config = tiny_editor.config("none", rl__rewards=(("editreward", 1.0),), rl__judge__model=str(model))
    assert plan_rl.judge_architecture(config) == engine.cfg


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_online_rl(model, tmp_path, monkeypatch):
    editor = tiny_editor.save(tmp_path / "editor")
    words = dict(steps=1, rl__eval_prompts=0, rl__rewards=(("editreward", 1.0),), rl__judge__model=str(model))
    (tmp_path / "config.py").write_text(f"""from tests.rl import tiny_editor
def get_config():
    return tiny_editor.config({str(editor)!r}, **{words!r})
""")
    one = lambda config, devices=None, real=on_mesh.make_mesh: real(config, devices or jax.devices()[:1])
    monkeypatch.setattr(on_mesh, "make_mesh", one)
    assert train_grpo.main(["--config", str(tmp_path / "config.py"), "--workdir", str(tmp_path / "run")]) == 0
    (row,) = metrics.read(tmp_path / "run" / "metrics.jsonl")
    assert row["samples_invalid"] == 0 and row["reward_group_std"] > 0
