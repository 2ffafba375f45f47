"""Configuration of FLUX.1's transformer, read from and written to its `transformer/config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.safetensors_io import WeightsError

_BOUNDS = dict.fromkeys(("num_layers", "num_single_layers", "num_attention_heads", "axes_dims_rope"), (1, 1024))
_IGNORED = {"dtype", "torch_dtype", "patch_size", "out_channels"}


@dataclasses.dataclass(frozen=True)
class FluxConfig:
    """The transformer; defaults are those of FLUX.1-Kontext-dev. Hashable, static under jit."""

    in_channels: int = 64
    num_layers: int = 19
    num_single_layers: int = 38
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 4096
    pooled_projection_dim: int = 768
    guidance_embeds: bool = True
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)

    def __post_init__(self):
        axes = self.axes_dims_rope
        if len(axes) != 3 or any(d % 2 for d in axes) or sum(axes) != self.attention_head_dim:
            raise ValueError(f"axes_dims_rope {axes} must be 3 even numbers that sum to {self.attention_head_dim}")
        if self.in_channels % 4:
            raise ValueError(f"in_channels {self.in_channels} are no patches of 2 x 2 latents")

    @property
    def hidden_size(self) -> int:
        return self.num_attention_heads * self.attention_head_dim

    @classmethod
    def from_hf(cls, source: Any) -> FluxConfig:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or a key that this model does not know."""
        source, where = read_config(source)
        given = {k: v for k, v in source.items() if not k.startswith("_") and k not in _IGNORED}
        if unknown := given.keys() - {f.name for f in dataclasses.fields(cls)}:
            raise WeightsError(f"{where}: unknown keys of FLUX's config: {sorted(unknown)}")
        # where diffusers' defaults are not Kontext's
        found = {"guidance_embeds": False, **fields(cls, given, f"{where}: ", _BOUNDS)}
        if source.get("patch_size", 1) != 1 or source.get("out_channels") not in (None, found.get("in_channels", 64)):
            raise WeightsError(f"{where}: not implemented: patch_size other than 1, or out_channels of its own")
        try:
            return cls(**found)
        except ValueError as e:
            raise WeightsError(f"{where}: {e}") from None

    def to_hf(self) -> dict[str, Any]:
        """The config.json that diffusers reads."""
        return {"_class_name": "FluxTransformer2DModel", "patch_size": 1, **dataclasses.asdict(self)}
