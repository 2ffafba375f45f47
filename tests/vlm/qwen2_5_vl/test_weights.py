"""Loading and saving weights: both key styles, strictness, shardings, published shapes, peak memory."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx

from edit_rl_jax import sharding
from edit_rl_jax.vlm.qwen2_5_vl import sizes, weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import LoRAConfig, Qwen25VL
from edit_rl_jax.vlm.qwen2_5_vl.weights import WeightsError
from tests.parity import tiny

TOTALS = {"3B": 3_754_622_976, "7B": 8_292_166_656, "32B": 33_452_718_336, "72B": 73_410_777_344}
UP = "model.layers.0.mlp.up_proj.weight"
EMBED = "model.embed_tokens.weight"


def abstract(cfg, **options):
    return nnx.state(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), **options)))


@pytest.fixture(scope="module", params=["tied_gqa", "untied_mqa"])
def saved(request, tmp_path_factory):
    """(torch model, its folder in shards of 100 KB)."""
    model, folder = tiny.torch_model(request.param), tmp_path_factory.mktemp("saved")
    model.save_pretrained(folder, max_shard_size="100KB")
    return model, folder


@pytest.fixture
def single(saved, tmp_path):
    """(config, function that writes edited tensors of the tied or untied model as one hub-style file, folder)."""
    model, folder = saved
    shutil.copy(folder / "config.json", tmp_path)
    names = {weights.hub_name(k): v for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        del names["lm_head.weight"]

    def write(drop=(), **changed):
        kept = {k: v.clone() for k, v in names.items() if k not in drop} | changed
        safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return weights.load(tmp_path, abstract(Config.from_hf(tmp_path)))

    return model, write, tmp_path


def assert_same(a, b):
    a, b = weights.flatten(a), weights.flatten(b)
    assert a[0] == b[0]
    for path, x, y in zip(a[0], a[1], b[1]):
        np.testing.assert_array_equal(np.asarray(x.get_value()), np.asarray(y.get_value()), err_msg=".".join(path))


def test_both_key_styles_sharded_or_single_are_the_same_weights(saved, single):
    model, folder = saved
    _, write, other = single
    state = weights.load(folder, abstract(Config.from_hf(folder)))
    assert_same(state, write())
    v5 = {k: v.clone() for k, v in model.state_dict().items()}  # holds lm_head.weight also when tied
    safetensors.torch.save_file(v5, other / "model.safetensors")
    assert_same(state, weights.load(other, abstract(Config.from_hf(other))))


@pytest.mark.parametrize("dtype, size", [(None, 10**9), (jnp.bfloat16, 60_000)])
def test_transformers_reads_what_we_save(saved, tmp_path, dtype, size):
    model, folder = saved
    cfg = Config.from_hf(folder)
    (folder / "tokenizer.json").write_text("{}")
    state = weights.load(folder, abstract(cfg))
    weights.save(state, cfg, tmp_path, dtype=dtype, max_shard_bytes=size, files_from=folder)
    assert (tmp_path / "tokenizer.json").exists()
    assert (tmp_path / weights.INDEX).exists() == (size < 10**9)
    assert Config.from_hf(tmp_path) == cfg
    load = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained
    again, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    kind = torch.float32 if dtype is None else torch.bfloat16
    theirs = model.state_dict()
    for name, value in again.state_dict().items():
        assert torch.equal(value, theirs[name].to(kind)), name
    weights.save(state, cfg, tmp_path)  # over a sharded save: nothing stale is left behind
    assert_same(state, weights.load(tmp_path, abstract(cfg)))


@pytest.mark.parametrize("mesh", [{"fsdp": 4, "tensor": 2}, {"fsdp": 8}])
def test_straight_into_shards(saved, mesh):
    _, folder = saved
    cfg = Config.from_hf(folder)
    if cfg.vision.num_heads % mesh.get("tensor", 1):
        mesh = {"fsdp": 2}
    state = abstract(cfg, dtype=jnp.bfloat16)
    one = weights.load(folder, state)
    places = sharding.shardings(state, sharding.make_mesh(mesh))
    many = weights.load(folder, state, places)
    assert_same(one, many)
    for v, place in zip(weights.flatten(many)[1], weights.placements(weights.flatten(state)[1], places)):
        assert v.get_value().sharding == place and v.dtype == jnp.bfloat16


def test_adapters_are_left_alone_and_refused_in_a_save(saved, tmp_path):
    _, folder = saved
    cfg = Config.from_hf(folder)
    state = weights.load(folder, abstract(cfg, lora=LoRAConfig(rank=2)))
    kinds = {path[-1]: type(v.get_value()) for path, v in zip(*weights.flatten(state)[:2])}
    assert kinds["lora_a"] is jax.ShapeDtypeStruct and issubclass(kinds["kernel"], jax.Array)
    with pytest.raises(WeightsError, match="self_attn.q_proj.lora_a"):
        weights.save(state, cfg, tmp_path)


def test_a_missing_tensor_is_named(single):
    with pytest.raises(WeightsError, match="missing: model.language_model.layers.0.mlp.up_proj.weight$"):
        single[1](drop=[UP])


def test_an_unknown_tensor_is_named(single):
    with pytest.raises(WeightsError, match="unknown: model.layers.7.mlp.up_proj.weight$"):
        single[1](**{"model.layers.7.mlp.up_proj.weight": torch.zeros(2)})


def test_a_doubled_tensor_is_named(single):
    twice = {weights.canonical(UP): torch.zeros(2)}
    with pytest.raises(WeightsError, match="doubled: .*layers.0.mlp.up_proj.weight"):
        single[1](**twice)


def test_a_misshapen_tensor_is_named(single):
    model, write, _ = single
    value = model.state_dict()[weights.canonical(UP)]
    with pytest.raises(
        WeightsError, match=r"misshapen: model.layers.0.mlp.up_proj.weight \(\d+, \d+\), not \(\d+, \d+\)"
    ):
        write(**{UP: value.T.contiguous()})


def test_a_head_that_contradicts_the_tie_or_is_absent(single):
    model, write, _ = single
    if model.config.tie_word_embeddings:
        with pytest.raises(WeightsError, match="lm_head.weight differs from the embedding"):
            write(**{"lm_head.weight": model.state_dict()["lm_head.weight"] + 1})
    else:
        with pytest.raises(WeightsError, match="missing: lm_head.weight"):
            write(drop=["lm_head.weight"])


def damaged(folder: Path, how: str) -> None:
    shards = sorted(folder.glob("*.safetensors"))
    index = json.loads((folder / weights.INDEX).read_text())
    if how == "truncated":
        shards[0].write_bytes(shards[0].read_bytes()[:-8])
    elif how == "gone":
        shards[0].unlink()
    elif how == "not in the index":
        index["weight_map"].pop(EMBED)
    elif how == "not in its shard":
        index["weight_map"]["model.layers.99.mlp.up_proj.weight"] = shards[0].name
    elif how == "in two shards":
        index["weight_map"]["other"] = "other.safetensors"
        extra = {EMBED: torch.zeros(2), "other": torch.zeros(2)}
        safetensors.torch.save_file(extra, folder / "other.safetensors")
    elif how == "header":
        shards[0].write_bytes(b"\xff" * 64)
    (folder / weights.INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    "how, message",
    {
        "truncated": "does not lie within the file",
        "gone": "shards that are not there: model-00001",
        "not in the index": f"unknown to the index, or doubled in another shard: {EMBED}",
        "not in its shard": "missing from their shard: model.layers.99.mlp.up_proj.weight",
        "in two shards": f"doubled in another shard: {EMBED}",
        "header": "not a safetensors file, or truncated",
    }.items(),
)
def test_damaged_shards(saved, tmp_path, how, message):
    folder = tmp_path / "copy"
    shutil.copytree(saved[1], folder)
    damaged(folder, how)
    with pytest.raises(WeightsError, match=message):
        weights.load(folder, abstract(Config.from_hf(folder)))


def test_what_is_no_folder_and_no_hub_id():
    with pytest.raises(FileNotFoundError, match="neither a folder nor a hub id"):
        weights.local_folder("/no/such/folder")


@pytest.mark.parametrize("size", sizes.HUB_IDS)
def test_every_name_and_shape_of_the_published_sizes(size):
    config = sizes.config(size)
    with torch.device("meta"):
        model = transformers.Qwen2_5_VLForConditionalGeneration(transformers.Qwen2_5_VLConfig(**config))
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ours, total = {}, 0
    for path, v in zip(*weights.flatten(abstract(Config.from_hf(config)))[:2]):
        total += v.size
        for name in weights.NAMING.sources(path, v.shape):
            assert name not in ours
            ours[name] = weights.NAMING.file_shape(path, v)
    patches = "model.visual.patch_embed.proj.weight"  # a convolution there, a matrix here
    assert theirs[patches] == (1280, 3, 2, 14, 14) and ours[patches] == (1280, 3 * 2 * 14 * 14)
    theirs.pop(patches), ours.pop(patches)
    assert ours == theirs
    assert total == TOTALS[size]


def memory(*args) -> str:
    command = [sys.executable, "-m", "tests.vlm.qwen2_5_vl.checkpoint_memory", *map(str, args)]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.getcwd()}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=env).stdout


def test_peak_memory_of_a_small_checkpoint(tmp_path):
    """What loading adds to the process: at most 1.3 x the checkpoint (the whole process: the 3B run, marked slow)."""
    memory("synthesise", "small", tmp_path / "a")
    for devices in (1, 2):
        again = ["--again", tmp_path / "b"] if devices == 2 else []
        got = json.loads(memory("load", tmp_path / "a", "--devices", devices, *again))
        assert got["peak"] - got["before"] <= 1.3 * got["checkpoint"], got
    assert got["round_trip"]


@pytest.mark.slow
def test_peak_memory_of_a_3b_checkpoint(tmp_path):
    memory("synthesise", "3B", tmp_path / "a")
    for devices in (1, 2):
        again = ["--again", tmp_path / "b"] if devices == 2 else []
        got = json.loads(memory("load", tmp_path / "a", "--devices", devices, *again))
        assert got["peak"] <= 1.3 * got["checkpoint"], got
    assert got["round_trip"] and got["shards"] > 1
