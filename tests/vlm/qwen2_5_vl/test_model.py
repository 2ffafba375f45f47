"""The model against itself: padding, packing and layout change nothing; only the adapter is differentiated."""

import dataclasses
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax import flops
from edit_rl_jax.nn.params import Frozen, Init, LoRAConfig, Trainable
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.vlm.qwen2_5_vl.vision import VisionTower

from .tiny import CONFIG, batch, error, jit, logits, sample, tiny

TOL = 1e-5
A = sample(0, 3, (1, 10, 14), 4)
B = sample(1, 5, (1, 6, 4), 2, (1, 2, 18), 3)
C = sample(2, 9)


@pytest.fixture(scope="module")
def model():
    return tiny(lora=LoRAConfig(rank=4, alpha=6.0, vision=True, merger=True))


@pytest.fixture(scope="module")
def alone(model):
    """Logits of each sample in a row of its own, without padding tokens."""
    return [np.asarray(logits(model, batch([[s]], len(s.tokens), 1, 192)))[0] for s in (A, B, C)]


@pytest.mark.parametrize("left", [0, 7])
@pytest.mark.parametrize("R,P", [(1, 256), (2, 224), (3, 320)], ids=str)
def test_packed_rows_equal_separate_ones(model, alone, R, P, left):
    rows = [[A, B], [C, A], [B, C]]
    got = np.asarray(logits(model, batch(rows, 140, R, P, left=left)))
    for row, samples in enumerate([(0, 1), (2, 0), (1, 2)]):
        at = left
        for i in samples:
            assert error(got[row, at : at + len(alone[i])], alone[i]) < TOL
            at += len(alone[i])
    assert np.isfinite(got).all()


def test_every_input_matters(model, alone):
    """What the comparison above would miss if images or positions were ignored."""
    inputs = batch([[A]], len(A.tokens), 1, 192)
    for name, change in {
        "patches": lambda x: x * 1.1,
        "patch_hw": lambda x: x[..., ::-1],
        "positions": lambda x: x[:, ::-1],
        "image_index": lambda x: jnp.where(x >= 0, jnp.maximum(x, 1), x),
        "window_segments": lambda x: jnp.minimum(x, 1),
        "patch_segments": lambda x: jnp.maximum(x - (jnp.arange(192) % 2)[None, None], 0),
    }.items():
        assert error(np.asarray(logits(model, inputs | {name: change(inputs[name])}))[0], alone[0]) > 1e-3, name


def test_text_only_needs_no_vision(model, alone):
    """Rows without images: with vision rows of padding, with empty ones, and without the arrays."""
    for R, P in [(1, 64), (0, 64)]:
        inputs = batch([[C]], len(C.tokens), R, P)
        assert error(np.asarray(logits(model, inputs))[0], alone[2]) < TOL
    inputs = {k: v for k, v in inputs.items() if "patch" not in k and "window" not in k}
    assert error(np.asarray(logits(model, inputs))[0], alone[2]) < TOL


def test_only_the_adapter_is_differentiated():
    inputs = batch([[A]], len(A.tokens), 1, 192)
    for lora, expected in [
        (LoRAConfig(2), 7),
        (LoRAConfig(2, vision=True), 12),
        (LoRAConfig(2, merger=True), 9),
    ]:
        abstract = nnx.eval_shape(lambda lora=lora: Qwen25VL(CONFIG, rngs=nnx.Rngs(0), lora=lora))
        leaves = jax.tree.leaves_with_path(nnx.state(abstract, Trainable))
        assert len(leaves) == 2 * expected and all("lora" in jax.tree_util.keystr(path) for path, _ in leaves)
    model = tiny(lora=LoRAConfig(2, vision=True, merger=True))
    graphdef, trainable, frozen = nnx.split(model, Trainable, Frozen)

    @jit
    def grads(trainable, frozen):
        return jax.grad(lambda t: jnp.sum(nnx.merge(graphdef, t, frozen).hidden(inputs) ** 2))(trainable)

    for path, g in jax.tree.leaves_with_path(grads(trainable, frozen)):
        assert np.abs(g).max() > 0, f"{jax.tree_util.keystr(path)} gets no gradient"


def test_adapter_of_zero_b_is_the_base(model, alone):
    """B is zero in a fresh adapter (test_linear)."""
    inputs = batch([[A]], len(A.tokens), 1, 192)
    graphdef, trainable, frozen = nnx.split(model, Trainable, Frozen)
    zero_b = lambda path, a: a * 0 if "lora_b" in jax.tree_util.keystr(path) else a
    fresh = nnx.merge(graphdef, jax.tree.map_with_path(zero_b, trainable), frozen)
    base = tiny()
    nnx.update(base, frozen)
    assert error(logits(fresh, inputs), logits(base, inputs)) < 1e-6
    assert error(np.asarray(logits(base, inputs))[0], alone[0]) > 1e-3  # the random adapter is no no-op


def test_full_training_and_dtypes():
    make = lambda **k: nnx.eval_shape(lambda: Qwen25VL(CONFIG, rngs=nnx.Rngs(0), dtype=jnp.bfloat16, **k))
    full, lora = make(trainable="full"), make(lora=LoRAConfig())
    assert not jax.tree.leaves(nnx.state(full, Frozen))
    assert {v.dtype for v in jax.tree.leaves(nnx.state(full, Trainable))} == {jnp.dtype("float32")}
    assert {v.dtype for v in jax.tree.leaves(nnx.state(lora, Frozen))} == {jnp.dtype("bfloat16")}
    assert {v.dtype for v in jax.tree.leaves(nnx.state(lora, Trainable))} == {jnp.dtype("float32")}
    inputs = batch([[A]], len(A.tokens), 1, 192)
    for abstract in (full, lora):
        hidden = jax.eval_shape(lambda m: m.hidden(inputs), abstract)
        assert hidden.dtype == jnp.bfloat16
        assert jax.eval_shape(lambda m, h: m.logits(h), abstract, hidden).dtype == jnp.float32
    with pytest.raises(ValueError, match="'lora' or 'full'"):
        make(trainable="all")


def test_tied_head():
    cfg = dataclasses.replace(CONFIG, tie_word_embeddings=True)
    model = tiny(cfg)
    assert model.lm_head is None
    h = jnp.asarray(np.random.default_rng(0).normal(size=(2, 32)), jnp.float32)
    table = np.asarray(model.language_model.embed_tokens.embedding[...])
    np.testing.assert_allclose(model.logits(h), np.asarray(h) @ table.T, atol=1e-4)


def test_program_does_not_grow_with_depth():
    """Depth 8 and 32 of the tower with Qwen's pattern, 2 and 80 decoder layers: the same lowered program size."""

    def size(vision_depth, text_depth):
        full = tuple(range(7, vision_depth, 8))
        cfg = Config(
            dataclasses.replace(CONFIG.vision, depth=vision_depth, fullatt_block_indexes=full),
            dataclasses.replace(CONFIG.text, num_hidden_layers=text_depth),
        )
        lora = LoRAConfig(vision=True)
        abstract = nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=lora))
        graphdef, trainable, frozen = nnx.split(abstract, Trainable, Frozen)
        inputs = batch([[A]], len(A.tokens), 1, 192)
        loss = lambda t, f: jnp.sum(nnx.merge(graphdef, t, f).hidden(inputs))
        return len(jax.jit(jax.grad(loss)).lower(trainable, frozen).as_text().splitlines())

    assert size(16, 2) == size(64, 80)


def test_abstract_72b_is_instant():
    cfg = Config(VisionConfig(hidden_size=1280, intermediate_size=3456, out_hidden_size=8192), TextConfig())
    start = time.time()
    model = nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=LoRAConfig(), dtype=jnp.bfloat16))
    assert time.time() - start < 20  # 0.3 s on an idle core
    count = lambda kind: sum(v.size for v in jax.tree.leaves(nnx.state(model, kind)))
    assert count(Frozen) == 73_410_777_344 and count(Trainable) == 421_068_800


def test_vision_flops_are_linear():
    """Two 512 x 512 images: all that the 7B tower computes, padding too, over the linear layers of real patches."""
    cfg = VisionConfig(hidden_size=1280)
    tower = nnx.eval_shape(
        lambda: VisionTower(
            cfg, rngs=nnx.Rngs(0), init=Init(), merger_init=Init(), remat="nothing_saveable", attention="xla"
        )
    )
    shape = lambda *s, d=jnp.int32: jax.ShapeDtypeStruct((1, 2, 1312, *s), d)
    arrays = shape(1176, d=jnp.float32), shape(), shape(), shape(2)
    kinds = flops.count_by_kind(lambda m, *a: m(*a), tower, *arrays)
    assert sum(kinds.values()) <= 1.06 * kinds["linear"] * (2 * 36 * 36) / (2 * 1312)
