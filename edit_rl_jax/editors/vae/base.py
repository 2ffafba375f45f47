"""Shares what autoencoders of one image have in common: their face, attention over pixels, the way between sizes.

Images are [-1, 1], channels last. Latents are fp32 and scaled as each autoencoder's configuration says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.conv import Conv
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.weights import Naming, load


class ImageAttention(nnx.Module):
    """One head over all pixels; queries in blocks, so that large images fit."""

    BLOCK = 4096

    def attend(
        self, q: Float[Array, "B N C"], k: Float[Array, "B N C"], v: Float[Array, "B N C"]
    ) -> Float[Array, "B N C"]:
        B, N, C = q.shape
        q, k, v = (x[:, :, None] for x in (q, k, v))
        run = lambda q: attention(q, k, v, impl="xla")
        blocks = -(-N // self.BLOCK)
        if blocks == 1:
            return run(q)[:, :, 0]
        q = jnp.pad(q, ((0, 0), (0, -N % blocks), (0, 0), (0, 0))).reshape(B, blocks, -1, 1, C)
        return jax.lax.map(run, q.swapaxes(0, 1)).swapaxes(0, 1).reshape(B, -1, 1, C)[:, :N, 0]


class Mid(nnx.Module):
    """Resnet, attention (if any), resnet."""

    def __init__(self, resnet: Callable[[], nnx.Module], attend: Callable[[], nnx.Module] | None):
        self.resnets = nnx.List([resnet(), resnet()])
        self.attentions = nnx.List([attend()] if attend else [])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        x = self.resnets[0](x)
        for attend in self.attentions:
            x = attend(x)
        return self.resnets[1](x)


class Resample(nnx.Module):
    """Halves (stride 2, padded at the end) or doubles (nearest) the image around a convolution."""

    def __init__(self, d_in: int, d_out: int, up: bool, *, rngs: nnx.Rngs, init: Init):
        options = {} if up else {"stride": 2, "padding": ((0, 1), (0, 1))}
        self.conv = Conv(d_in, d_out, 3, rngs=rngs, init=init, **options)
        self.up = up

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        return self.conv(jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2) if self.up else x)


class ImageAutoencoder(nnx.Module):
    """The face of an autoencoder. One says `posterior`, `scaled`, `unscaled` and `decode_plain`.

    Attributes: cfg: has `downscale` (pixels a latent) and `channels` (of what `encode` gives); dtype: of activations.
    """

    cfg: Any
    dtype: Any

    def posterior(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w D"]:
        """Mean and log-variance, D = 2 C, of images in `dtype`."""
        raise NotImplementedError

    def scaled(self, z: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """Latents of the posterior as networks want them."""
        raise NotImplementedError

    def unscaled(self, z: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        """The inverse of `scaled`."""
        raise NotImplementedError

    def decode_plain(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        """As `decode`, of latents of the posterior as it is."""
        raise NotImplementedError

    def moments(self, pixels: Float[Array, "B H W c"]) -> tuple[Float[Array, "B h w C"], Float[Array, "B h w C"]]:
        """Mean and log-variance (clamped to [-30, 20]) of the posterior, fp32, not scaled. H and W must be multiples of
        `cfg.downscale`."""
        if any(n % self.cfg.downscale for n in pixels.shape[1:3]):
            raise ValueError(f"image {pixels.shape[1:3]} is not a multiple of {self.cfg.downscale} on both sides")
        h = self.posterior(pixels.astype(self.dtype))
        mean, log_variance = jnp.split(h.astype(jnp.float32), 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def encode(self, pixels: Float[Array, "B H W c"], keys: Array | None = None) -> Float[Array, "B h w C"]:
        """Latents: the posterior's mean, or with one PRNG key an image a sample of it."""
        mean, log_variance = self.moments(pixels)
        if keys is not None:
            noise = jax.vmap(lambda key: jax.random.normal(key, mean.shape[1:]))(keys)
            mean = mean + jnp.exp(0.5 * log_variance) * noise
        return self.scaled(mean)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        """Pixels in fp32, about [-1, 1], not clipped."""
        return self.decode_plain(self.unscaled(latents))


def from_folder(folder: str | Path, make: Callable[..., Any], config: Any, naming: Naming, **options: Any) -> Any:
    """The autoencoder of a diffusers folder; `options` are those of its class. Errors as `nn.weights.load`."""
    model_files.verify(folder)
    cfg = config.from_hf(folder)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(cfg, rngs=nnx.Rngs(0), **options)))
    return nnx.merge(graphdef, load(Path(folder), state, naming))
