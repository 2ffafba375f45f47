"""Configuration of Qwen3-VL (dense), read from and written to a Hugging Face config.json."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float32, Int32

from edit_rl_jax.nn.model_files import checked, fields, section
from edit_rl_jax.vlm import qwen_config
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import VisionLayout
from edit_rl_jax.vlm.qwen_config import BOUNDS, POSITIVE, QwenConfig, TowerSizes, check_act

ACT = "gelu_pytorch_tanh"  # in blocks; the mergers' is the exact one


@dataclasses.dataclass(frozen=True)
class VisionConfig(TowerSizes):
    """Vision tower. Sizes in patches, merged tokens (merge x merge patches) and pixels; defaults are transformers'.

    deepstack_visual_indexes: blocks whose outputs the decoder sees, too, ascending.
    """

    window_merged: ClassVar[int] = 0  # no windows
    depth: int = 27
    hidden_size: int = 1152
    intermediate_size: int = 4304
    num_heads: int = 16
    in_channels: int = 3
    patch_size: int = 16
    temporal_patch_size: int = 2
    spatial_merge_size: int = 2
    out_hidden_size: int = 3584
    num_position_embeddings: int = 2304
    deepstack_visual_indexes: tuple[int, ...] = (8, 16, 24)
    rope_theta: float = 10000.0
    layer_norm_eps: float = 1e-6  # fixed in the reference, not a key of config.json

    @property
    def side(self) -> int:
        """Rows and columns of the table of learned positions."""
        return math.isqrt(self.num_position_embeddings)

    @classmethod
    def from_hf(cls, source: Mapping, prefix: str) -> VisionConfig:
        """From a `vision_config`; prefix: of the names in messages. Raises ValueError."""
        check_act(source, "vision", ACT)
        theta = section(source, "rope_parameters", prefix).get("rope_theta", 10000.0)
        theta = checked(theta, "float", f"{prefix}rope_theta", *POSITIVE)
        return cls(**fields(cls, source, prefix, BOUNDS, ("rope_theta", "layer_norm_eps")), rope_theta=theta)


@dataclasses.dataclass(frozen=True)
class TextConfig(qwen_config.TextConfig):
    """Decoder; defaults are transformers'. The base of the rotary frequencies must be given: the defaults of
    transformers 4 and 5 differ."""

    bias: ClassVar[bool] = False
    qk_norm: ClassVar[bool] = True
    interleaved: ClassVar[bool] = True
    default_theta: ClassVar[float | None] = None
    vocab_size: int = 151936
    hidden_size: int = 4096
    intermediate_size: int = 22016
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int = 32
    rms_norm_eps: float = 1e-6
    rope_theta: float = 5e6
    mrope_section: tuple[int, ...] = (24, 20, 20)
    max_position_embeddings: int = 128000

    @classmethod
    def from_hf(cls, source: Mapping, prefix: str) -> TextConfig:
        rope = section(source, "rope_scaling", prefix) or section(source, "rope_parameters", prefix)
        if rope.get("mrope_interleaved", True) is not True:
            raise ValueError("mrope_interleaved must be true")
        if source.get("attention_bias", False) is not False:
            raise ValueError("attention_bias is not implemented")
        return super().from_hf(source, prefix)

    @classmethod
    def head_width(cls, hidden: int, heads: int) -> int:
        return cls.head_dim


@dataclasses.dataclass(frozen=True)
class Config(QwenConfig):
    """The whole model."""

    model_type: ClassVar[str] = "qwen3_vl"
    name: ClassVar[str] = "Qwen3-VL"
    processor: ClassVar[str] = "Qwen3VLProcessor"
    vision: VisionConfig = VisionConfig(out_hidden_size=4096)
    text: TextConfig = TextConfig()

    def __post_init__(self):
        super().__post_init__()
        v, taps = self.vision, self.vision.deepstack_visual_indexes
        if v.side**2 != v.num_position_embeddings:
            raise ValueError(f"num_position_embeddings {v.num_position_embeddings} is no square")
        if not taps or list(taps) != sorted(set(taps)) or not 0 <= taps[0] <= taps[-1] < v.depth:
            raise ValueError(f"deepstack_visual_indexes {taps} must ascend within depth {v.depth}")
        if len(taps) > self.text.num_hidden_layers:
            raise ValueError(f"{len(taps)} deepstack levels for {self.text.num_hidden_layers} layers")

    def images(self, **settings: Any) -> ImageSettings:
        v = self.vision
        own = dict(min_pixels=256 * 256, mean=(0.5,) * 3, std=(0.5,) * 3)
        return ImageSettings(v.patch_size, v.temporal_patch_size, v.spatial_merge_size, **own | settings)

    def vision_arrays(self, layout: VisionLayout) -> dict[str, np.ndarray]:
        """Attention is inside "patch_segments", rotary of "patch_hw"; "pos_index", "pos_weight": rows of the table of
        learned positions that make a patch's, [R, P, 4]."""
        index, weight = learned_positions(layout, self.vision.side)
        arrays = {"patch_segments": layout.patch_segments, "patch_hw": layout.patch_hw}
        return arrays | {"pos_index": index, "pos_weight": weight}

    def to_hf(self) -> dict[str, Any]:
        """The config.json of the files on the hub, which transformers 4.57 and 5 read.

        What is a trap to leave to defaults is written: `head_dim`, `rope_theta`, the tie at both levels.
        """
        v = {k: list(x) if isinstance(x, tuple) else x for k, x in dataclasses.asdict(self.vision).items()}
        theta = v.pop("rope_theta")
        del v["layer_norm_eps"]
        v |= {"model_type": "qwen3_vl", "hidden_act": ACT}
        if theta != 10000.0:
            v["rope_parameters"] = {"rope_theta": theta, "rope_type": "axial"}
        rope = {"rope_type": "default", "mrope_interleaved": True, "mrope_section": list(self.text.mrope_section)}
        t = self.text.to_hf() | {"rope_theta": self.text.rope_theta, "rope_scaling": rope}
        t |= {"model_type": "qwen3_vl_text", "hidden_act": "silu", "attention_bias": False}
        t["tie_word_embeddings"] = self.tie_word_embeddings
        arch = {"architectures": ["Qwen3VLForConditionalGeneration"], "model_type": "qwen3_vl"}
        return {**arch, **self.top(), "text_config": t, "vision_config": v}


def learned_positions(
    layout: VisionLayout, side: int
) -> tuple[Int32[np.ndarray, "R P 4"], Float32[np.ndarray, "R P 4"]]:
    """The four rows of a square table of `side` x `side` positions, and their weights, between which a patch lies when
    its image's corners are the table's (bilinear, align_corners); weight 0 in padding. In fp32, as transformers does.
    """
    where, ids = layout.patch_hw, layout.patch_segments
    frame = np.arange(len(ids))[:, None] * (ids.max(initial=0) + 1) + ids  # frames number within their vision row
    size = np.zeros((frame.max(initial=0) + 1, 2), np.int64)
    np.maximum.at(size, frame, where + 1)
    last = np.maximum(size[frame] - 1, 1).astype(np.float32)
    at = where.astype(np.float32) * np.float32(side - 1) / last
    low = np.floor(at)
    taps = np.stack([low, np.minimum(low + 1, side - 1)], -1).astype(np.int32)  # [R, P, axis, tap]
    far = np.abs((at - low)[..., None] - np.arange(2, dtype=np.float32))
    weights = np.maximum(1 - far, 0) * (ids > 0)[..., None, None]
    flat = lambda x: x.reshape(*ids.shape, 4)
    index = flat(taps[:, :, 0, :, None] * side + taps[:, :, 1, None, :])
    return index * (ids > 0)[..., None], flat(weights[:, :, 0, :, None] * weights[:, :, 1, None, :]).astype(np.float32)
