"""Step1X-Edit's connector: refines the language model's states by the time, and makes one vector of their mean.

Attribute names are its checkpoint's, but for those in `weights.RENAMED`. It depends on the time, so it runs at every
step, in every branch.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Bool, Float

from edit_rl_jax.editors.mmdit.blocks import EPS, FREQUENCIES, Embedder, Inits, Modulation, Sizes, sinusoids
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import LayerNorm
from edit_rl_jax.nn.stack import scan_layers, stack
from edit_rl_jax.sharding import shard

SCALE_FACTOR = -0.91
"""What v1.0's scale starts training from."""


class Block(nnx.Module):
    """x + gate attention(norm x), then x + gate feed_forward(norm x); one query set, no rotary positions."""

    def __init__(self, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits):
        D, F, heads, init = sizes.hidden, sizes.ffn, ("heads", sizes.heads), inits.other
        linear = lambda a, b, axes: Linear(a, b, axes, rngs=rngs, init=init, bias=True)
        self.norm1, self.norm2 = (LayerNorm(D, eps=EPS, rngs=rngs, init=init) for _ in range(2))
        self.self_attn_qkv = linear(D, 3 * D, ("embed", ("heads", 3 * sizes.heads)))
        self.self_attn_proj = linear(D, D, (heads, "embed"))
        self.fc1, self.fc2 = linear(D, F, ("embed", "mlp")), linear(F, D, ("mlp", "embed"))
        self.modulation = Modulation(sizes, 2, rngs=rngs, init=init)
        self.sizes = sizes

    def __call__(
        self, x: Float[Array, "B T D"], c: Float[Array, "B D"], mask: Bool[Array, "B T"]
    ) -> Float[Array, "B T D"]:
        x = shard(x, "batch", None, None)
        first, second = self.modulation(c)
        heads = lambda y: shard(y.reshape(*y.shape[:2], -1, self.sizes.head_dim), "batch", None, "heads", None)
        q, k, v = (heads(y) for y in self.self_attn_qkv.split(self.norm1(x), 3))
        ids = mask.astype(jnp.int32)
        out = attention(q, k, v, q_segments=ids, kv_segments=ids, impl=self.sizes.impl)
        out = jnp.where(mask[..., None, None], out, v[:, :1])  # upstream's padding sees the first token, nothing else
        x = x + first * self.self_attn_proj(shard(out, "batch", None, "heads", None).reshape(x.shape))
        inner = jax.nn.silu(self.fc1(self.norm2(x)))
        return x + second * self.fc2(shard(inner, "batch", None, "mlp"))


class TokenRefiner(nnx.Module):
    """The blocks."""

    def __init__(self, sizes: Sizes, depth: int, *, rngs: nnx.Rngs, inits: Inits):
        self.blocks = stack(lambda r: Block(sizes, rngs=r, inits=inits), depth, rngs)

    def __call__(self, x: Float[Array, "B T D"], c: Float[Array, "B D"], mask: Bool[Array, "B T"], remat: str):
        return scan_layers(lambda x, block: (block(x, c, mask), None), x, self.blocks, remat=remat)[0]


class SingleTokenRefiner(nnx.Module):
    """The blocks with what comes before them."""

    def __init__(self, cfg: Step1XConfig, sizes: Sizes, *, rngs: nnx.Rngs, inits: Inits):
        F = cfg.connector_in_channels
        self.input_embedder = Linear(F, sizes.hidden, (None, "embed"), rngs=rngs, init=inits.other, bias=True)
        self.t_embedder = Embedder(FREQUENCIES, sizes, rngs=rngs, init=inits.other)
        self.c_embedder = Embedder(F, sizes, rngs=rngs, init=inits.other)
        self.individual_token_refiner = TokenRefiner(sizes, cfg.connector_depth, rngs=rngs, inits=inits)


class Connector(nnx.Module):
    """The connector."""

    def __init__(self, cfg: Step1XConfig, *, impl: str | None, rngs: nnx.Rngs, inits: Inits):
        F, D = cfg.connector_in_channels, cfg.joint_attention_dim
        sizes = Sizes(D, cfg.connector_heads_num, 4 * D, impl)
        self.S = SingleTokenRefiner(cfg, sizes, rngs=rngs, inits=inits)
        out = cfg.pooled_projection_dim
        self.global_proj_out = Linear(F, out, ("embed", None), rngs=rngs, init=inits.other, bias=True)
        scale = jax.nn.initializers.constant(SCALE_FACTOR)
        self.scale_factor = inits.other.base(rngs, (1,), (None,), scale) if cfg.connector_scale_factor else None

    def __call__(
        self, x: Float[Array, "B T F"], mask: Bool[Array, "B T"], t: Float[Array, " B"], remat: str
    ) -> tuple[Float[Array, "B T D"], Float[Array, "B P"]]:
        """Tokens and their vector, of the language model's states; mask: which are text. What is padding in x comes out
        as something, which the transformer reads."""
        dtype, S = x.dtype, self.S
        x = jnp.where(mask[..., None], x, jnp.zeros_like(x))
        count = jnp.maximum(jnp.sum(mask.astype(jnp.float32), axis=1), 1.0)
        mean = jnp.sum(x.astype(jnp.float32), axis=1) / count[:, None]
        pooled = mean if self.scale_factor is None else mean * (1 + self.scale_factor[...].astype(jnp.float32)[None])
        c = S.t_embedder(sinusoids(1 - t).astype(dtype)) + S.c_embedder(mean.astype(dtype))
        out = S.individual_token_refiner(S.input_embedder(x), c, mask, remat)
        return out, self.global_proj_out(pooled.astype(dtype))
