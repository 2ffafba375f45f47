"""RMSNorm, LayerNorm and GroupNorm, statistics in fp32."""

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


class LayerNorm(nnx.Module):
    """(x - mean) / std, statistics in fp32, result in x's dtype; times `scale` [D] plus `bias` [D] where `affine`."""

    def __init__(self, dim: int, *, eps: float, rngs: nnx.Rngs, init: Init, affine: bool = True):
        self.scale = init.base(rngs, (dim,), (None,), ONES) if affine else None
        self.bias = init.base(rngs, (dim,), (None,), ZEROS) if affine else None
        self.eps = eps

    def __call__(self, x: Float[Array, "*batch dim"]) -> Float[Array, "*batch dim"]:
        y = x.astype(jnp.float32)
        y = y - jnp.mean(y, axis=-1, keepdims=True)
        y = y * jax.lax.rsqrt(jnp.mean(y * y, axis=-1, keepdims=True) + self.eps)
        if self.scale is not None:
            wide = lambda p: p[...].astype(jnp.float32).reshape((1,) * (x.ndim - 1) + (-1,))
            y = y * wide(self.scale) + wide(self.bias)
        return y.astype(x.dtype)


class GroupNorm(nnx.Module):
    """Channels-last group norm over the image, statistics in fp32, result in x's dtype. Leaves: scale, bias [C]."""

    def __init__(self, dim: int, groups: int, *, eps: float, rngs: nnx.Rngs, init: Init):
        self.scale = init.base(rngs, (dim,), (None,), ONES)
        self.bias = init.base(rngs, (dim,), (None,), ZEROS)
        self.groups, self.eps = groups, eps

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = x.astype(jnp.float32)
        y = y - self._group_mean(y)
        y = y * jax.lax.rsqrt(self._group_mean(y * y) + self.eps)
        scale, bias = (p[...].astype(jnp.float32)[None, None, None] for p in (self.scale, self.bias))
        return (y * scale + bias).astype(x.dtype)

    def _group_mean(self, x: Float[Array, "B H W C"]) -> Float[Array, "B 1 1 C"]:
        """Of each channel's group; channels first, because few channels a group make poor vectors."""
        mean = jnp.mean(x, axis=(1, 2)).reshape(len(x), self.groups, -1)
        each = jnp.broadcast_to(jnp.mean(mean, axis=2, keepdims=True), mean.shape)
        return each.reshape(len(x), 1, 1, -1)
