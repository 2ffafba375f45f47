"""Known faults of other ports of Qwen3-VL, put into the model one at a time: each must fail its rung of the ladder."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.nn import rotary
from edit_rl_jax.nn.norms import LayerNorm
from edit_rl_jax.vlm import positions, text
from edit_rl_jax.vlm.engine import decoder
from edit_rl_jax.vlm.qwen3_vl import config, vision
from edit_rl_jax.vlm.qwen3_vl.model import Qwen3VL
from tests.mutations.test_mutations import catch, stuck
from tests.parity import tiny

NAME = "3_tied_gqa"
FAULTS = {}


def fault(rung: str):
    return lambda patch: FAULTS.setdefault(patch.__name__, (rung, patch))


@fault("layers")
def exact_gelu_in_blocks(m):
    right = jax.nn.gelu
    m.setattr(jax.nn, "gelu", lambda x, approximate: right(x, approximate=False))


@fault("layers")
def tanh_gelu_in_mergers(m):
    right = jax.nn.gelu
    m.setattr(jax.nn, "gelu", lambda x, approximate: right(x, approximate=True))


@fault("norm")
def wrong_epsilon_of_layer_norm(m):
    m.setattr(LayerNorm, "eps", stuck(1e-5), raising=False)


@fault("norm")
def layer_norm_as_rms_norm(m):
    def rms(self, x):
        scale = jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + self.eps)
        row = lambda p: p[...].reshape((1,) * (x.ndim - 1) + (-1,))
        return x * scale * row(self.scale) + row(self.bias)

    m.setattr(LayerNorm, "__call__", rms)


@fault("layers")
def merger_norm_before_joining_everywhere(m):
    def run(self, x):
        """The norm of the joined patches, piece by piece."""
        B, N, D = x.shape
        if self.joined_norm:
            y = x - x.mean(-1, keepdims=True)
            y = (y * jax.lax.rsqrt(jnp.mean(y * y, -1, keepdims=True) + 1e-6)).reshape(B, N // 4, 4 * D)
            x = y * self.norm.scale[...][None, None] + self.norm.bias[...][None, None]
        else:
            x = self.norm(x).reshape(B, N // 4, 4 * D)
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=False))

    m.setattr(vision.PatchMerger, "__call__", run)


@fault("layers")
def half_pixel_positions(m):
    """Pixel centres aligned instead of corners: at = (i + 1/2) S / n - 1/2."""

    def centres(layout, side):
        ids, where = layout.patch_segments, layout.patch_hw
        frames = [
            (ids == s) & (np.arange(len(ids)) == r)[:, None] for r in range(len(ids)) for s in range(1, ids.max() + 1)
        ]
        index, weight = np.zeros((*ids.shape, 4), np.int32), np.zeros((*ids.shape, 4), np.float32)
        for at in (f for f in frames if f.any()):
            place = np.maximum((where[at] + 0.5) * side / (where[at].max(0) + 1) - 0.5, 0)
            low = np.minimum(place.astype(np.int32), side - 1)
            high, part = np.minimum(low + 1, side - 1), place - low
            for k, (a, b) in enumerate(((0, 0), (0, 1), (1, 0), (1, 1))):
                index[at, k] = (high if a else low)[:, 0] * side + (high if b else low)[:, 1]
                weight[at, k] = (part if a else 1 - part)[:, 0] * (part if b else 1 - part)[:, 1]
        return index, weight

    m.setattr(config, "learned_positions", centres)


@fault("layers")
def positions_in_raster_order(m):
    right = config.learned_positions

    def raster(layout, side):
        index, weight = right(layout, side)
        source = np.where(layout.source < 0, np.iinfo(np.int32).max, layout.source)
        out = index.copy(), weight.copy()
        for r, ids in enumerate(layout.patch_segments):
            for s in range(1, ids.max(initial=0) + 1):
                at = np.flatnonzero(ids == s)
                at = at[np.argsort(source[r, at])]
                hw = layout.patch_hw[r, at]
                order = at[np.lexsort((hw[:, 1], hw[:, 0]))]
                out[0][r, at], out[1][r, at] = index[r, order], weight[r, order]
        return out

    m.setattr(config, "learned_positions", raster)


@fault("network")
def learned_positions_dropped(m):
    m.setattr(vision.VisionTower, "pos_embed", stuck(lambda index, weight: jnp.zeros((1, 1, 1))), raising=False)


@fault("network")
def images_attend_to_each_other(m):
    right = vision.attend_in
    m.setattr(vision, "attend_in", lambda n, segments, impl: right(n, jnp.minimum(segments, 1), impl))


@fault("rotary")
def sections_in_a_row(m):
    right = rotary.mrope_table
    m.setattr(
        rotary, "mrope_table", lambda where, dim, theta, sections, *interleaved: right(where, dim, theta, sections)
    )


@fault("rotary")
def axes_turned_by_one_frequency(m):
    right = rotary.axes_table
    turn = lambda axis_of: np.roll(axis_of, 1) if 2 in axis_of else axis_of  # the text's, of three axes
    m.setattr(rotary, "axes_table", lambda where, axis_of, freq: right(where, turn(axis_of), freq))


@fault("layers")
def no_norm_of_queries_and_keys(m):
    m.setattr(text.SelfAttention, "q_norm", stuck(None), raising=False)


@fault("layers")
def norm_after_rotary(m):
    right, RMS = text.rotate, text.RMSNorm
    call = RMS.__call__
    pending = []

    def late(self, x):
        if x.ndim == 4:
            pending.append(self)
            return x
        return call(self, x)

    def rotate(x, cos, sin):
        y = right(x, cos, sin)
        return call(pending.pop(), y) if pending else y

    m.setattr(RMS, "__call__", late)
    m.setattr(text, "rotate", rotate)


@fault("positions")
def positions_count_tokens(m):
    right = positions.rope_index

    def flat(tokens, grids, image, **options):
        assert right(tokens, grids, image, **options)[0].shape == (3, len(tokens))
        return np.tile(np.arange(len(tokens), dtype=np.int32), (3, 1)), len(tokens)

    m.setattr(positions, "rope_index", flat)


@fault("positions")
def text_only_row_begins_at_one(m):
    right = positions.rope_index

    def late(tokens, grids, image, **options):
        got, following = right(tokens, grids, image, **options)
        return (got, following) if len(grids) else (got + 1, following + 1)

    m.setattr(positions, "rope_index", late)


def deep(m, change):
    """`change` of (x, deep) before it enters the decoder."""
    right = text.TextModel.__call__

    def run(self, x, *rest):
        return right(self, change(self, x) if isinstance(x, tuple) else x, *rest)

    m.setattr(text.TextModel, "__call__", run)


@fault("network")
def no_deepstack(m):
    deep(m, lambda self, x: x[0])


@fault("network")
def deepstack_one_layer_late(m):
    deep(m, lambda self, x: (x[0], jnp.pad(x[1], ((0, 0), (0, 0), (1, 0), (0, 0)))))


@fault("network")
def deepstack_before_the_layer(m):
    deep(m, lambda self, x: (x[0] + x[1][:, :, 0], x[1][:, :, 1:]))


@fault("network")
def deepstack_levels_in_reverse(m):
    deep(m, lambda self, x: (x[0], x[1][:, :, ::-1]))


@fault("network")
def deepstack_at_text_places_too(m):
    right = Qwen3VL.embed

    def everywhere(self, tokens, features=None, is_image=None):
        if features is None:
            return right(self, tokens)
        return right(self, tokens, features, is_image)[0], features["deep"]

    m.setattr(Qwen3VL, "embed", everywhere)


@fault("network")
def taps_one_block_late(m):
    at = property(lambda self: tuple(i + 1 for i in self.__dict__["deepstack_visual_indexes"]), lambda self, v: None)
    m.setattr(config.VisionConfig, "deepstack_visual_indexes", at)


@fault("generation")
def deepstack_lost_in_the_store(m):
    right = decoder.encode

    def encode(*args):
        features = right(*args)
        return features | {"deep": features["deep"] * 0}

    m.setattr(decoder, "encode", encode)


@pytest.mark.parametrize("name", FAULTS)
def test_the_ladder_catches(name, monkeypatch):
    catch(*FAULTS[name], NAME, monkeypatch)


def test_the_configuration_can_show_them():
    """Several levels, images in one vision row, and heads of a width of their own."""
    text_, vision_ = (tiny.CONFIGS[NAME][f"{k}_config"] for k in ("text", "vision"))
    assert len(vision_["deepstack_visual_indexes"]) > 1 and text_["num_hidden_layers"] > 3
    assert text_["head_dim"] * text_["num_attention_heads"] != text_["hidden_size"]
