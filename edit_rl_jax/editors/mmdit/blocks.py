"""The blocks of MMDiT networks; attribute names are those of FLUX in diffusers, but for those in `weights.RENAMED`.

A double block has weights of its own for text and for images, which attend together; a single block has one set for
both. Text stands first in every joint sequence. All modulation is by one vector a row, `temb`.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.ad_checkpoint import checkpoint_name
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import LayerNorm, RMSNorm
from edit_rl_jax.nn.params import Init, LoRAConfig
from edit_rl_jax.nn.rotary import rotate_pairs
from edit_rl_jax.sharding import shard

EPS = 1e-6
FREQUENCIES = 256
"""Sines and cosines of a number."""
TARGETS = ("attention", "feed_forward", "all")
"""What a LoRA adapts: the attention's linears; the feed-forwards' too (with `proj_mlp`); every linear."""


Rotary = tuple[Float[Array, "#B L half"], Float[Array, "#B L half"]]
"""cos and sin of each token of the joint sequence."""


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Of one network: width of the residual stream, heads, feed-forward; `impl` of attention."""

    hidden: int
    heads: int
    ffn: int
    impl: str | None = None

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads


@dataclasses.dataclass(frozen=True)
class Inits:
    """How the linears of attention, of feed-forwards, and all others are made."""

    attention: Init
    feed_forward: Init
    other: Init

    @classmethod
    def of(cls, dtype: Any, full: bool, lora: LoRAConfig | None, targets: str) -> Inits:
        """lora: of what `targets` names. Raises ValueError for another name."""
        if targets not in TARGETS:
            raise ValueError(f"LoRA targets {targets!r} are not one of {TARGETS}")
        reach = TARGETS.index(targets)
        return cls(*(Init(dtype, full, lora if reach >= i else None) for i in range(3)))


class Modulation(nnx.Module):
    """`count` vectors of a row from its `temb`: Linear(silu(temb)) in equal chunks."""

    def __init__(self, sizes: Sizes, count: int, *, rngs: nnx.Rngs, init: Init):
        D = sizes.hidden
        self.linear = Linear(D, count * D, ("embed", "mlp"), rngs=rngs, init=init, bias=True)
        self.count = count

    def __call__(self, temb: Float[Array, "B D"]) -> list[Float[Array, "B 1 D"]]:
        return jnp.split(self.linear(jax.nn.silu(temb))[:, None], self.count, axis=-1)


def plain_norm(sizes: Sizes, rngs: nnx.Rngs) -> LayerNorm:
    """Makes the layer norm that modulation follows: without gain and bias."""
    return LayerNorm(sizes.hidden, eps=EPS, rngs=rngs, init=Init(), affine=False)


class FeedForward(nnx.Module):
    """down(gelu(up x)), the GELU by tanh."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, init: Init):
        D, F = sizes.hidden, sizes.ffn
        self.up = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=init, bias=True)
        self.down = Linear(F, D, ("mlp", "embed"), rngs=rngs, init=init, bias=True)

    def __call__(self, x: Float[Array, "B L D"]) -> Float[Array, "B L D"]:
        h = jax.nn.gelu(checkpoint_name(self.up(x), "up"), approximate=True)
        return checkpoint_name(self.down(shard(h, "batch", None, "mlp")), "down")


class Attention(nnx.Module):
    """Multi-head attention with RMS norms of queries and keys and rotary positions.

    joint: with weights of its own for the text; else one set for all tokens, and no output projection.
    """

    def __init__(self, sizes: Sizes, joint: bool, *, rngs: nnx.Rngs, inits: Inits):
        D, heads = sizes.hidden, ("heads", sizes.heads)
        into = lambda: Linear(D, D, ("embed", heads), rngs=rngs, init=inits.attention, bias=True)
        out = lambda: Linear(D, D, (heads, "embed"), rngs=rngs, init=inits.attention, bias=True)
        norm = lambda: RMSNorm(sizes.head_dim, eps=EPS, rngs=rngs, init=dataclasses.replace(inits.other, lora=None))
        self.to_q, self.to_k, self.to_v, self.norm_q, self.norm_k = into(), into(), into(), norm(), norm()
        if joint:
            self.add_q_proj, self.add_k_proj, self.add_v_proj = into(), into(), into()
            self.norm_added_q, self.norm_added_k, self.to_out, self.to_add_out = norm(), norm(), out(), out()
        self.sizes = sizes

    def image(self, x: Float[Array, "B L D"]) -> list[Float[Array, "B L H d"]]:
        """Normed queries and keys, and values, of the first set of weights."""
        q, k, v = (self._heads(p(x)) for p in (self.to_q, self.to_k, self.to_v))
        return [self.norm_q(q), self.norm_k(k), v]

    def text(self, x: Float[Array, "B L D"]) -> list[Float[Array, "B L H d"]]:
        """The same of the text's weights."""
        q, k, v = (self._heads(p(x)) for p in (self.add_q_proj, self.add_k_proj, self.add_v_proj))
        return [self.norm_added_q(q), self.norm_added_k(k), v]

    def attend(self, q, k, v, rotary: Rotary, segments: Int[Array, "B L"]) -> Float[Array, "B L D"]:
        q, k = (rotate_pairs(x, *rotary) for x in (q, k))
        out = attention(q, k, v, q_segments=segments, kv_segments=segments, impl=self.sizes.impl)
        return shard(out, "batch", None, "heads", None).reshape(*q.shape[:2], -1)

    def _heads(self, y: Float[Array, "B L D"]) -> Float[Array, "B L H d"]:
        y = checkpoint_name(y, "qkv")
        return shard(y.reshape(*y.shape[:2], -1, self.sizes.head_dim), "batch", None, "heads", None)


class DoubleBlock(nnx.Module):
    """Attention of text and images together, then a feed-forward each."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits):
        modulation = lambda: Modulation(sizes, 6, rngs=rngs, init=inits.other)
        self.norm1, self.norm1_context = modulation(), modulation()
        self.attn = Attention(sizes, True, rngs=rngs, inits=inits)
        feed_forward = lambda: FeedForward(sizes, rngs=rngs, init=inits.feed_forward)
        self.ff, self.ff_context = feed_forward(), feed_forward()
        self.norm = plain_norm(sizes, rngs)

    def __call__(
        self,
        text: Float[Array, "B T D"],
        image: Float[Array, "B S D"],
        temb: Float[Array, "B D"],
        rotary: Rotary,
        segments: Int[Array, "B L"],
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B S D"]]:
        text, image = (shard(x, "batch", None, None) for x in (text, image))
        return self.joined(text, image, self.norm1_context(temb), self.norm1(temb), rotary, segments)

    def joined(self, text, image, of_text, of_image, rotary: Rotary, segments):
        """The block by its modulations, six each: [B, 1, D], or one a token."""
        (shift_t, scale_t, gate_t, *second_t), (shift_i, scale_i, gate_i, *second_i) = of_text, of_image
        both = zip(
            self.attn.text(self.norm(text) * (1 + scale_t) + shift_t),
            self.attn.image(self.norm(image) * (1 + scale_i) + shift_i),
        )
        out = self.attn.attend(*(jnp.concatenate(x, axis=1) for x in both), rotary, segments)
        T = text.shape[1]
        text = text + gate_t * checkpoint_name(self.attn.to_add_out(out[:, :T]), "attended")
        image = image + gate_i * checkpoint_name(self.attn.to_out(out[:, T:]), "attended")
        return self._second(text, self.ff_context, second_t), self._second(image, self.ff, second_i)

    def _second(self, x, feed_forward: FeedForward, modulation):
        shift, scale, gate = modulation
        return x + gate * feed_forward(self.norm(x) * (1 + scale) + shift)


class SingleBlock(nnx.Module):
    """Attention and feed-forward side by side, of all tokens alike."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits):
        D, F = sizes.hidden, sizes.ffn
        self.modulation = Modulation(sizes, 3, rngs=rngs, init=inits.other)
        self.attn = Attention(sizes, False, rngs=rngs, inits=inits)
        self.proj_mlp = Linear(D, F, ("embed", "mlp"), rngs=rngs, init=inits.feed_forward, bias=True)
        self.proj_out = Linear(D + F, D, ("mlp", "embed"), rngs=rngs, init=inits.other, bias=True)
        self.norm = plain_norm(sizes, rngs)

    def __call__(
        self, x: Float[Array, "B L D"], temb: Float[Array, "B D"], rotary: Rotary, segments: Int[Array, "B L"]
    ) -> Float[Array, "B L D"]:
        x = shard(x, "batch", None, None)
        shift, scale, gate = self.modulation(temb)
        h = self.norm(x) * (1 + scale) + shift
        inner = jax.nn.gelu(checkpoint_name(self.proj_mlp(h), "up"), approximate=True)
        out = self.attn.attend(*self.attn.image(h), rotary, segments)
        return x + gate * checkpoint_name(self.proj_out(jnp.concatenate([out, inner], axis=-1)), "down")


class Output(nnx.Module):
    """The last norm, modulated by (scale, shift), in diffusers' order."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, init: Init):
        self.modulation, self.norm = Modulation(sizes, 2, rngs=rngs, init=init), plain_norm(sizes, rngs)

    def __call__(self, x: Float[Array, "B N D"], temb: Float[Array, "B D"]) -> Float[Array, "B N D"]:
        scale, shift = self.modulation(temb)
        return self.norm(x) * (1 + scale) + shift


class Embedder(nnx.Module):
    """linear_2(silu(linear_1 x)): of sinusoids, or of a pooled text."""

    def __init__(self, d_in: int, sizes: Sizes, *, rngs: nnx.Rngs, init: Init):
        D = sizes.hidden
        self.linear_1 = Linear(d_in, D, (None, "embed"), rngs=rngs, init=init, bias=True)
        self.linear_2 = Linear(D, D, ("embed", None), rngs=rngs, init=init, bias=True)

    def __call__(self, x: Float[Array, "B in"]) -> Float[Array, "B D"]:
        return self.linear_2(jax.nn.silu(self.linear_1(x)))


def sinusoids(numbers: Float[Array, " B"], late: bool = False) -> Float[Array, "B 256"]:
    """Cosines, then sines, of 1000 x numbers in fp32, rounded as FLUX does it.

    late: as Qwen-Image, which multiplies by 1000 last.
    """
    half = FREQUENCIES // 2
    exponents = -math.log(10000) * np.arange(half, dtype=np.float32) / half
    freq = np.exp(exponents.astype(np.float64)).astype(np.float32)[None]  # NumPy's fp32 exp is off by a bit at times
    x = numbers.astype(jnp.float32)[:, None]
    angles = 1000.0 * (x * freq) if late else (1000.0 * x) * freq
    return jnp.concatenate([jnp.cos(angles), jnp.sin(angles)], axis=-1)
