"""LoRA adapters: to and from the real `peft`, strictness, merging."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx
from peft import PeftModel

from edit_rl_jax.nn.params import Frozen, Trainable
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.model import LoRAConfig, Qwen25VL
from edit_rl_jax.vlm.qwen2_5_vl.weights import WeightsError
from tests.parity import ladder, tiny
from tests.vlm.qwen2_5_vl import peft

NAME = "untied_mqa"


def logits(model):
    return ladder.jit(lambda m, b: m.logits(m.hidden(b)))(model, ladder.batch(model.cfg))


def states(model):
    return nnx.split(model, Trainable, Frozen)


def noisy(state, seed=0):
    """A state whose fp32 leaves are random, N(0, 1/fan_in)."""
    keys = iter(jax.random.split(jax.random.key(seed), len(jax.tree.leaves(state))))
    return jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) * x.shape[-2] ** -0.5, state)


@pytest.fixture(scope="module")
def adapted():
    """Our model with torch's random adapter, over disk."""
    return ladder.ours(NAME, ladder.LORA)


@pytest.fixture
def edited(tmp_path):
    """Writes torch's adapter with changed config fields and tensors, then reads it."""
    ladder.peft_reference(NAME)
    shutil.copytree(ladder.folder() / f"{NAME}_adapter", tmp_path / "a")
    config = json.loads((tmp_path / "a" / peft.CONFIG).read_text())
    tensors = safetensors.torch.load_file(tmp_path / "a" / peft.FILE)

    def read(abstract, drop=(), add=None, **fields):
        kept = {k: v for k, v in tensors.items() if k not in drop} | (add or {})
        safetensors.torch.save_file(kept, tmp_path / "a" / peft.FILE)
        (tmp_path / "a" / peft.CONFIG).write_text(json.dumps(config | fields))
        return peft.load(tmp_path / "a", abstract)

    return read, tensors, tmp_path / "a"


def test_peft_computes_our_logits_from_our_adapter(adapted, tmp_path):
    """Out: random adapter of ours -> folder -> peft in torch."""
    graphdef, trainable, frozen = states(adapted)
    trainable = noisy(trainable)
    adapter = peft.make_adapter(trainable, ladder.LORA.rank, ladder.LORA.alpha, "some/base")
    peft.save(trainable, adapter, tmp_path)
    torch_model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
        ladder.folder() / NAME, attn_implementation="eager"
    )
    theirs = PeftModel.from_pretrained(torch_model, tmp_path).eval()
    assert theirs.peft_config["default"].lora_alpha == ladder.LORA.alpha
    model = nnx.merge(graphdef, trainable, frozen)
    with torch.no_grad():
        want = theirs(**tiny.TWO.torch()).logits[0]
        plain = ladder.reference(NAME)(**tiny.TWO.torch()).logits[0]
    start = tiny.CASES["two images, left padding"][0][1]
    got = logits(model)[1, start : start + len(tiny.TWO.tokens)]
    assert ladder.error(got, want) <= ladder.NETWORK
    assert ladder.error(got, plain) > 0.1
    again = peft.load(tmp_path, jax.eval_shape(lambda: trainable))
    for a, b in zip(jax.tree.leaves(again), jax.tree.leaves(trainable)):
        np.testing.assert_array_equal(np.asarray(a), np.asarray(b))


def test_what_else_is_trained_is_no_silent_loss(adapted, tmp_path):
    """A reward head or a bias beside the adapter is named; what is frozen stays out, as it should."""
    _, trainable, frozen = states(adapted)
    adapter = peft.make_adapter(trainable, ladder.LORA.rank, ladder.LORA.alpha)
    flat = dict(nnx.to_flat_state(trainable)) | {("reward", "bias"): Trainable(jnp.zeros(3))}
    with pytest.raises(WeightsError, match="trained, but no part of a LoRA adapter: reward.bias"):
        peft.save(nnx.State.from_flat_path(flat), adapter, tmp_path)
    assert not list(tmp_path.iterdir())
    peft.save(nnx.merge_state(trainable, frozen), adapter, tmp_path)


def test_an_adapter_goes_through_unchanged(adapted, edited):
    """In and out: peft's folder -> ours -> folder, tensors and config bit for bit."""
    read, tensors, folder = edited
    adapter = peft.read_adapter(folder)
    assert (adapter.rank, adapter.alpha, peft.lora(adapter).vision, peft.lora(adapter).merger) == (4, 2.0, True, True)
    peft.save(states(adapted)[1], adapter, folder / "again")
    assert peft.read_adapter(folder / "again") == adapter
    again = safetensors.torch.load_file(folder / "again" / peft.FILE)
    assert again.keys() == tensors.keys() and all(torch.equal(again[k], tensors[k]) for k in tensors)


def test_merged_equals_adapted_here_and_in_transformers(adapted, tmp_path):
    merged = peft.merge(nnx.state(adapted), ladder.LORA.alpha / ladder.LORA.rank)
    weights.save(merged, adapted.cfg, tmp_path, max_shard_bytes=10**5)
    graphdef = nnx.split(nnx.eval_shape(lambda: Qwen25VL(adapted.cfg, rngs=nnx.Rngs(0))))[0]
    want = np.asarray(logits(adapted))
    assert ladder.error(logits(nnx.merge(graphdef, merged)), want) <= ladder.NETWORK
    theirs = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(tmp_path, attn_implementation="eager")
    with torch.no_grad():
        assert ladder.error(want[0, : len(tiny.ONE.tokens)], theirs(**tiny.ONE.torch()).logits[0]) <= ladder.NETWORK


def test_old_key_style_and_partial_targets(adapted, edited):
    """Targets q and v only, named as before transformers 4.52: the rest is zero, and if not, refuses to be saved."""
    read, tensors, folder = edited
    kept = {k: v for k, v in tensors.items() if "q_proj" in k or "v_proj" in k}
    old = {k.replace("model.language_model.", "model."): v for k, v in kept.items()}
    abstract = jax.eval_shape(lambda: states(adapted)[1])
    state = read(abstract, drop=tensors, add=old, target_modules=["q_proj", "v_proj"])
    adapter = peft.read_adapter(folder)
    assert not peft.lora(adapter).vision and not peft.lora(adapter).merger
    named = peft.tensors(state, adapter)
    assert named.keys() == kept.keys()
    for k, v in kept.items():
        np.testing.assert_array_equal(named[k], v.numpy())
    assert sum(int(np.count_nonzero(x)) for x in jax.tree.leaves(state)) == sum(v.numel() for v in kept.values())
    with pytest.raises(WeightsError, match="not targeted by the adapter: model.language_model.layers.0.mlp"):
        peft.tensors(states(adapted)[1], adapter)


UP = "base_model.model.model.language_model.layers.0.mlp.up_proj.lora_A.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (dict(drop=[UP]), "missing: model.language_model.layers.0.mlp.up_proj.lora_a$"),
        (
            dict(add={UP.replace("0", "9"): torch.zeros(2)}),
            "unknown, or not targeted: .*layers.9.mlp.up_proj.lora_A.weight$",
        ),
        (dict(add={UP: torch.zeros(2, 3)}), r"misshapen: .*layers.0.mlp.up_proj.lora_A.weight \(2, 3\), not \(4, 48\)"),
        (dict(add={UP.replace("language_model.", ""): torch.zeros(2, 3)}), "doubled: .*up_proj.lora_A.weight"),
        (
            dict(add={"base_model.model.lm_head.weight": torch.zeros(2)}),
            "unknown, or not targeted: base_model.model.lm_head",
        ),
        (dict(lora_bias=True, use_dora=True), "unsupported options: lora_bias=True .*, use_dora=True"),
        (dict(rank_pattern={"q_proj": 8}), r"misshapen: .*q_proj.lora_A.weight \(4, 48\), not \(8, 48\)"),
        (dict(bias="all"), "unsupported options: bias='all'"),
        (dict(modules_to_save=["lm_head"]), "modules_to_save"),
        (dict(init_lora_weights="pissa"), "init_lora_weights='pissa'"),
        (dict(peft_type="LOHA"), "peft_type 'LOHA'"),
        (dict(r=8), "misshapen"),
    ],
)
def test_what_does_not_fit_is_named(adapted, edited, change, message):
    abstract = jax.eval_shape(lambda: states(adapted)[1])
    if "r" in change:  # a model built for the config's rank
        abstract = nnx.eval_shape(lambda: Qwen25VL(adapted.cfg, rngs=nnx.Rngs(0), lora=LoRAConfig(8, 2.0, True, True)))
        abstract = states(abstract)[1]
    with pytest.raises(WeightsError, match=message):
        edited[0](abstract, **change)
