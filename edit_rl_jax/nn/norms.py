"""RMSNorm and GroupNorm, statistics in fp32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.nn.params import ONES, ZEROS, Init


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


class GroupNorm(nnx.Module):
    """Channels-last group norm over the image, statistics in fp32, result in x's dtype. Leaves: scale, bias [C]."""

    def __init__(self, dim: int, groups: int, *, eps: float, rngs: nnx.Rngs, init: Init):
        self.scale = init.base(rngs, (dim,), (None,), ONES)
        self.bias = init.base(rngs, (dim,), (None,), ZEROS)
        self.groups, self.eps = groups, eps

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = x.astype(jnp.float32).reshape(*x.shape[:3], self.groups, -1)
        y = y - jnp.mean(y, axis=(1, 2, 4), keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=(1, 2, 4), keepdims=True) + self.eps)
        scale, bias = (p[...].astype(jnp.float32)[None, None, None] for p in (self.scale, self.bias))
        return (y.reshape(x.shape) * scale + bias).astype(x.dtype)
