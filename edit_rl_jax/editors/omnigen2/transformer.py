"""OmniGen2's diffusion transformer; attribute names are its checkpoint's.

Padding for a mesh: 21 query and 7 KV heads divide only by 3 and 7, and 2520 not by 16. `tensor_parallel` adds whole
groups (3 query heads, 1 KV head) up to a multiple, `hidden_multiple` channels to the residual stream. All such entries
of every weight, norm gains and adapters included, are zero. Then the padded activations are exactly zero, and so is
every gradient into padding: it passes a zero weight or gain on its way. Training keeps them zero; checkpoints never see
them.
"""

from __future__ import annotations

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from edit_rl_jax.editors.base import Condition
from edit_rl_jax.editors.omnigen2.config import REFERENCES, OmniGen2Config
from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import EMBED_INIT, Init, LoRAConfig
from edit_rl_jax.nn.rotary import rotate_pairs
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.sharding import shard

FREQUENCIES = 256
"""Sines and cosines of the time embedding."""


class Widths:
    """Padded sizes: `hidden` of the residual stream, `heads`, `kv_heads`."""

    def __init__(self, cfg: OmniGen2Config, tensor_parallel: int, hidden_multiple: int):
        up = lambda n, multiple: -(-n // multiple) * multiple
        self.hidden = up(cfg.hidden_size, hidden_multiple)
        self.kv_heads = up(cfg.num_kv_heads, tensor_parallel)
        self.heads = self.kv_heads * (cfg.num_attention_heads // cfg.num_kv_heads)


class Attention(nnx.Module):
    """Grouped-query attention with RMS norms of queries and keys and rotary positions, without biases."""

    def __init__(
        self, cfg: OmniGen2Config, widths: Widths, *, rngs: nnx.Rngs, init: Init, base: Init, impl: str | None
    ):
        D, d, real = widths.hidden, cfg.head_dim, cfg.hidden_size
        heads, kv_heads = ("heads", widths.heads), ("kv_heads", widths.kv_heads)
        kv = (real, cfg.num_kv_heads * d)
        self.to_q = Linear(D, widths.heads * d, ("embed", heads), rngs=rngs, init=init, valid=(real, real))
        self.to_k = Linear(D, widths.kv_heads * d, ("embed", kv_heads), rngs=rngs, init=init, valid=kv)
        self.to_v = Linear(D, widths.kv_heads * d, ("embed", kv_heads), rngs=rngs, init=init, valid=kv)
        self.to_out = nnx.List(
            [Linear(widths.heads * d, D, (heads, "embed"), rngs=rngs, init=init, valid=(real, real))]
        )
        # eps is fixed in the reference, whatever norm_eps
        self.norm_q, self.norm_k = (RMSNorm(d, eps=1e-5, rngs=rngs, init=base) for _ in range(2))
        self.head_dim, self.impl = d, impl

    def __call__(self, x: Float[Array, "B L D"], cos, sin, segments: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        split = lambda y, axis: shard(y.reshape(*y.shape[:2], -1, self.head_dim), "batch", None, axis, None)
        q, k, v = checkpoint_name((self.to_q(x), self.to_k(x), self.to_v(x)), "qkv")
        q = rotate_pairs(self.norm_q(split(q, "heads")), cos, sin)
        k = rotate_pairs(self.norm_k(split(k, "kv_heads")), cos, sin)
        out = attention(q, k, split(v, "kv_heads"), q_segments=segments, kv_segments=segments, impl=self.impl)
        out = shard(out, "batch", None, "heads", None).reshape(*x.shape[:2], -1)
        return checkpoint_name(self.to_out[0](out), "attended")


class FeedForward(nnx.Module):
    """linear_2(silu(linear_1 x) * linear_3 x), without biases."""

    def __init__(self, cfg: OmniGen2Config, widths: Widths, *, rngs: nnx.Rngs, init: Init):
        D, F, real = widths.hidden, cfg.ffn_size, cfg.hidden_size
        self.linear_1 = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init, valid=(real, F))
        self.linear_2 = Linear(F, D, ("mlp", "embed"), rngs=rngs, init=init, valid=(F, real))
        self.linear_3 = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init, valid=(real, F))

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        h = jax.nn.silu(checkpoint_name(self.linear_1(x), "gate")) * checkpoint_name(self.linear_3(x), "up")
        return checkpoint_name(self.linear_2(shard(h, "batch", None, "mlp")), "down")


class Modulation(nnx.Module):
    """RMS norm and, from the time embedding, a scale and a gate each for attention and feed-forward."""

    def __init__(self, cfg: OmniGen2Config, widths: Widths, *, rngs: nnx.Rngs, init: Init):
        D = cfg.hidden_size  # not padded: four pieces in a row
        self.linear = Linear(cfg.time_size, 4 * D, ("embed", None), rngs=rngs, init=init, bias=True)
        self.norm = RMSNorm(widths.hidden, eps=cfg.norm_eps, rngs=rngs, init=init, valid=D)
        self.pad = widths.hidden - D

    def __call__(self, temb: Float[Array, "B E"]) -> list[Float[Array, "B 1 D"]]:
        """1 + scale and tanh(gate) of attention, then of the feed-forward."""
        parts = jnp.split(self.linear(jax.nn.silu(temb)), 4, axis=-1)
        scale_a, gate_a, scale_m, gate_m = (jnp.pad(p, ((0, 0), (0, self.pad)))[:, None] for p in parts)
        return [1 + scale_a, jnp.tanh(gate_a), 1 + scale_m, jnp.tanh(gate_m)]


class Block(nnx.Module):
    """Sandwich-normed attention and feed-forward; modulated by time unless `modulation` is False."""

    def __init__(
        self, cfg: OmniGen2Config, widths: Widths, modulation: bool, *, rngs: nnx.Rngs, init: Init, base: Init, impl
    ):
        norm = lambda: RMSNorm(widths.hidden, eps=cfg.norm_eps, rngs=rngs, init=base, valid=cfg.hidden_size)
        self.attn = Attention(cfg, widths, rngs=rngs, init=init, base=base, impl=impl)
        self.feed_forward = FeedForward(cfg, widths, rngs=rngs, init=base)
        self.norm1 = Modulation(cfg, widths, rngs=rngs, init=base) if modulation else norm()
        self.norm2, self.ffn_norm1, self.ffn_norm2 = norm(), norm(), norm()

    def __call__(self, x: Float[Array, "B L D"], temb, cos, sin, segments) -> Float[Array, "B L D"]:
        x = shard(x, "batch", None, None)
        if isinstance(self.norm1, Modulation):
            scale_a, gate_a, scale_m, gate_m = self.norm1(temb)
            x = x + gate_a * self.norm2(self.attn(self.norm1.norm(x) * scale_a, cos, sin, segments))
            return x + gate_m * self.ffn_norm2(self.feed_forward(self.ffn_norm1(x) * scale_m))
        x = x + self.norm2(self.attn(self.norm1(x), cos, sin, segments))
        return x + self.ffn_norm2(self.feed_forward(self.ffn_norm1(x)))


class TimestepEmbedder(nnx.Module):
    """Sinusoids of the time (cosines first), two linears with SiLU between."""

    def __init__(self, cfg: OmniGen2Config, *, rngs: nnx.Rngs, init: Init):
        E = cfg.time_size
        self.linear_1 = Linear(FREQUENCIES, E, (None, "embed"), rngs=rngs, init=init, bias=True)
        self.linear_2 = Linear(E, E, ("embed", None), rngs=rngs, init=init, bias=True)
        self.scale = cfg.timestep_scale

    def __call__(self, t: Float[Array, B], dtype) -> Float[Array, "B E"]:
        half = FREQUENCIES // 2
        freq = np.exp(-math.log(10000) * np.arange(half, dtype=np.float32) / half)
        angles = self.scale * (t.astype(jnp.float32)[:, None] * freq[None])  # rounded in the reference's order
        x = jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1).astype(dtype)
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


class TimeCaptionEmbed(nnx.Module):
    """The time embedding, and norm and projection of text features."""

    def __init__(self, cfg: OmniGen2Config, widths: Widths, *, rngs: nnx.Rngs, init: Init):
        self.timestep_embedder = TimestepEmbedder(cfg, rngs=rngs, init=init)
        F, D = cfg.text_feat_dim, widths.hidden
        norm = RMSNorm(F, eps=cfg.norm_eps, rngs=rngs, init=init)
        project = Linear(F, D, (None, "embed"), rngs=rngs, init=init, bias=True, valid=(F, cfg.hidden_size))
        self.caption_embedder = nnx.List([norm, project])

    def caption(self, text: Float[Array, "B T F"]) -> Float[Array, "B T D"]:
        norm, project = self.caption_embedder
        return project(norm(text))


class NormOut(nnx.Module):
    """Layer norm without gain (eps 1e-6), scaled from the time embedding, and the projection to patches."""

    def __init__(self, cfg: OmniGen2Config, widths: Widths, *, rngs: nnx.Rngs, init: Init):
        D, real = widths.hidden, cfg.hidden_size
        self.linear_1 = Linear(cfg.time_size, real, ("embed", None), rngs=rngs, init=init, bias=True)
        self.linear_2 = Linear(
            D, cfg.out_dim, ("embed", None), rngs=rngs, init=init, bias=True, valid=(real, cfg.out_dim)
        )
        self.real, self.pad = real, D - real

    def __call__(self, x: Float[Array, "B N D"], temb: Float[Array, "B E"]) -> Float[Array, "B N C"]:
        scale = 1 + self.linear_1(jax.nn.silu(temb))[:, None]
        x32 = x[..., : self.real].astype(jnp.float32)
        x32 = x32 - jnp.mean(x32, axis=-1, keepdims=True)
        x32 = x32 * jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + 1e-6)
        return self.linear_2(jnp.pad(x32.astype(x.dtype) * scale, ((0, 0), (0, 0), (0, self.pad))))


@functools.cache
def _tables(dim: int, length: int) -> tuple[np.ndarray, np.ndarray]:
    angles = np.arange(length)[:, None] / 10000.0 ** (np.arange(0, dim, 2) / dim)[None]
    return np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


def rotary_tables(cfg: OmniGen2Config, positions: Int[Array, "B L 3"]):
    """cos and sin [B, L, head_dim / 2] in fp32, one run of columns an axis; angles in float64, as in the reference.

    Positions beyond `axes_lens` read the last entry.
    """
    cos, sin = [], []
    for axis, (dim, length) in enumerate(zip(cfg.axes_dim_rope, cfg.axes_lens)):
        tables = _tables(dim, length)
        at = jnp.minimum(positions[..., axis], length - 1)
        cos.append(jnp.asarray(tables[0])[at])
        sin.append(jnp.asarray(tables[1])[at])
    return jnp.concatenate(cos, axis=-1), jnp.concatenate(sin, axis=-1)


class OmniGen2Transformer(nnx.Module):
    """The velocity network. `nnx.eval_shape(lambda: OmniGen2Transformer(...))` gives it abstract.

    Args:
      lora: adapters on to_q, to_k, to_v and to_out of all blocks, or None.
      trainable: "lora" (base Frozen in `dtype`) or "full" (base Trainable in fp32, cast to `dtype` at use).
      dtype: of activations and frozen weights. remat: policy name of nn/stack.py.
      attention: implementation (nn/attention.py), None = by platform.
      tensor_parallel: size of the mesh's tensor axis, heads are padded to divide over it.
      hidden_multiple: the residual stream is padded to a multiple (16 lets 2520 divide over 16 devices).
    """

    def __init__(
        self,
        cfg: OmniGen2Config,
        *,
        rngs: nnx.Rngs,
        lora: LoRAConfig | None = None,
        trainable: str = "lora",
        dtype=jnp.float32,
        remat: str = "nothing_saveable",
        attention: str | None = None,
        tensor_parallel: int = 1,
        hidden_multiple: int = 1,
    ):
        if trainable not in ("lora", "full"):
            raise ValueError(f"trainable {trainable!r} is not 'lora' or 'full'")
        dtype = jnp.dtype(dtype)
        widths = Widths(cfg, tensor_parallel, hidden_multiple)
        base, adapted = (Init(dtype, trainable == "full", a) for a in (None, lora))
        D, C, real = widths.hidden, cfg.token_dim, cfg.hidden_size
        embed = lambda: Linear(C, D, (None, "embed"), rngs=rngs, init=base, bias=True, valid=(C, real))
        self.x_embedder, self.ref_image_patch_embedder = embed(), embed()
        self.time_caption_embed = TimeCaptionEmbed(cfg, widths, rngs=rngs, init=base)
        make = lambda r, modulation: Block(cfg, widths, modulation, rngs=r, init=adapted, base=base, impl=attention)
        modulated, plain = (lambda r, m=m: make(r, m) for m in (True, False))
        self.noise_refiner = stack(modulated, cfg.num_refiner_layers, rngs)
        self.ref_image_refiner = stack(modulated, cfg.num_refiner_layers, rngs)
        self.context_refiner = stack(plain, cfg.num_refiner_layers, rngs)
        self.layers = stack(modulated, cfg.num_layers, rngs)
        self.norm_out = NormOut(cfg, widths, rngs=rngs, init=base)
        self.image_index_embedding = base.base(rngs, (REFERENCES, D), (None, "embed"), EMBED_INIT, (REFERENCES, real))
        self.cfg, self.dtype, self.remat = cfg, dtype, remat

    def __call__(
        self, latents: Float[Array, "B N C"], t: Float[Array, B], condition: Condition
    ) -> Float[Array, "B N out"]:
        """dx/dt in fp32, zero at padding. condition: `layout.Layout`'s arrays, `text` [B, T, F] features and, where S
        is not 0, `references` [B, S, C] latents."""
        c, dtype = condition, self.dtype
        segments = {k: c[f"{k}_segments"] for k in ("text", "reference", "noise")}
        T, S, N = (x.shape[1] for x in segments.values())
        # Padding may hold anything, NaN included, so it is emptied before it is read.
        clean = lambda x, ids: jnp.where((ids > 0)[..., None], x, jnp.zeros_like(x)).astype(dtype)
        positions = [c[f"{k}_positions"] for k in segments]
        cos, sin = rotary_tables(self.cfg, jnp.concatenate(positions, axis=1))
        temb = self.time_caption_embed.timestep_embedder(t, dtype)

        def run(blocks, x, ids, at):
            body = lambda x, block: (block(x, temb, cos[:, at], sin[:, at], ids), None)
            return scan_layers(body, x, blocks, remat=self.remat)[0]

        text = self.time_caption_embed.caption(clean(c["text"], segments["text"]))
        parts = [run(self.context_refiner, text, segments["text"], slice(0, T))]
        if S:
            references = self.ref_image_patch_embedder(clean(c["references"], segments["reference"]))
            index = self.image_index_embedding[...][jnp.maximum(segments["reference"] - 1, 0)]
            references = references + index.astype(dtype)
            parts.append(run(self.ref_image_refiner, references, segments["reference"], slice(T, T + S)))
        noise = self.x_embedder(clean(latents, segments["noise"]))
        parts.append(run(self.noise_refiner, noise, segments["noise"], slice(T + S, None)))

        joint = jnp.concatenate(list(segments.values()), axis=1)
        x = run(self.layers, jnp.concatenate(parts, axis=1), jnp.minimum(joint, 1), slice(None))
        out = self.norm_out(x[:, -N:], temb).astype(jnp.float32)
        return jnp.where((segments["noise"] > 0)[..., None], out, jnp.float32(0))
