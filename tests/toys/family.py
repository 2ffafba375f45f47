"""A toy family of vision-language models from outside the package; as `model.kind` it is a kind of model too.

What differs from Qwen2.5-VL: patches of 4 x 4 pixels of one frame, learned positions instead of rotary tables in the
tower, no windows, positions of one axis, and a second level of image features that is added after the first decoder
layer.
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.nn import weights
from edit_rl_jax.nn.attention import attention as run_attention
from edit_rl_jax.nn.linear import Embedding, Linear
from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.rotary import axes_table, inverse_frequencies, rotate
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import VisionRows, vision_slots
from edit_rl_jax.vlm.trainable import *  # noqa: F403

family.FAMILIES["toy_vl"] = __name__
SIDE = 16  # rows and columns of the table of positions


@dataclasses.dataclass(frozen=True)
class Toy:
    """The architecture."""

    vocab_size: int = 320
    image_token_id: int = 260
    width: int = 32
    layers: int = 3
    heads: int = 4
    kv_heads: int = 2

    model_type = "toy_vl"
    processor = "Qwen2_5_VLProcessor"
    position_axes = 1
    spatial_merge_size = 2
    window_merged = 0  # no windows
    patch_dim = 3 * 4 * 4
    merge_unit = 4

    @property
    def shards(self):
        return self.heads, self.vocab_size

    def images(self, **settings):
        own = dict(min_pixels=64, max_pixels=32 * 32, mean=(0.5,) * 3, std=(0.5,) * 3)
        return ImageSettings(4, 1, 2, **own | settings)

    def positions(self, tokens, grids):
        wanted = sum(t * h * w // 4 for t, h, w in grids)
        if (tokens == self.image_token_id).sum() != wanted:
            raise ValueError(f"{wanted} image tokens wanted")
        return np.arange(len(tokens), dtype=np.int32)[None], len(tokens)

    def vision_rows(self, rows, slots):
        return VisionRows(rows, slots, self)

    def vision_slots(self, grid):
        return vision_slots(grid, self)

    def vision_arrays(self, layout):
        row, column = np.moveaxis(layout.patch_hw, -1, 0)
        return {"patch_segments": layout.patch_segments, "place": np.minimum(row, SIDE - 1) * SIDE + column % SIDE}

    def to_hf(self):
        return {"model_type": self.model_type, **dataclasses.asdict(self)}


class Layer(nnx.Module):
    def __init__(self, cfg, *, rngs, init):
        D, d = cfg.width, cfg.width // cfg.heads
        self.norm = RMSNorm(D, eps=1e-6, rngs=rngs, init=init)
        self.q = Linear(D, D, ("embed", ("heads", cfg.heads)), rngs=rngs, init=init)
        self.k = Linear(D, cfg.kv_heads * d, ("embed", ("kv_heads", cfg.kv_heads)), rngs=rngs, init=init)
        self.v = Linear(D, cfg.kv_heads * d, ("embed", ("kv_heads", cfg.kv_heads)), rngs=rngs, init=init)
        self.o = Linear(D, D, (("heads", cfg.heads), "embed"), rngs=rngs, init=init)
        self.up = Linear(D, 2 * D, ("embed", "mlp"), rngs=rngs, init=init)
        self.down = Linear(2 * D, D, ("mlp", "embed"), rngs=rngs, init=init)
        self.dim = d

    def __call__(self, x, cos, sin, attend, state):
        h = self.norm(x)
        q, k, v = (f(h).reshape(*x.shape[:2], -1, self.dim) for f in (self.q, self.k, self.v))
        out, state = attend(rotate(q, cos, sin), rotate(k, cos, sin), v, state)
        x = x + self.o(out.reshape(x.shape))
        return x + self.down(jax.nn.silu(self.up(x))), state


class Text(nnx.Module):
    def __init__(self, cfg, *, rngs, init, remat):
        self.embed_tokens = Embedding(cfg.vocab_size, cfg.width, rngs=rngs, init=init)
        self.layers = stack(lambda r: Layer(cfg, rngs=r, init=init), cfg.layers, rngs)
        self.norm = RMSNorm(cfg.width, eps=1e-6, rngs=rngs, init=init)
        self.cfg, self.remat = cfg, remat

    def __call__(self, x, positions, attend, states=None):
        (x, deep), dim = x, self.cfg.width // self.cfg.heads
        zeros = np.zeros(dim // 2, np.int32)
        cos, sin = axes_table(jnp.swapaxes(positions, 1, 2), zeros, inverse_frequencies(dim, 1e4))

        def body(x, xs):
            number, layer, state = xs
            x, state = layer(x, cos, sin, attend, state)
            return x if deep is None else x + jnp.where(number == 0, deep, 0), state

        x, states = scan_layers(body, x, (jnp.arange(self.cfg.layers), self.layers, states), remat=self.remat)
        return self.norm(x), states


class Tower(nnx.Module):
    def __init__(self, cfg, *, rngs, init):
        D = cfg.width
        self.patch_embed = Linear(cfg.patch_dim, D, (None, "vision_embed"), rngs=rngs, init=init)
        self.places = Embedding(SIDE**2, D, rngs=rngs, init=init)
        self.qkv = Linear(D, 3 * D, ("vision_embed", "vision_qkv"), rngs=rngs, init=init)
        self.merger = Linear(4 * D, D, ("vision_embed", "embed"), rngs=rngs, init=init)
        self.deep_merger = Linear(4 * D, D, ("vision_embed", "embed"), rngs=rngs, init=init)

    def __call__(self, patches, segments, place):
        (B, R, P, _), D = patches.shape, self.qkv.kernel.shape[0]
        x = self.patch_embed(patches.reshape(B * R, P, -1)) + self.places(place.reshape(B * R, P), patches.dtype)
        ids = segments.reshape(B * R, P)
        heads = [y.reshape(B * R, P, 4, -1) for y in self.qkv.split(x, 3)]
        y = x + run_attention(*heads, q_segments=ids, kv_segments=ids).reshape(x.shape)
        joined = lambda z: z.reshape(B, R * P // 4, 4 * D)
        return {"merged": self.merger(joined(y)), "deep": self.deep_merger(joined(x))}


class Model(nnx.Module):
    def __init__(self, cfg, *, rngs, lora=None, trainable="lora", dtype=jnp.float32, remat="none", attention=None):
        init = Init(jnp.dtype(dtype), trainable == "full", lora)
        self.visual = Tower(cfg, rngs=rngs, init=dataclasses.replace(init, lora=None))
        self.language_model = Text(cfg, rngs=rngs, init=init, remat=remat)
        self.cfg, self.dtype, self.attention = cfg, dtype, attention

    def image_features(self, arrays):
        return self.visual(arrays["patches"].astype(self.dtype), arrays["patch_segments"], arrays["place"])

    def embed(self, tokens, features=None, is_image=None):
        x = self.language_model.embed_tokens(tokens, self.dtype)
        if features is None:
            return shard(x, "batch", None, None), None
        here = is_image[..., None]
        return jnp.where(here, features["merged"], x), jnp.where(here, features["deep"], 0)

    def hidden(self, batch):
        at = jnp.maximum(batch["image_index"], 0)[..., None]
        seen = jax.tree.map(lambda f: jnp.take_along_axis(f, at, axis=1), self.image_features(batch))
        ids = batch["segments"]
        attend = lambda q, k, v, s: (run_attention(q, k, v, q_segments=ids, kv_segments=ids, causal=True), s)
        x = self.embed(batch["tokens"], seen, batch["image_index"] >= 0)
        return self.language_model(x, batch["positions"], attend)[0]

    def logits(self, h):
        return self.language_model.embed_tokens.attend(h)


def hf_name(path):
    *modules, leaf = path
    return ".".join(n for m in modules for n in ([m, "{}"] if m == "layers" else [m])) + "." + leaf


NAMING = weights.Naming(hf_name, stacked=("layers",))
LORA_PARTS, PUBLISHED, ENTRIES, model = {}, {}, 0, Model


def architecture(source):
    config, where = read_config(source)
    return Toy(**fields(Toy, config, f"{where}: ", {}))


def save(state, cfg, folder, *, dtype=None):
    return weights.save(state, cfg.to_hf(), folder, NAMING, dtype=dtype)
