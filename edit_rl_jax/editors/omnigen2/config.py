"""Configuration of OmniGen2's diffusion transformer, read from and written to its `transformer/config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.safetensors_io import WeightsError

REFERENCES = 5
"""Reference images at most: rows of the image-index embedding."""


_BOUNDS = {
    **dict.fromkeys(("num_layers", "num_refiner_layers"), (1, 1024)),
    **dict.fromkeys(("num_attention_heads", "num_kv_heads", "axes_dim_rope"), (1, 4096)),
    "patch_size": (1, 1024),
    "ffn_dim_multiplier": (1e-3, 1e3),
    "norm_eps": (0, 1),
    "timestep_scale": (1e-6, 1e9),
}


@dataclasses.dataclass(frozen=True)
class OmniGen2Config:
    """The diffusion transformer; defaults are those of the released weights. Hashable, static under jit."""

    patch_size: int = 2
    in_channels: int = 16
    out_channels: int | None = None
    hidden_size: int = 2520
    num_layers: int = 32
    num_refiner_layers: int = 2
    num_attention_heads: int = 21
    num_kv_heads: int = 7
    multiple_of: int = 256
    ffn_dim_multiplier: float | None = None
    norm_eps: float = 1e-5
    axes_dim_rope: tuple[int, ...] = (40, 40, 40)
    axes_lens: tuple[int, ...] = (10000, 10000, 10000)
    text_feat_dim: int = 2048
    timestep_scale: float = 1000.0

    def __post_init__(self):
        if self.hidden_size % self.num_attention_heads or sum(self.axes_dim_rope) != self.head_dim:
            raise ValueError(
                f"axes_dim_rope {self.axes_dim_rope} must sum to {self.hidden_size / self.num_attention_heads}"
            )
        if self.num_attention_heads % self.num_kv_heads:
            raise ValueError(f"{self.num_attention_heads} heads do not divide into {self.num_kv_heads} KV heads")
        if any(d % 2 for d in self.axes_dim_rope) or len(self.axes_dim_rope) != 3 or len(self.axes_lens) != 3:
            raise ValueError(f"axes_dim_rope {self.axes_dim_rope} must be 3 even numbers, axes_lens {self.axes_lens} 3")

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def ffn_size(self) -> int:
        """4 x hidden, scaled by `ffn_dim_multiplier`, rounded up to `multiple_of`."""
        inner = int((self.ffn_dim_multiplier or 1.0) * 4 * self.hidden_size)
        return -(-inner // self.multiple_of) * self.multiple_of

    @property
    def time_size(self) -> int:
        """Width of the time embedding."""
        return min(self.hidden_size, 1024)

    @property
    def token_dim(self) -> int:
        """Numbers of a token: a patch of the latent image."""
        return self.patch_size**2 * self.in_channels

    @property
    def out_dim(self) -> int:
        return self.patch_size**2 * (self.out_channels or self.in_channels)

    @classmethod
    def from_hf(cls, source: Any) -> OmniGen2Config:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or a key that this model does not know."""
        source, where = read_config(source)
        known = {f.name for f in dataclasses.fields(cls)}
        ignored = {
            "use_fused_rms_norm",
            "use_fused_swiglu",
            "dtype",
            "torch_dtype",
        }  # of kernels and files, not of the model
        given = {k: v for k, v in source.items() if not k.startswith("_") and k not in ignored}
        if unknown := given.keys() - known:
            raise WeightsError(f"{where}: unknown keys of OmniGen2's config: {sorted(unknown)}")
        try:
            return cls(**fields(cls, given, f"{where}: ", _BOUNDS))
        except WeightsError:
            raise
        except ValueError as e:
            raise WeightsError(f"{where}: {e}") from None

    def to_hf(self) -> dict[str, Any]:
        """The config.json that diffusers reads."""
        return {"_class_name": "OmniGen2Transformer2DModel", **dataclasses.asdict(self)}
