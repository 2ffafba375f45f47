"""RMSNorm and GroupNorm, statistics in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.nn.params import ONES, Init


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, statistics and product in fp32, result in x's dtype. Leaf: scale [D].

    `valid`: channels that are not padding; the others must be zero and do not count in the mean.
    """

    def __init__(self, dim: int, *, eps: float, rngs: nnx.Rngs, init: Init, valid: int | None = None):
        self.scale = init.base(rngs, (dim,), (None,), ONES, (valid or dim,))
        self.eps, self.share = eps, dim / (valid or dim)

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        x32 = x.astype(jnp.float32)
        inv = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) * self.share + self.eps)
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (x32 * inv * scale).astype(x.dtype)
