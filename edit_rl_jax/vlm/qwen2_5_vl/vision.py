"""Vision tower: patches in window order -> merged tokens in the text width."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
from flax import nnx
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.rotary import rotate, vision_table
from edit_rl_jax.nn.stack import scan_pattern, stack
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.qwen2_5_vl.config import VisionConfig
from edit_rl_jax.vlm.qwen_config import TowerSizes


class VisionAttention(nnx.Module):
    """Fused q, k, v projection, rotary, attention by the caller's `attend(q, k, v)`, output projection."""

    def __init__(self, cfg: TowerSizes, *, rngs: nnx.Rngs, init: Init):
        D = cfg.hidden_size
        # The fused output is stored whole: a cut of [3 D] over devices would not fall between q, k and v.
        self.qkv = Linear(D, 3 * D, ("vision_embed", "vision_qkv"), rngs=rngs, init=init, bias=True)
        self.proj = Linear(D, D, (("vision_heads", cfg.num_heads), "vision_embed"), rngs=rngs, init=init, bias=True)
        self.num_heads = cfg.num_heads

    def __call__(self, x: Float[Array, "B N D"], cos, sin, attend) -> Float[Array, "B N D"]:
        B, N, D = x.shape
        heads = [
            shard(y.reshape(B, N, self.num_heads, -1), "batch", None, "vision_heads", None)
            for y in self.qkv.split(x, 3)
        ]
        out = attend(rotate(heads[0], cos, sin), rotate(heads[1], cos, sin), heads[2])
        return self.proj(out.reshape(B, N, D))


class VisionMLP(nnx.Module):
    """down(silu(gate(x)) * up(x)), with biases."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs, init: Init):
        D, F = cfg.hidden_size, cfg.intermediate_size
        self.gate_proj = Linear(D, F, ("vision_embed", "vision_mlp"), rngs=rngs, init=init, bias=True)
        self.up_proj = Linear(D, F, ("vision_embed", "vision_mlp"), rngs=rngs, init=init, bias=True)
        self.down_proj = Linear(F, D, ("vision_mlp", "vision_embed"), rngs=rngs, init=init, bias=True)

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        h = jax.nn.silu(self.gate_proj(x)) * self.up_proj(x)
        return self.down_proj(shard(h, "batch", None, "vision_mlp"))


class VisionBlock(nnx.Module):
    """Pre-norm block; whether it attends in windows or over the image is the caller's `attend`."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs, init: Init):
        self.norm1 = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, rngs=rngs, init=init)
        self.norm2 = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, rngs=rngs, init=init)
        self.attn = VisionAttention(cfg, rngs=rngs, init=init)
        self.mlp = VisionMLP(cfg, rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B N D"], cos, sin, attend) -> Float[Array, "B N D"]:
        x = shard(x, "batch", None, None)
        x = x + self.attn(self.norm1(x), cos, sin, attend)
        return x + self.mlp(self.norm2(x))


class PatchMerger(nnx.Module):
    """Norm, concatenate the patches of a merged token, two linears with exact GELU between."""

    def __init__(self, cfg: VisionConfig, *, rngs: nnx.Rngs, init: Init):
        D = cfg.hidden_size * cfg.merge_unit
        self.ln_q = RMSNorm(cfg.hidden_size, eps=cfg.rms_norm_eps, rngs=rngs, init=init)
        self.mlp_0 = Linear(D, D, ("vision_embed", "vision_mlp"), rngs=rngs, init=init, bias=True)
        self.mlp_2 = Linear(D, cfg.out_hidden_size, ("vision_mlp", "embed"), rngs=rngs, init=init, bias=True)
        self.merge_unit = cfg.merge_unit

    def __call__(self, x: Float[Array, "B N D"]) -> Float[Array, "B M out"]:
        B, N, D = x.shape
        x = self.ln_q(x).reshape(B, N // self.merge_unit, D * self.merge_unit)
        return self.mlp_2(jax.nn.gelu(self.mlp_0(x), approximate=False))


def attend_in(length: int, segments: Int[Array, "B R P"], impl: str | None) -> Callable[..., Array]:
    """Makes the attention of flattened slots: inside each `length` of them, and there inside a segment."""

    def attend(q, k, v):
        fold = lambda a: a.reshape(-1, length, *a.shape[2:])
        ids = segments.reshape(-1, length)
        out = attention(fold(q), fold(k), fold(v), q_segments=ids, kv_segments=ids, impl=impl)
        return out.reshape(q.shape)

    return attend


class VisionTower(nnx.Module):
    """Patch embedding, stacked blocks, merger."""

    def __init__(
        self,
        cfg: VisionConfig,
        *,
        rngs: nnx.Rngs,
        init: Init,
        merger_init: Init,
        patch_init: Init | None = None,  # default: `init` without LoRA
        remat: str,
        attention: str | None,
    ):
        plain = patch_init or dataclasses.replace(init, lora=None)
        self.patch_embed = Linear(cfg.patch_dim, cfg.hidden_size, (None, "vision_embed"), rngs=rngs, init=plain)
        self.blocks = stack(lambda r: VisionBlock(cfg, rngs=r, init=init), cfg.depth, rngs)
        self.merger = PatchMerger(cfg, rngs=rngs, init=merger_init)
        self.cfg, self.dtype, self.remat, self.attention = cfg, init.dtype, remat, attention

    def __call__(
        self,
        patches: Float[Array, "B R P C"],
        patch_segments: Int[Array, "B R P"],
        window_segments: Int[Array, "B R P"],
        patch_hw: Int[Array, "B R P 2"],
    ) -> Float[Array, "B M out"]:
        """Merged tokens [B, R P / 4, D_text] in slot order. See `vlm.rows` for the arrays.

        Window blocks attend inside dense groups of W slots of the flattened R P, full blocks inside a vision row.
        Padding slots give finite values that nothing may read.
        """
        B, R, P, _ = patches.shape
        W = self.cfg.window_tokens
        if R * P % W:
            raise ValueError(f"{R} vision rows x {P} slots are not whole groups of {W}")
        x = shard(self.patch_embed(patches.reshape(B, R * P, -1).astype(self.dtype)), "batch", None, None)
        cos, sin = vision_table(patch_hw.reshape(B, R * P, 2), self.cfg.head_dim, self.cfg.rope_theta)

        # Dense windows of 64 need no kernel on any platform.
        attends = {False: attend_in(W, window_segments, "xla"), True: attend_in(P, patch_segments, self.attention)}
        bodies = {full: lambda x, block, a=a: block(x, cos, sin, a) for full, a in attends.items()}
        x = scan_pattern(bodies, self.cfg.is_full, x, self.blocks, remat=self.remat)
        return self.merger(x)
