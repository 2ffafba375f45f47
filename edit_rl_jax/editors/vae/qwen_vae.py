"""Qwen-Image's autoencoder (diffusers' AutoencoderKLQwenImage, made for videos as Wan 2.1's) for one image, channels
last; attribute names are its checkpoint's but for `conv` (`resample.1` there).

For one frame it is 2-D, exactly: before the frame its causal convolutions see zeros alone, so of a kernel only the last
slice in time counts, and the convolutions in time alone (`time_conv`) begin with the second frame. That is what is
loaded: 35 % of the released weights. The rest cannot be made again, so the weights are not written anew: whoever saves
an editor takes its autoencoder's file along as it is (`save(files_from=)`).

Images are [-1, 1]. Latents are fp32, with released means taken off and divided by released deviations, by channel.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from edit_rl_jax.editors.vae import base
from edit_rl_jax.editors.vae.base import ImageAttention, ImageAutoencoder, Mid, Resample
from edit_rl_jax.nn.conv import Conv
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.params import ONES, Init
from edit_rl_jax.nn.safetensors_io import Tensor, WeightsError
from edit_rl_jax.nn.weights import Naming

CLASS = "AutoencoderKLQwenImage"
_MEAN = (
    -0.7571, -0.7089, -0.9113, 0.1075, -0.1745, 0.9653, -0.1517, 1.5508,
    0.4134, -0.0715, 0.5517, -0.3632, -0.1922, -0.9497, 0.2503, -0.2921,
)  # fmt: skip
_STD = (
    2.8184, 1.4541, 2.3275, 2.6558, 1.2196, 1.7708, 2.6052, 2.0743,
    3.2687, 2.1526, 2.8652, 1.5579, 1.6382, 1.1253, 2.8251, 1.9160,
)  # fmt: skip
_BOUNDS = {
    "base_dim": (2, 2**16),
    "dim_mult": (1, 64),
    "num_res_blocks": (1, 64),
    "latents_mean": (-1e6, 1e6),
    "latents_std": (1e-6, 1e6),
}
_FIXED = {"_class_name": CLASS, "attn_scales": [], "dropout": 0.0}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes; defaults are the released ones. Hashable, static under jit. temperal_downsample (diffusers' spelling) says
    which levels have a convolution in time: of no effect for one image."""

    base_dim: int = 96
    z_dim: int = 16
    dim_mult: tuple[int, ...] = (1, 2, 4, 4)
    num_res_blocks: int = 2
    temperal_downsample: tuple[bool, ...] = (False, True, True)
    input_channels: int = 3
    latents_mean: tuple[float, ...] = _MEAN
    latents_std: tuple[float, ...] = _STD

    @property
    def downscale(self) -> int:
        """Pixels a latent."""
        return 2 ** (len(self.dim_mult) - 1)

    @property
    def channels(self) -> int:
        """Of the latents that `Autoencoder.encode` gives."""
        return self.z_dim

    @property
    def dims(self) -> tuple[int, ...]:
        """Channels of the levels, the widest image first."""
        return tuple(self.base_dim * m for m in self.dim_mult)

    @classmethod
    def from_hf(cls, source: Any) -> VAEConfig:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or not implemented here."""
        source, where = read_config(source)
        if wrong := {k: source[k] for k, v in _FIXED.items() if source.get(k, v) != v}:
            raise WeightsError(f"{where}: not implemented: {wrong}")
        cfg = cls(**fields(cls, source, f"{where}: ", _BOUNDS))
        if len(cfg.latents_mean) != cfg.z_dim or len(cfg.latents_std) != cfg.z_dim:
            raise WeightsError(f"{where}: latents_mean and latents_std are {cfg.z_dim} numbers each, as z_dim says")
        if not 1 <= len(cfg.dim_mult) <= 8 or len(cfg.temperal_downsample) != len(cfg.dim_mult) - 1:
            raise WeightsError(f"{where}: dim_mult has 1 to 8 levels, temperal_downsample one entry fewer")
        if any(d % 2 for d in cfg.dims[1:]):
            raise WeightsError(f"{where}: base_dim times dim_mult is odd: channels cannot be halved")
        return cfg

    def to_hf(self) -> dict[str, Any]:
        """The config.json that diffusers reads."""
        own = dataclasses.asdict(self)
        return _FIXED | {k: list(v) if isinstance(v, tuple) else v for k, v in own.items()}


class ChannelNorm(nnx.Module):
    """x / |x| * sqrt(C) * gamma over the channels, |x| at least 1e-12, in fp32, result in x's dtype. Leaf: gamma [C].

    As an RMSNorm whose epsilon is as good as none."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs, init: Init):
        self.gamma = init.base(rngs, (dim,), (None,), ONES)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        y = x.astype(jnp.float32)
        y = y * jax.lax.rsqrt(jnp.maximum(jnp.sum(y * y, axis=-1, keepdims=True), 1e-24)) * x.shape[-1] ** 0.5
        return (y * self.gamma[...].astype(jnp.float32)[None, None, None]).astype(x.dtype)


class Resnet(nnx.Module):
    """Two norm-SiLU-convolutions beside a shortcut."""

    def __init__(self, d_in: int, d_out: int, *, rngs: nnx.Rngs, init: Init):
        self.norm1 = ChannelNorm(d_in, rngs=rngs, init=init)
        self.conv1 = Conv(d_in, d_out, 3, rngs=rngs, init=init)
        self.norm2 = ChannelNorm(d_out, rngs=rngs, init=init)
        self.conv2 = Conv(d_out, d_out, 3, rngs=rngs, init=init)
        self.conv_shortcut = Conv(d_in, d_out, 1, rngs=rngs, init=init) if d_in != d_out else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(ImageAttention):
    """Attention over all pixels, with a shortcut."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs, init: Init):
        self.norm = ChannelNorm(dim, rngs=rngs, init=init)
        make = lambda out: Linear(dim, out, (None, None), rngs=rngs, init=init, bias=True)
        self.to_qkv, self.proj = make(3 * dim), make(dim)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        h = self.norm(x).reshape(x.shape[0], -1, x.shape[3])
        return x + self.proj(self.attend(*self.to_qkv.split(h, 3))).reshape(x.shape)


def _mid(dim: int, rngs: nnx.Rngs, init: Init) -> Mid:
    return Mid(lambda: Resnet(dim, dim, rngs=rngs, init=init), lambda: Attention(dim, rngs=rngs, init=init))


class Encoder(nnx.Module):
    """Images to mean and log-variance, before the quantising convolution; one flat list of resnets and halvings."""

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, init: Init):
        dims, blocks = cfg.dims, []
        self.conv_in = Conv(cfg.input_channels, cfg.base_dim, 3, rngs=rngs, init=init)
        for i, (a, b) in enumerate(zip((cfg.base_dim, *dims), dims)):
            blocks += [Resnet(b if j else a, b, rngs=rngs, init=init) for j in range(cfg.num_res_blocks)]
            blocks += [Resample(b, b, up=False, rngs=rngs, init=init)] if i + 1 < len(dims) else []
        self.down_blocks = nnx.List(blocks)
        self.mid_block = _mid(dims[-1], rngs, init)
        self.norm_out = ChannelNorm(dims[-1], rngs=rngs, init=init)
        self.conv_out = Conv(dims[-1], 2 * cfg.z_dim, 3, rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w C"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(self.mid_block(x))))


class UpBlock(nnx.Module):
    """The resnets of one resolution, and a doubling that halves the channels."""

    def __init__(self, d_in: int, d_out: int, resnets: int, up: bool, *, rngs: nnx.Rngs, init: Init):
        self.resnets = nnx.List([Resnet(d_out if j else d_in, d_out, rngs=rngs, init=init) for j in range(resnets)])
        self.upsamplers = nnx.List([Resample(d_out, d_out // 2, up=True, rngs=rngs, init=init)] if up else [])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        for part in (*self.resnets, *self.upsamplers):
            x = part(x)
        return x


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, init: Init):
        dims, n = cfg.dims[::-1], cfg.num_res_blocks + 1
        self.conv_in = Conv(cfg.z_dim, dims[0], 3, rngs=rngs, init=init)
        self.mid_block = _mid(dims[0], rngs, init)
        entering = (dims[0], *(d // 2 for d in dims[:-1]))
        block = lambda i, a, b: UpBlock(a, b, n, i + 1 < len(dims), rngs=rngs, init=init)
        self.up_blocks = nnx.List([block(i, a, b) for i, (a, b) in enumerate(zip(entering, dims))])
        self.norm_out = ChannelNorm(dims[-1], rngs=rngs, init=init)
        self.conv_out = Conv(dims[-1], cfg.input_channels, 3, rngs=rngs, init=init)

    def __call__(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.norm_out(x)))


class Autoencoder(ImageAutoencoder):
    """AutoencoderKLQwenImage of one frame, Frozen in `dtype`, which is that of activations too.

    `decode` does not clip, as diffusers' whole images are and its tiled ones are not."""

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, dtype=jnp.float32):
        init = Init(jnp.dtype(dtype))
        self.encoder, self.decoder = Encoder(cfg, rngs=rngs, init=init), Decoder(cfg, rngs=rngs, init=init)
        self.quant_conv = Conv(2 * cfg.z_dim, 2 * cfg.z_dim, 1, rngs=rngs, init=init)
        self.post_quant_conv = Conv(cfg.z_dim, cfg.z_dim, 1, rngs=rngs, init=init)
        self.cfg, self.dtype = cfg, init.dtype

    def posterior(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w D"]:
        return self.quant_conv(self.encoder(x))

    def scaled(self, z: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return (z - _channels(self.cfg.latents_mean)) / _channels(self.cfg.latents_std)

    def unscaled(self, z: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return z * _channels(self.cfg.latents_std) + _channels(self.cfg.latents_mean)

    def decode_plain(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        return self.decoder(self.post_quant_conv(z.astype(self.dtype))).astype(jnp.float32)


def _channels(values: Sequence[float]) -> Float[Array, "1 1 1 C"]:
    return jnp.asarray(values, jnp.float32)[None, None, None]


@dataclasses.dataclass(frozen=True)
class LastSlice(Tensor):
    """A kernel [out, in, h, w]: the last slice in time of the file's, which has the shape `whole`."""

    whole: tuple[int, ...] = ()

    def read(self, index=()) -> np.ndarray:
        index = (*index, *[slice(None)] * (4 - len(index)))
        stored = Tensor(self.name, self.file, self.whole, self.dtype, self.offset)
        return stored.read((*index[:2], -1, *index[2:]))


def image_tensors(tensors: list[Tensor]) -> list[Tensor]:
    """Gives the tensors of a checkpoint as one image needs them: of cubic kernels the last slice in time, 1 x 1 kernels
    of attention as matrices, gains as vectors. Convolutions in time, and what has another shape, stay as they are."""
    out = []
    for t in tensors:
        if t.shape[2:] in ((3, 3, 3), (1, 1, 1)) and t.name.endswith(".weight"):
            t = LastSlice(t.name, t.file, (*t.shape[:2], *t.shape[3:]), t.dtype, t.offset, whole=t.shape)
        elif t.shape[2:] == (1, 1) and ".attentions." in t.name:
            t = dataclasses.replace(t, shape=t.shape[:2])
        elif t.name.endswith(".gamma") and t.shape[1:] in ((1, 1), (1, 1, 1)):
            t = dataclasses.replace(t, shape=t.shape[:1])
        out.append(t)
    return out


def _name(path: Sequence[str]) -> str:
    leaf = {"kernel": "weight"}.get(path[-1], path[-1])
    return re.sub(r"((down_blocks|upsamplers)\.\d+)\.conv\.", r"\1.resample.1.", ".".join([*path[:-1], leaf]))


NAMING = Naming(
    _name,
    stem="diffusion_pytorch_model",
    convert=image_tensors,
    optional=r"(encoder\.down_blocks\.\d+|decoder\.up_blocks\.\d+\.upsamplers\.0)\.time_conv\.(weight|bias)$",
    unwritten="the autoencoder's file holds more than one image needs: take it along (`files_from`)",
)


def from_folder(folder: str | Path, **options: Any) -> Autoencoder:
    """The autoencoder of a diffusers folder; `options` are Autoencoder's. Errors as `nn.weights.load`."""
    return base.from_folder(folder, Autoencoder, VAEConfig, NAMING, **options)
