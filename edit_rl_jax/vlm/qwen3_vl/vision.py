"""Vision tower of Qwen3-VL: patches -> merged tokens in the text width, and such a level from each tapped block."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import LayerNorm
from edit_rl_jax.nn.params import EMBED_INIT, Init
from edit_rl_jax.nn.rotary import vision_table
from edit_rl_jax.nn.stack import checkpointed, stack
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.qwen2_5_vl.vision import VisionAttention, attend_in
from edit_rl_jax.vlm.qwen3_vl.config import VisionConfig


class VisionMLP(nnx.Module):
    """fc2(gelu(fc1(x))), the tanh approximation, with biases."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs, init: Init):
        D, F = cfg.hidden_size, cfg.intermediate_size
        self.linear_fc1 = Linear(D, F, ("vision_embed", "vision_mlp"), rngs=rngs, init=init, bias=True)
        self.linear_fc2 = Linear(F, D, ("vision_mlp", "vision_embed"), rngs=rngs, init=init, bias=True)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        h = jax.nn.gelu(self.linear_fc1(x), approximate=True)
        return self.linear_fc2(shard(h, "batch", None, "vision_mlp"))


class VisionBlock(nnx.Module):
    """Pre-norm block with LayerNorms."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs, init: Init):
        self.norm1 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps, rngs=rngs, init=init)
        self.norm2 = LayerNorm(cfg.hidden_size, eps=cfg.layer_norm_eps, rngs=rngs, init=init)
        self.attn = VisionAttention(cfg, rngs=rngs, init=init)
        self.mlp = VisionMLP(cfg, rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B N D"], cos, sin, attend) -> Float[Array, "B N D"]:
        x = shard(x, "batch", None, None)
        x = x + self.attn(self.norm1(x), cos, sin, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Norm and concatenation of the patches of a merged token, two linears with exact GELU between.

    joined_norm: the norm is of the concatenated patches, else of each.
    """

    def __init__(self, cfg: VisionConfig, *, joined_norm: bool, rngs: nnx.Rngs, init: Init):
        D = cfg.hidden_size * cfg.merge_unit
        norm = D if joined_norm else cfg.hidden_size
        self.norm = LayerNorm(norm, eps=cfg.layer_norm_eps, rngs=rngs, init=init)
        self.linear_fc1 = Linear(D, D, ("vision_embed", "vision_mlp"), rngs=rngs, init=init, bias=True)
        self.linear_fc2 = Linear(D, cfg.out_hidden_size, ("vision_mlp", "embed"), rngs=rngs, init=init, bias=True)
        self.merge_unit, self.joined_norm = cfg.merge_unit, joined_norm

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B M out"]:
        B, N, D = x.shape
        joined = lambda y: y.reshape(B, N // self.merge_unit, D * self.merge_unit)
        x = self.norm(joined(x)) if self.joined_norm else joined(self.norm(x))
        return self.linear_fc2(jax.nn.gelu(self.linear_fc1(x), approximate=False))


class PositionTable(nnx.Module):
    """Learned positions of a square grid; leaf `table` [S S, D]. Not an `Embedding`: it has no vocabulary."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs, init: Init):
        shape = (cfg.num_position_embeddings, cfg.hidden_size)
        self.table = init.base(rngs, shape, (None, "vision_embed"), EMBED_INIT)

    def __call__(self, index: Int[Array, "B N 4"], weight: Float[Array, "B N 4"]) -> Float[Array, "B N D"]:
        """Sums four rows a patch, in fp32."""
        row = lambda k: self.table[...][index[..., k]].astype(jnp.float32) * weight[..., k, None]
        return row(0) + row(1) + row(2) + row(3)


class VisionTower(nnx.Module):
    """Patch embedding, learned positions, stacked blocks, merger, and a merger for each tapped block."""

    def __init__(
        self,
        cfg: VisionConfig,
        *,
        rngs: nnx.Rngs,
        init: Callable[[str], Init],
        remat: str,
        attention: str | None,
    ):
        plain, merger = dataclasses.replace(init("vision"), lora=None), PatchMerger
        axes, patches = (None, "vision_embed"), init("patches")
        self.patch_embed = Linear(cfg.patch_dim, cfg.hidden_size, axes, rngs=rngs, init=patches, bias=True)
        self.pos_embed = PositionTable(cfg, rngs=rngs, init=plain)
        self.blocks = stack(lambda r: VisionBlock(cfg, rngs=r, init=init("vision")), cfg.depth, rngs)
        self.merger = merger(cfg, joined_norm=False, rngs=rngs, init=init("merger"))
        deep = lambda r: merger(cfg, joined_norm=True, rngs=r, init=init("deepstack"))
        self.deepstack_merger_list = stack(deep, len(cfg.deepstack_visual_indexes), rngs)
        self.cfg, self.dtype, self.remat, self.attention = cfg, plain.dtype, remat, attention

    def __call__(
        self,
        patches: Float[Array, "B R P C"],
        patch_segments: Int[Array, "B R P"],
        patch_hw: Int[Array, "B R P 2"],
        pos_index: Int[Array, "B R P 4"],
        pos_weight: Float[Array, "B R P 4"],
    ) -> dict[str, Array]:
        """Merged tokens "merged" [B, R P / 4, D_text], and "deep" [B, R P / 4, L, D_text] of the tapped blocks, in slot
        order. See `vlm.rows` and `Config.vision_arrays` for the arrays.

        Attention is inside a frame. Padding slots give finite values that nothing may read.
        """
        (B, R, P, _), taps = patches.shape, self.cfg.deepstack_visual_indexes
        flat = lambda a: a.reshape(B, R * P, *a.shape[3:])
        x = self.patch_embed(flat(patches).astype(self.dtype))
        x = x + self.pos_embed(flat(pos_index), flat(pos_weight)).astype(x.dtype)
        x = shard(x, "batch", None, None)
        cos, sin = vision_table(flat(patch_hw), self.cfg.head_dim, self.cfg.rope_theta)
        attend = attend_in(P, patch_segments, self.attention)
        run = checkpointed(lambda x, block: block(x, cos, sin, attend), self.remat)
        place = np.minimum(np.searchsorted(taps, np.arange(self.cfg.depth)), len(taps) - 1)  # of the next tap
        hit = np.isin(np.arange(self.cfg.depth), taps)

        def body(carry, xs):
            # written in place: cutting the stack at the taps, or keeping every block's output, would copy either
            (x, seen), (block, at, hit) = carry, xs
            x = run(x, block)
            new = jnp.where(hit, x, seen[at])
            return (x, jax.lax.dynamic_update_index_in_dim(seen, new, at, 0)), None

        start = (x, shard(jnp.zeros((len(taps), *x.shape), x.dtype), None, "batch", None, None))
        (x, seen), _ = jax.lax.scan(body, start, (self.blocks, jnp.asarray(place, jnp.int32), jnp.asarray(hit)))
        one = checkpointed(lambda merger, x: merger(x), self.remat)
        _, deep = jax.lax.scan(lambda _, xs: (None, one(*xs)), None, (self.deepstack_merger_list, seen))
        return {"merged": self.merger(x), "deep": jnp.moveaxis(deep, 0, 2)}
