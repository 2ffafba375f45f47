"""RMSNorm."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.nn.params import ONES, Init


class RMSNorm(nnx.Module):
    """x / rms(x) * scale, statistics and product in fp32, result in x's dtype. Leaf: scale [D]."""

    def __init__(self, dim: int, *, eps: float, rngs: nnx.Rngs, init: Init):
        self.scale = init.base(rngs, (dim,), (None,), ONES)
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        x32 = x.astype(jnp.float32)
        inv = jax.lax.rsqrt(jnp.mean(x32 * x32, axis=-1, keepdims=True) + self.eps)
        scale = self.scale[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
        return (x32 * inv * scale).astype(x.dtype)
