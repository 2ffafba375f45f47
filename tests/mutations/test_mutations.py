"""Known faults, put into the model one at a time: each must fail the parity ladder.

Each entry names the rung that is tried first (the cheapest that should notice); the rest of the ladder follows only if
that one stays silent. `patch(m, cfg)` gets pytest's monkeypatch.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.nn import attention_xla, rotary, weights
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.vlm import positions, text
from edit_rl_jax.vlm import qwen_model as model_lib
from edit_rl_jax.vlm.qwen2_5_vl import vision
from edit_rl_jax.vlm.qwen2_5_vl.config import VisionConfig
from tests.parity import ladder, tiny

NAME = "tied_gqa"
FAULTS = {}


def fault(rung: str):
    return lambda patch: FAULTS.setdefault(patch.__name__, (rung, patch))


def stuck(value):
    """An attribute of every instance that reads as `value` whatever was assigned."""
    return property(lambda self: value, lambda self, assigned: None)


@fault("layers")
def tanh_gelu(m):
    exact = jax.nn.gelu
    m.setattr(jax.nn, "gelu", lambda x, approximate=True: exact(x, approximate=True))


@fault("layers")
def gelu_for_silu(m):
    m.setattr(jax.nn, "silu", lambda x: jax.nn.gelu(x, approximate=False))


@fault("norm")
def wrong_epsilon(m):
    m.setattr(RMSNorm, "eps", stuck(1e-5), raising=False)


@fault("layers")
def norm_gain_dropped(m):
    right = RMSNorm.__call__
    gain = lambda self, x: self.scale[...].reshape((1,) * (x.ndim - 1) + (-1,))
    m.setattr(RMSNorm, "__call__", lambda self, x: right(self, x) / gain(self, x))


@fault("network")
def final_norm_dropped(m):
    m.setattr(text.TextModel, "norm", stuck(lambda x: x), raising=False)


@fault("layers")
def bias_dropped(m):
    m.setattr(Linear, "bias", stuck(None), raising=False)


@fault("layers")
def kernel_transposed(m):
    right = weights._read

    def read(path, tensors, shape, *rest):
        x = right(path, tensors, shape, *rest)
        return x.swapaxes(-1, -2) if path[-2:] == ("o_proj", "kernel") else x

    m.setattr(weights, "_read", read)
    ladder.ours.cache_clear()


@fault("layers")
def query_and_key_swapped_in_the_tower(m):
    right = Linear.split
    swap = lambda parts: [parts[1], parts[0], parts[2]] if len(parts) == 3 else parts
    m.setattr(Linear, "split", lambda self, x, parts: swap(right(self, x, parts)))


@fault("rotary")
def bf16_rotary_tables(m):
    right = rotary.inverse_frequencies

    def table(where, axis_of, freq):
        angles = (where[..., axis_of].astype(jnp.float32) * freq.reshape(1, 1, -1)).astype(jnp.bfloat16)
        return jnp.cos(angles).astype(jnp.float32), jnp.sin(angles).astype(jnp.float32)

    assert right(8, 1e4).dtype == np.float32
    m.setattr(rotary, "axes_table", table)


@fault("rotary")
def wrong_mrope_section_order(m):
    right = rotary.mrope_table
    m.setattr(rotary, "mrope_table", lambda where, dim, theta, sections: right(where, dim, theta, sections[::-1]))


@fault("rotary")
def rows_and_columns_swapped_in_the_tower(m):
    right = rotary.vision_table
    m.setattr(rotary, "vision_table", lambda hw, *rest: right(hw[..., ::-1], *rest))


@fault("layers")
def interleaved_rotary(m):
    def rotate(x, cos, sin):
        a, b = x[..., ::2], x[..., 1::2]
        cos, sin = cos[..., None, :], sin[..., None, :]
        return jnp.stack([a * cos - b * sin, b * cos + a * sin], axis=-1).reshape(x.shape)

    m.setattr(text, "rotate", rotate)


@fault("positions")
def one_dimensional_positions(m):
    right = positions.rope_index

    def flat(tokens, grids, image, **options):
        n = len(tokens)
        assert right(tokens, grids, image, **options)[0].shape == (3, n)
        return np.tile(np.arange(n, dtype=np.int32), (3, 1)), n

    m.setattr(positions, "rope_index", flat)


@fault("positions")
def text_goes_on_after_the_image_tokens_count(m):
    right = positions.rope_index

    def late(tokens, grids, *rest, **options):
        got, following = right(tokens, grids, *rest, **options)
        if not grids:
            return got, following
        last = np.flatnonzero(tokens == tiny.IMAGE)[-1]
        got[:, last + 1 :] += grids[-1][1] * grids[-1][2] // 4 - max(grids[-1][1:]) // 2
        return got, int(got.max()) + 1

    m.setattr(positions, "rope_index", late)


@fault("attention")
def causal_mask_off_by_one(m):
    right = attention_xla.attention_mask

    def mask(tq, tk, q_segments, kv_segments, causal):
        seen = right(tq, tk, q_segments, kv_segments, False)
        lower = jnp.tril(jnp.ones((1, tq, tk), bool), tk - tq + 1)
        return seen if not causal else lower if seen is None else seen & lower

    m.setattr(attention_xla, "attention_mask", mask)


@fault("attention")
def kv_heads_grouped_wrong(m):
    right = attention_xla.xla_attention

    def grouped(q, k, v, **options):
        B, T, H, d = q.shape
        kv = k.shape[2]
        mixed = q.reshape(B, T, H // kv, kv, d).swapaxes(2, 3).reshape(q.shape)
        return right(mixed, k, v, **options).reshape(B, T, kv, H // kv, d).swapaxes(2, 3).reshape(q.shape)

    m.setattr(attention_xla, "xla_attention", grouped)


@fault("attention")
def softmax_scale_missing(m):
    right = attention_xla.xla_attention
    m.setattr(attention_xla, "xla_attention", lambda *qkv, scale, **options: right(*qkv, scale=1.0, **options))


@fault("attention")
def padding_attended(m):
    right = attention_xla.attention_mask
    shift = lambda segments: None if segments is None else segments + 1
    m.setattr(attention_xla, "attention_mask", lambda tq, tk, a, b, causal: right(tq, tk, shift(a), shift(b), causal))


@fault("network")
def packed_samples_see_each_other(m):
    right = model_lib.run_attention
    one = lambda segments: jnp.minimum(segments, 1)

    def joined(*qkv, q_segments, kv_segments, **options):
        return right(*qkv, q_segments=one(q_segments), kv_segments=one(kv_segments), **options)

    m.setattr(model_lib, "run_attention", joined)


@fault("network")
def band_instead_of_windows(m):
    right = vision.attention

    def banded(q, k, v, *, q_segments, kv_segments, impl):
        if impl != "xla":  # full blocks
            return right(q, k, v, q_segments=q_segments, kv_segments=kv_segments, impl=impl)
        width, batch = q.shape[1], len(tiny.CASES)
        a, b, c = (x.reshape(batch, -1, *x.shape[2:]) for x in (q, k, v))
        at = jnp.arange(a.shape[1])
        near = (jnp.abs(at[:, None] - at[None]) <= width)[None] & (q_segments.reshape(batch, 1, -1) > 0)
        scores = jnp.einsum("bqhd,bkhd->bhqk", a, b) * a.shape[-1] ** -0.5
        weights = jax.nn.softmax(jnp.where(near[:, None], scores, -1e30), axis=-1)
        return jnp.einsum("bhqk,bkhd->bqhd", weights, c).reshape(q.shape)

    m.setattr(vision, "attention", banded)


@fault("network")
def ragged_windows_of_a_group_merged(m):
    right = vision.attention
    one = lambda ids, impl: jnp.minimum(ids, 1) if impl == "xla" else ids
    m.setattr(
        vision,
        "attention",
        lambda *qkv, q_segments, kv_segments, impl: right(
            *qkv, q_segments=one(q_segments, impl), kv_segments=one(kv_segments, impl), impl=impl
        ),
    )


@fault("network")
def full_attention_in_every_block(m):
    m.setattr(VisionConfig, "is_full", property(lambda self: (True,) * self.depth))


@fault("network")
def windows_in_every_block(m):
    m.setattr(VisionConfig, "is_full", property(lambda self: (False,) * self.depth))


@fault("network")
def images_in_the_wrong_order(m):
    right = positions.pack_vision

    def swapped(grids, *rest):
        layout = right(grids, *rest)
        if tuple(grids) == tiny.TWO.grids:  # images of one sample
            layout.merged_index.reverse()
        return layout

    m.setattr(positions, "pack_vision", swapped)


@fault("gradients")
def lora_scale_missing(m):
    m.setattr(Linear, "lora_scale", stuck(1.0), raising=False)


@pytest.mark.parametrize("name", FAULTS)
def test_the_ladder_catches(name, monkeypatch):
    try:
        catch(*FAULTS[name], NAME, monkeypatch)
    finally:
        if name == "kernel_transposed":
            ladder.ours.cache_clear()


def catch(first, patch, name, monkeypatch):
    """Asserts that a fault fails its rung of the ladder on a configuration."""
    ladder.ours(name), ladder.ours(name, ladder.lora_of(name))  # faults are in the code that runs; the loader's own
    patch(monkeypatch)  # clears this
    caught, rung = False, first
    for rung in [first, *(r for r in ladder.RUNGS if r != first)]:
        run, bar = ladder.RUNGS[rung]
        if caught := any(not e <= bar for e in run(name).values()):
            break
    assert caught, f"{patch.__name__} passes the ladder"
    assert rung == first, f"caught by {rung}, not by {first}"
