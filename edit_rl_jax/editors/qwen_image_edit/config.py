"""Configuration of Qwen-Image-Edit's transformer, read from and written to its `transformer/config.json`."""

from __future__ import annotations

import dataclasses
from typing import Any

from edit_rl_jax.nn.model_files import fields, read_config
from edit_rl_jax.nn.safetensors_io import WeightsError

_BOUNDS = dict.fromkeys(("num_layers", "num_attention_heads", "axes_dims_rope"), (1, 1024))
_IGNORED = {"dtype", "torch_dtype", "pooled_projection_dim"}
_FIXED = {"patch_size": 2, "guidance_embeds": False, "use_additional_t_cond": False, "use_layer3d_rope": False}
"""Keys whose other values are of other models."""


@dataclasses.dataclass(frozen=True)
class QwenImageConfig:
    """The transformer; defaults are those of the original and 2509; 2511 has `zero_cond_t`. Hashable, static under jit.

    zero_cond_t: tokens of references are modulated as at sigma 0.
    """

    in_channels: int = 64
    num_layers: int = 60
    attention_head_dim: int = 128
    num_attention_heads: int = 24
    joint_attention_dim: int = 3584
    axes_dims_rope: tuple[int, ...] = (16, 56, 56)
    zero_cond_t: bool = False

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
    def from_hf(cls, source: Any) -> QwenImageConfig:
        """From a dict, a config.json, or a folder that has one. Raises WeightsError, one line that names the file, for
        what is malformed, larger than any model, or a key that this model does not know."""
        source, where = read_config(source)
        known = {f.name for f in dataclasses.fields(cls)} | _IGNORED | _FIXED.keys() | {"out_channels"}
        if unknown := {k for k in source if not k.startswith("_")} - known:
            raise WeightsError(f"{where}: unknown keys of Qwen-Image's config: {sorted(unknown)}")
        if other := {k: source[k] for k, v in _FIXED.items() if source.get(k, v) != v}:
            raise WeightsError(f"{where}: not implemented: {other}")
        given = {k: v for k, v in source.items() if k in {f.name for f in dataclasses.fields(cls)}}
        try:
            cfg = cls(**fields(cls, given, f"{where}: ", _BOUNDS))
        except ValueError as e:
            raise WeightsError(f"{where}: {e}") from None
        if source.get("out_channels", cfg.in_channels // 4) != cfg.in_channels // 4:
            raise WeightsError(f"{where}: not implemented: out_channels other than a quarter of in_channels")
        return cfg

    def to_hf(self) -> dict[str, Any]:
        """The config.json that diffusers reads."""
        more = {"patch_size": 2, "out_channels": self.in_channels // 4, "guidance_embeds": False}
        return {"_class_name": "QwenImageTransformer2DModel", **more, **dataclasses.asdict(self)}
