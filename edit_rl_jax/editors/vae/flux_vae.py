"""The autoencoder of FLUX.1 (diffusers' AutoencoderKL), channels last; attribute names are its checkpoint's.

Images are [-1, 1]. Latents are fp32, shifted and scaled: (z - shift_factor) * scaling_factor.
"""

from __future__ import annotations

import dataclasses
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
from edit_rl_jax.nn.model_files import checked, fields, read_config
from edit_rl_jax.nn.norms import GroupNorm
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.weights import Naming

EPS = 1e-6


_BOUNDS = {
    "block_out_channels": (1, 2**16),
    "layers_per_block": (1, 64),
    "scaling_factor": (1e-6, 1e6),
    "shift_factor": (-1e6, 1e6),
    "patch": (1, 1024),
    "patch_channels": (0, 2**20),
}


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """Sizes; defaults are FLUX.1's. Hashable, static under jit.

    patch, patch_channels: not diffusers'; where set, patch x patch latents become one of so many channels (`Patches`).
    """

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    block_out_channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    norm_num_groups: int = 32
    scaling_factor: float = 0.3611
    shift_factor: float = 0.1159
    sample_size: int = 1024
    use_quant_conv: bool = False
    use_post_quant_conv: bool = False
    mid_block_add_attention: bool = True
    patch: int = 1
    patch_channels: int = 0

    @property
    def downscale(self) -> int:
        """Pixels a latent."""
        return 2 ** (len(self.block_out_channels) - 1) * self.patch

    @property
    def channels(self) -> int:
        """Of the latents that `Autoencoder.encode` gives."""
        return self.patch_channels or self.latent_channels

    @classmethod
    def from_hf(cls, source: Any) -> VAEConfig:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or not implemented here."""
        source, where = read_config(source)
        kinds = ("down_block_types", "up_block_types")
        lists = [checked(source.get(k), "tuple[str, ...] | None", f"{where}: {k}") or () for k in kinds]
        blocks = {name for names in lists for name in names}
        wrong = {k: source[k] for k in ("act_fn", "latents_mean", "latents_std") if source.get(k) not in (None, "silu")}
        if wrong or not blocks <= {"DownEncoderBlock2D", "UpDecoderBlock2D"}:
            raise WeightsError(f"{where}: not implemented: {wrong or sorted(blocks)}")
        # where diffusers' defaults are not FLUX.1's
        given = {"use_quant_conv": True, "use_post_quant_conv": True, "scaling_factor": 0.18215, **source}
        given["shift_factor"] = 0.0 if given.get("shift_factor") is None else given["shift_factor"]
        cfg = cls(**fields(cls, given, f"{where}: ", _BOUNDS))
        if not 1 <= len(cfg.block_out_channels) <= 8 or any(c % cfg.norm_num_groups for c in cfg.block_out_channels):
            raise WeightsError(f"{where}: block_out_channels are 1 to 8 multiples of norm_num_groups")
        return cfg

    def to_hf(self) -> dict[str, Any]:
        """The config.json that diffusers reads."""
        n = len(self.block_out_channels)
        kinds = {"down_block_types": ["DownEncoderBlock2D"] * n, "up_block_types": ["UpDecoderBlock2D"] * n}
        found = {"_class_name": "AutoencoderKL", "act_fn": "silu", **kinds, **dataclasses.asdict(self)}
        own = () if self.patch_channels else ("patch", "patch_channels")
        return {k: v for k, v in found.items() if k not in own}


class Resnet(nnx.Module):
    """Two norm-SiLU-convolutions beside a shortcut."""

    def __init__(self, d_in: int, d_out: int, groups: int, *, rngs: nnx.Rngs, init: Init):
        self.norm1 = GroupNorm(d_in, groups, eps=EPS, rngs=rngs, init=init)
        self.conv1 = Conv(d_in, d_out, 3, rngs=rngs, init=init)
        self.norm2 = GroupNorm(d_out, groups, eps=EPS, rngs=rngs, init=init)
        self.conv2 = Conv(d_out, d_out, 3, rngs=rngs, init=init)
        self.conv_shortcut = Conv(d_in, d_out, 1, rngs=rngs, init=init) if d_in != d_out else None

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W D"]:
        h = self.conv1(jax.nn.silu(self.norm1(x)))
        h = self.conv2(jax.nn.silu(self.norm2(h)))
        return h + (x if self.conv_shortcut is None else self.conv_shortcut(x))


class Attention(ImageAttention):
    """Attention over all pixels, with a shortcut."""

    def __init__(self, dim: int, groups: int, *, rngs: nnx.Rngs, init: Init):
        self.group_norm = GroupNorm(dim, groups, eps=EPS, rngs=rngs, init=init)
        make = lambda: Linear(dim, dim, (None, None), rngs=rngs, init=init, bias=True)
        self.to_q, self.to_k, self.to_v, self.to_out = make(), make(), make(), nnx.List([make()])

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B H W C"]:
        h = self.group_norm(x).reshape(x.shape[0], -1, x.shape[3])
        out = self.attend(self.to_q(h), self.to_k(h), self.to_v(h))
        return x + self.to_out[0](out).reshape(x.shape)


def _mid(cfg: VAEConfig, rngs: nnx.Rngs, init: Init) -> Mid:
    D, G = cfg.block_out_channels[-1], cfg.norm_num_groups
    attend = lambda: Attention(D, G, rngs=rngs, init=init)
    return Mid(lambda: Resnet(D, D, G, rngs=rngs, init=init), attend if cfg.mid_block_add_attention else None)


class Level(nnx.Module):
    """The resnets of one resolution, and the way to the next."""

    def __init__(self, dims: Sequence[int], groups: int, resample: bool, up: bool, *, rngs: nnx.Rngs, init: Init):
        pairs = zip(dims, dims[1:])
        self.resnets = nnx.List([Resnet(a, b, groups, rngs=rngs, init=init) for a, b in pairs])
        last = nnx.List([Resample(dims[-1], dims[-1], up, rngs=rngs, init=init)] if resample else [])
        self.upsamplers, self.downsamplers = (last, nnx.List([])) if up else (nnx.List([]), last)

    def __call__(self, x: Float[Array, "B H W C"]) -> Float[Array, "B h w D"]:
        for part in (*self.resnets, *self.downsamplers, *self.upsamplers):
            x = part(x)
        return x


class Encoder(nnx.Module):
    """Images to mean and log-variance, before the quantising convolution."""

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, init: Init):
        dims, G, n = cfg.block_out_channels, cfg.norm_num_groups, cfg.layers_per_block
        self.conv_in = Conv(cfg.in_channels, dims[0], 3, rngs=rngs, init=init)
        level = lambda i, a, b: Level([a] + [b] * n, G, i + 1 < len(dims), False, rngs=rngs, init=init)
        self.down_blocks = nnx.List([level(i, a, b) for i, (a, b) in enumerate(zip((dims[0], *dims), dims))])
        self.mid_block = _mid(cfg, rngs, init)
        self.conv_norm_out = GroupNorm(dims[-1], G, eps=EPS, rngs=rngs, init=init)
        self.conv_out = Conv(dims[-1], 2 * cfg.latent_channels, 3, rngs=rngs, init=init)

    def __call__(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w C"]:
        x = self.conv_in(x)
        for block in self.down_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(self.mid_block(x))))


class Decoder(nnx.Module):
    """Latents to images."""

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, init: Init):
        dims, G, n = cfg.block_out_channels[::-1], cfg.norm_num_groups, cfg.layers_per_block + 1
        self.conv_in = Conv(cfg.latent_channels, dims[0], 3, rngs=rngs, init=init)
        self.mid_block = _mid(cfg, rngs, init)
        level = lambda i, a, b: Level([a] + [b] * n, G, i + 1 < len(dims), True, rngs=rngs, init=init)
        self.up_blocks = nnx.List([level(i, a, b) for i, (a, b) in enumerate(zip((dims[0], *dims), dims))])
        self.conv_norm_out = GroupNorm(dims[-1], G, eps=EPS, rngs=rngs, init=init)
        self.conv_out = Conv(dims[-1], cfg.out_channels, 3, rngs=rngs, init=init)

    def __call__(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        x = self.mid_block(self.conv_in(z))
        for block in self.up_blocks:
            x = block(x)
        return self.conv_out(jax.nn.silu(self.conv_norm_out(x)))


class Patches(nnx.Module):
    """patch x patch latents as one of fewer channels, linearly: their principal components, each divided by the square
    root of its standard deviation.

    Neighbouring latents are much alike. A small network learns edits many times faster where its tokens do not say
    everything over and over, and where detail is not as small beside the noise.
    """

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, init: Init):
        whole = cfg.patch**2 * cfg.latent_channels
        linear = lambda n, m: Linear(n, m, (None, None), rngs=rngs, init=init, bias=True)
        self.down, self.up = linear(whole, cfg.patch_channels), linear(cfg.patch_channels, whole)
        self.size = cfg.patch

    def cut(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W D"]:
        """Patches as they are, D = patch^2 C."""
        B, h, w, C = z.shape
        p = self.size
        return z.reshape(B, h // p, p, w // p, p, C).swapaxes(2, 3).reshape(B, h // p, w // p, -1)

    def encode(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W K"]:
        """K = patch_channels, in z's dtype."""
        return self.down(self.cut(z))

    def decode(self, y: Float[Array, "B H W K"]) -> Float[Array, "B h w C"]:
        """The nearest latents to what `encode` was given."""
        B, H, W, _ = y.shape
        p = self.size
        z = self.up(y).reshape(B, H, W, p, p, -1).swapaxes(2, 3)
        return z.reshape(B, H * p, W * p, -1)

    @staticmethod
    def fit(patches: Float[np.ndarray, "n D"], channels: int) -> dict[str, Float[np.ndarray, ...]]:
        """Weights "down.kernel", "down.bias", "up.kernel" and "up.bias" (fp32) from many more patches than D. What
        `encode` gives then has mean 0 and, over all channels, variance 1."""
        mean = patches.mean(0)
        variance, basis = np.linalg.eigh(np.cov(patches - mean, rowvar=False))
        spread = np.sqrt(np.maximum(variance[::-1][:channels], 1e-12))  # of the components, the widest first
        down = basis[:, ::-1][:, :channels] / np.sqrt(spread * spread.mean())
        up = (basis[:, ::-1][:, :channels] * np.sqrt(spread * spread.mean())).T
        found = {"down.kernel": down, "down.bias": -mean @ down, "up.kernel": up, "up.bias": mean}
        return {k: v.astype(np.float32) for k, v in found.items()}


class Autoencoder(ImageAutoencoder):
    """AutoencoderKL. trainable: "none" (all Frozen in `dtype`) or "full" (Trainable fp32); dtype: of activations."""

    def __init__(self, cfg: VAEConfig, *, rngs: nnx.Rngs, trainable: str = "none", dtype=jnp.float32):
        if trainable not in ("none", "full"):
            raise ValueError(f"trainable {trainable!r} is not 'none' or 'full'")
        init, L = Init(jnp.dtype(dtype), trainable == "full"), cfg.latent_channels
        self.encoder, self.decoder = Encoder(cfg, rngs=rngs, init=init), Decoder(cfg, rngs=rngs, init=init)
        self.quant_conv = Conv(2 * L, 2 * L, 1, rngs=rngs, init=init) if cfg.use_quant_conv else None
        self.post_quant_conv = Conv(L, L, 1, rngs=rngs, init=init) if cfg.use_post_quant_conv else None
        self.patches = Patches(cfg, rngs=rngs, init=Init(init.dtype)) if cfg.patch_channels else None
        self.cfg, self.dtype = cfg, init.dtype

    def posterior(self, x: Float[Array, "B H W c"]) -> Float[Array, "B h w D"]:
        h = self.encoder(x)
        return h if self.quant_conv is None else self.quant_conv(h)

    def encode(self, pixels: Float[Array, "B H W c"], keys: Array | None = None) -> Float[Array, "B h w C"]:
        """See `ImageAutoencoder.encode`; as patches, if there are any."""
        z = super().encode(pixels, keys)
        return z if self.patches is None else self.patches.encode(z).astype(jnp.float32)

    def decode(self, latents: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        return super().decode(latents if self.patches is None else self.patches.decode(latents))

    def scaled(self, z: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return (z - self.cfg.shift_factor) * self.cfg.scaling_factor

    def unscaled(self, z: Float[Array, "B h w C"]) -> Float[Array, "B h w C"]:
        return z / self.cfg.scaling_factor + self.cfg.shift_factor

    def decode_plain(self, z: Float[Array, "B h w C"]) -> Float[Array, "B H W c"]:
        """As `decode`, of latents of the posterior as it is, not shifted, scaled or made patches."""
        z = z.astype(self.dtype)
        z = z if self.post_quant_conv is None else self.post_quant_conv(z)
        return self.decoder(z).astype(jnp.float32)


def _name(path: Sequence[str]) -> str:
    return ".".join([*path[:-1], "bias" if path[-1] == "bias" else "weight"])


NAMING = Naming(_name, stem="diffusion_pytorch_model")


def from_folder(folder: str | Path, **options: Any) -> Autoencoder:
    """The autoencoder of a diffusers folder; `options` are Autoencoder's. Errors as `nn.weights.load`."""
    return base.from_folder(folder, Autoencoder, VAEConfig, NAMING, **options)
