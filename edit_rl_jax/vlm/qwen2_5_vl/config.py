"""Configuration of Qwen2.5-VL, read from and written to a Hugging Face config.json (old flat and new nested layout)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from edit_rl_jax.nn.model_files import checked, fields, section
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import VisionLayout
from edit_rl_jax.vlm.qwen_config import BOUNDS, POSITIVE, QwenConfig, TextConfig, TowerSizes, check_act

__all__ = ["Config", "TextConfig", "VisionConfig"]


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerSizes):
    """Vision tower. Sizes in patches, merged tokens (merge x merge patches) and pixels; defaults are transformers'."""

    depth: int = 32
    hidden_size: int = 3584
    intermediate_size: int = 3420
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 14
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    window_size: int = 112
    out_hidden_size: int = 3584
    fullatt_block_indexes: tuple[int, ...] = (7, 15, 23, 31)
    tokens_per_second: int = 4
    rope_theta: float = 10000.0
    rms_norm_eps: float = 1e-6  # fixed in the reference, not a key of config.json

    @property
    def window_merged(self) -> int:
        """Side of a window in merged tokens."""
        return self.window_size // self.spatial_merge_size // self.patch_size

    @property
    def window_tokens(self) -> int:
        """Patches of a whole window, W: 64 for the released models."""
        return self.window_merged**2 * self.merge_unit

    @property
    def is_full(self) -> tuple[bool, ...]:
        """Which blocks attend over the whole image."""
        return tuple(i in self.fullatt_block_indexes for i in range(self.depth))

    @classmethod
    def from_hf(cls, source: Mapping, prefix: str) -> VisionConfig:
        """From a `vision_config`; prefix: of the names in messages. Raises ValueError."""
        check_act(source, "vision", "silu")
        if source.get("in_channels") is None and source.get("in_chans") is not None:  # the key of released checkpoints
            source = {**source, "in_channels": source["in_chans"]}
        theta = section(source, "rope_parameters", prefix).get("rope_theta", 10000.0)
        theta = checked(theta, "float", f"{prefix}rope_theta", *POSITIVE)
        return cls(**fields(cls, source, prefix, BOUNDS, ("rope_theta", "rms_norm_eps")), rope_theta=theta)


@dataclasses.dataclass(frozen=True)
class Config(QwenConfig):
    """The whole model."""

    model_type: ClassVar[str] = "qwen2_5_vl"
    name: ClassVar[str] = "Qwen2.5-VL"
    processor: ClassVar[str] = "Qwen2_5_VLProcessor"
    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()

    def __post_init__(self):
        super().__post_init__()
        v = self.vision
        if v.window_size % (v.patch_size * v.spatial_merge_size):
            raise ValueError(f"window_size {v.window_size} must be a multiple of patch_size x spatial_merge_size")
        if not all(0 <= i < v.depth for i in v.fullatt_block_indexes):
            raise ValueError(f"fullatt_block_indexes {v.fullatt_block_indexes} outside depth {v.depth}")

    def images(self, **settings: Any) -> ImageSettings:
        v = self.vision
        return ImageSettings(v.patch_size, v.temporal_patch_size, v.spatial_merge_size, **settings)

    def vision_arrays(self, layout: VisionLayout) -> dict[str, np.ndarray]:
        """Full attention is inside "patch_segments", windows are "window_segments"; rotary is of "patch_hw"."""
        return {k: getattr(layout, k) for k in ("patch_segments", "window_segments", "patch_hw")}

    def to_hf(self) -> dict[str, Any]:
        """The nested config.json, as transformers 4.5x and 5 read it: `rope_theta`, `rope_scaling` and the tie at both
        levels are the former's."""
        v, t = dataclasses.asdict(self.vision), self.text.to_hf()
        del v["rms_norm_eps"]
        theta = v.pop("rope_theta")
        v |= {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"}
        v["rope_parameters"] = {"rope_theta": theta, "rope_type": "axial"}
        v["fullatt_block_indexes"] = list(v["fullatt_block_indexes"])
        if t["head_dim"] * t["num_attention_heads"] == t["hidden_size"]:
            del t["head_dim"]
        t |= {
            "model_type": "qwen2_5_vl_text",
            "hidden_act": "silu",
            "rope_theta": self.text.rope_theta,
            "rope_scaling": {"type": "mrope", "rope_type": "default", "mrope_section": list(self.text.mrope_section)},
            "tie_word_embeddings": self.tie_word_embeddings,
            "use_sliding_window": False,
        }
        arch = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
        return {**arch, **self.top(), "text_config": t, "vision_config": v}
