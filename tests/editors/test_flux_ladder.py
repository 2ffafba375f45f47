"""Every rung of FLUX's ladder on every tiny configuration, golden numbers, and known faults: each must fail it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext import layout, transformer
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.weights import TRANSFORMER
from edit_rl_jax.editors.mmdit import blocks, packing, rotary
from edit_rl_jax.editors.mmdit.blocks import sinusoids
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import LayerNorm, RMSNorm
from edit_rl_jax.nn.rotary import rotate
from tests.editors import flux, golden
from tests.editors.test_text_encoders import filled
from tests.mutations.test_mutations import stuck
from tests.parity.ladder import jit


@pytest.mark.parametrize("name", flux.CONFIGS)
@pytest.mark.parametrize("rung", [r for r in flux.RUNGS if r != "network"])  # the gradients' rung compares it too
def test_rung(rung, name):
    run, bar = flux.RUNGS[rung]
    wrong = {what: e for what, e in run(name).items() if not e <= bar}
    assert not wrong, f"above {bar}: {wrong}"


def test_golden_numbers():
    """2 x 3 tokens, a reference of 3 x 2, guidance 2.5 and 4; the reference's output is ours times -1."""
    cfg = FluxConfig(**flux.CONFIGS["three_heads"])
    model = filled(lambda: transformer.FluxTransformer(cfg, rngs=flux.nnx.Rngs(0)), TRANSFORMER)
    index = layout.layout([5, 5], [((3, 2),)] * 2, [(2, 3)] * 2, TokenLengths(5, 6, 6))
    drawn = {k: golden.draw(k, s) for k, s in (("text", (2, 5, 24)), ("pooled", (2, 20)))}
    condition = {**index, **drawn, "references": golden.draw("reference", (2, 6, 16))}
    condition["guidance"] = np.array([2.5, 4.0], np.float32)
    given = (golden.draw("noise", (2, 6, 16)), 1 - np.array([0.3, 0.9], np.float32), condition)
    out = jit(lambda m, *a: m(*a))(model, *jax.tree.map(jnp.asarray, given))
    golden.check(-out, "-.0986214 1.0962055 165.25982 -2.614812 -1.992002 .338017 .004629 -.250577 .415285")


def test_golden_sinusoids_and_rotary_tables():
    early, late = (sinusoids(jnp.full(1, 0.3), late) for late in (False, True))
    golden.check(early, ".2586345 .6581096 159.33061 -.022097 -.908905 -.571130 -.988774 .034637 .032233", 1e-6)
    golden.check(late, ".2586346 .6581095 159.33060 -.022097 -.908918 -.571130 -.988774 .034637 .032233", 1e-6)
    index = layout.layout([5], [((64, 64),)], [(64, 64)], TokenLengths(5, 4096, 4096))
    at = jnp.concatenate([index[f"{k}_positions"] for k in transformer.KINDS], axis=1)
    cos = np.repeat(rotary.tables(at, (16, 56, 56))[0][0], 2, axis=-1)
    golden.check(cos, ".6283195 .6183258 883364.5 1 1 1 1 .999962 .999962", 1e-6)


def test_tokens_hold_channels_then_rows_then_columns():
    packed = packing.pack(jnp.arange(32.0).reshape(1, 2, 4, 4).transpose(0, 2, 3, 1))
    assert packed[0, 0].tolist() == [0, 1, 4, 5, 16, 17, 20, 21]
    image = np.random.default_rng(0).normal(size=(2, 6, 4, 3)).astype(np.float32)
    padded = jnp.pad(packing.pack(jnp.asarray(image)), ((0, 0), (0, 5), (0, 0)))
    np.testing.assert_array_equal(packing.unpack(padded, 6, 4), image)


def test_a_row_that_does_not_fit_is_named():
    with pytest.raises(ValueError, match="row 1: {'references': 6}"):
        layout.layout([1, 1], [(), ((2, 3),)], [(1, 1)] * 2, TokenLengths(1, 5, 1))


NAME = "released_heads"
FAULTS = {}


def fault(rung: str):
    return lambda patch: FAULTS.setdefault(patch.__name__, (rung, patch))


@fault("layers")
def exact_gelu(m):
    right = jax.nn.gelu
    m.setattr(jax.nn, "gelu", lambda x, approximate=True: right(x, approximate=False))


@fault("layers")
def scale_before_shift(m):
    right = blocks.Modulation.__call__

    def swapped(self, temb):
        found = right(self, temb)
        found[:2] = found[1::-1]
        return found

    m.setattr(blocks.Modulation, "__call__", swapped)


@fault("layers")
def second_modulation_scale_before_shift(m):
    right = blocks.Modulation.__call__
    order = lambda x: [*x[:3], x[4], x[3], x[5]] if len(x) == 6 else x
    m.setattr(blocks.Modulation, "__call__", lambda self, temb: order(right(self, temb)))


@fault("layers")
def chunks_of_attention_and_feed_forward_swapped(m):
    right = blocks.Modulation.__call__
    order = lambda x: [*x[3:], *x[:3]] if len(x) == 6 else x
    m.setattr(blocks.Modulation, "__call__", lambda self, temb: order(right(self, temb)))


@fault("layers")
def gates_with_tanh(m):
    right = blocks.Modulation.__call__
    bounded = lambda x: [jnp.tanh(v) if i % 3 == 2 else v for i, v in enumerate(x)]
    m.setattr(blocks.Modulation, "__call__", lambda self, temb: bounded(right(self, temb)))


@fault("layers")
def modulation_without_silu(m):
    m.setattr(jax.nn, "silu", lambda x: x)


@fault("layers")
def text_and_image_weights_swapped(m):
    image, text = blocks.Attention.image, blocks.Attention.text
    m.setattr(blocks.Attention, "text", image)
    m.setattr(
        blocks.Attention, "image", lambda self, x: text(self, x) if hasattr(self, "add_q_proj") else image(self, x)
    )


@fault("layers")
def images_before_text(m):
    right = blocks.jnp.concatenate

    class Numbers:
        def __getattr__(self, name):
            return getattr(jnp, name)

        def concatenate(self, x, axis):
            return right(x[::-1] if axis == 1 else x, axis=axis)

    m.setattr(blocks, "jnp", Numbers())


@fault("layers")
def feed_forward_before_attention_in_single_blocks(m):
    right = jnp.concatenate

    class Numbers:
        def __getattr__(self, name):
            return getattr(jnp, name)

        def concatenate(self, x, axis):
            return right(x[::-1] if axis == -1 else x, axis=axis)

    m.setattr(blocks, "jnp", Numbers())


@fault("layers")
def rotary_in_halves(m):
    m.setattr(blocks, "rotate_pairs", rotate)


@fault("layers")
def rotary_before_the_norms(m):
    m.setattr(RMSNorm, "__call__", lambda self, x: x * self.scale[...][None, None, None])


@fault("layers")
def layer_norm_epsilon(m):
    m.setattr(LayerNorm, "eps", stuck(1e-5), raising=False)


@fault("layers")
def query_norm_epsilon(m):
    m.setattr(RMSNorm, "eps", stuck(1e-5), raising=False)


@fault("layers")
def attention_unscaled(m):
    right = blocks.attention
    m.setattr(blocks, "attention", lambda *a, **k: right(*a, scale=1.0, **k))


@fault("layers")
def bias_dropped(m):
    m.setattr(Linear, "bias", stuck(None), raising=False)


@fault("layers")
def output_shift_before_scale(m):
    def swapped(self, x, temb):
        shift, scale = self.modulation(temb)
        return self.norm(x) * (1 + scale) + shift

    m.setattr(blocks.Output, "__call__", swapped)


@fault("embeddings")
def sines_before_cosines(m):
    right = blocks.sinusoids
    m.setattr(transformer, "sinusoids", lambda x: jnp.roll(right(x), 128, axis=-1))


@fault("embeddings")
def guidance_not_times_1000(m):
    right = transformer.sinusoids
    m.setattr(transformer, "sinusoids", lambda x: right(jnp.where(jnp.max(x) > 1, x / 1000, x)))


@fault("embeddings")
def time_for_sigma(m):
    right = transformer.TimeTextEmbed.__call__
    m.setattr(transformer.TimeTextEmbed, "__call__", lambda self, t, *a: right(self, 1 - t, *a))


@fault("positions")
def bf16_angles(m):
    right = rotary.tables

    def rounded(at, axes):
        cos, sin = right(at, axes)
        angles = jnp.arctan2(sin, cos).astype(jnp.bfloat16).astype(jnp.float32)
        return jnp.cos(angles), jnp.sin(angles)

    m.setattr(rotary, "tables", rounded)


@fault("positions")
def rows_and_columns_swapped(m):
    right = layout.grid
    m.setattr(layout, "grid", lambda *a: right(*a)[:, [0, 2, 1]])


@fault("positions")
def references_at_the_noise(m):
    right = layout.grid
    m.setattr(layout, "grid", lambda number, *a: right(0, *a))


@fault("positions")
def centred_rows(m):
    right = layout.grid
    m.setattr(layout, "grid", lambda number, h, w: np.maximum(right(number, h, w) - [0, h // 2, w // 2], 0))


@fault("network")
def references_before_noise(m):
    right = transformer.jnp.concatenate

    class Numbers:
        def __getattr__(self, name):
            return getattr(jnp, name)

        def concatenate(self, x, axis):  # the latents only: positions and segments stay
            return right(x[::-1] if len(x) == 2 and x[0].shape[-1] == 8 else x, axis=axis)

    m.setattr(transformer, "jnp", Numbers())


@fault("network")
def batch_padding_attended(m):
    right = blocks.attention
    ids = lambda s: jnp.maximum(s, 1)
    m.setattr(
        blocks,
        "attention",
        lambda *qkv, q_segments, kv_segments, **k: right(
            *qkv, q_segments=ids(q_segments), kv_segments=ids(kv_segments), **k
        ),
    )


@fault("network")
def noise_minus_data(m):
    right = transformer.FluxTransformer.__call__
    m.setattr(transformer.FluxTransformer, "__call__", lambda self, *a: -right(self, *a))


@pytest.mark.parametrize("rung", ["positions", "embeddings", "layers"])
def test_without_a_fault_nothing_is_caught_op_by_op(rung):
    run, bar = flux.RUNGS[rung]
    with jax.disable_jit():
        assert all(e <= bar for e in run(NAME).values())


@pytest.mark.parametrize("name", FAULTS)
def test_the_ladder_catches(name, monkeypatch):
    first, patch = FAULTS[name]
    flux.ours(NAME)
    patch(monkeypatch)
    run, bar = flux.RUNGS[first]
    with jax.disable_jit(first != "network"):  # the operators are compiled once for all faults
        found = run(NAME)
    assert any(not e <= bar for e in found.values()), f"{name} passes {first}"
