"""A Qwen3-VL goes the whole way of a judge: trained whole, with an adapter, with heads; scored, served, planned."""

import json

import jax
import numpy as np
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import peft
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.editscore.options import Options
from edit_rl_jax.rewards.serving.client import TOKEN
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import metrics, on_mesh
from edit_rl_jax.vlm import family, trainable
from scripts import score
from tests.system.test_toy_judge import served
from tests.system.test_train_rm import ROOT, train_rm  # noqa: F401

pytestmark = [pytest.mark.slow, pytest.mark.standard_promotion]
BASE = json.loads((ROOT / "edit_rl_jax/assets/tiny_vl/config.json").read_text())
BASE |= BASE["text_config"]
TOKENS = {k: v for k, v in BASE.items() if k.endswith("_id")}
TEXT = {
    "hidden_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "intermediate_size": 64,
    "vocab_size": BASE["vocab_size"] + 64,  # free rows for the reward token
    "rope_theta": 1e4,
    "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [4, 2, 2]},
    "max_position_embeddings": 2048,
}
VISION = {"depth": 3, "hidden_size": 32, "intermediate_size": 48, "num_heads": 2, "out_hidden_size": 48}
VISION |= {"patch_size": 14, "num_position_embeddings": 64, "deepstack_visual_indexes": [0, 1]}
MICRO = {"model_type": "qwen3_vl", "text_config": TEXT, "vision_config": VISION, **TOKENS, "tie_word_embeddings": True}


@pytest.fixture(scope="module")
def train(train_rm, tmp_path_factory):  # noqa: F811
    """Runs two steps of the script on a tiny config; the workdir."""
    one_device = lambda config, real=on_mesh.make_mesh: real(config, jax.devices()[:1])

    def run(config, **changes):
        folder = tmp_path_factory.mktemp("run")
        quick = {"steps": 2, "eval.every": 0, "eval.pairs": 0, "eval.batches": 0, "optim.warmup": 1, "log.every": 1}
        quick |= {"data.size": 100, "log.tensorboard": False, "compilation_cache": "", "optim.schedule": "constant"}
        words = [f"--config.{k}={v}" for k, v in (quick | changes).items()]
        with pytest.MonkeyPatch.context() as patch, jax.numpy_dtype_promotion("standard"):
            patch.setattr(on_mesh, "make_mesh", one_device)
            train_rm.main(["--config", str(ROOT / "configs" / config), *words, "--workdir", str(folder)])
        losses = [row["loss"] for row in metrics.read(folder / "metrics.jsonl") if "loss" in row]
        assert len(losses) == 2 and np.isfinite(losses).all()
        return folder / "model"

    return run


@pytest.fixture(scope="module")
def base(train):
    """Trained whole from random weights."""
    changes = {"model.init_from": "", "model.config": json.dumps(MICRO), "model.tokenizer": "editworld"}
    return train("rm_tiny.py", **{"model.kind": "qwen3_vl", "model.trainable": "full", "rows": 2, **changes})


@pytest.fixture(scope="module")
def adapter(train, base):
    """An adapter to it, of the decoder and the deepstack mergers."""
    changes = {"model.init_from": base, "model.lora.deepstack": True, "model.lora.rank": 4}
    return train("rm_tiny.py", **{"rows": 2, **changes})


@pytest.fixture(scope="module")
def pictures():
    rng = np.random.default_rng(0)
    return [encode_png(rng.integers(0, 256, (84, 84, 3), np.uint8)) for _ in range(3)]


def test_exports_say_what_they_are(base, adapter):
    assert json.loads((base / "config.json").read_text())["model_type"] == "qwen3_vl"
    processor = json.loads((adapter / "preprocessor_config.json").read_text())
    assert (processor["processor_class"], processor["patch_size"]) == ("Qwen3VLProcessor", 14)
    found = peft.read_adapter(adapter, family.named("qwen3_vl").NAMING)
    deep = [m for m in found.layers if "deepstack" in m]
    assert len(found.layers) == 3 * 7 + 2 * 2 and len(deep) == 4


@pytest.mark.parametrize("mode", [{"constrained": True}, {"expected": "empty"}], ids=str)
def test_it_scores(adapter, pictures, mode):
    """Every edit gets scores in the modes in which random weights can give them; images are encoded once."""
    judge = judges.load(adapter, options=Options(max_new_tokens=64, rows=4, **mode))
    edits = [Edit(pictures[0], x, "make it red") for x in pictures[1:]]
    judged = judge.score(edits, progress=False)
    assert all(j.valid for j in judged), [j.problem for j in judged]
    assert judge.engine.counters.images == 3
    assert isinstance(judge.engine._features, dict) and judge.engine._features["deep"].shape[1:] == (2, 48)


@pytest.mark.slow
def test_served_and_asked(adapter, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv(TOKEN, "t")
    for i, picture in enumerate(pictures):
        (tmp_path / f"{i}.png").write_bytes(picture)
    (tmp_path / "in.jsonl").write_text(json.dumps({"source": "0.png", "edited": "1.png", "instruction": "red"}) + "\n")
    flags = ["--model", str(adapter), "--constrained", "--max-new-tokens", "64", "--rows", "2"]
    files = lambda name: ["--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / name)]
    assert score.main([*flags, *files("here.jsonl")]) == 0
    with served(monkeypatch, flags) as url:
        assert score.main(["--server", url, *files("there.jsonl")]) == 0
    here, there = (json.loads((tmp_path / f"{name}.jsonl").read_text()) for name in ("here", "there"))
    assert here == there and not here.get("problem")


@pytest.mark.slow
def test_it_has_heads(train, base, pictures):
    """EditReward on it: trained on preferences, exported, read back."""
    model = train("editreward_tiny.py", **{"model.init_from": base, "model.lora.rank": 4, "rows": 2})
    judged = judges.load(model).score([Edit(pictures[0], x, "make it red") for x in pictures[1:]], progress=False)
    assert all(j.valid for j in judged) and judged[0].dimensions != judged[1].dimensions


def test_parts_that_a_family_does_not_have_are_refused():
    config = config_lib.load(ROOT / "configs/rm_tiny.py", {"model.lora.deepstack": "True"})
    with pytest.raises(ConfigError, match="model.lora.deepstack': qwen2_5_vl has no such part"):
        trainable.make(config, trainable.model_config(config), make_mesh({"fsdp": 1}), jax.numpy.float32)
