"""Configuration of Qwen2.5-VL, read from and written to a Hugging Face config.json (old flat and new nested layout)."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from typing import Any

from etils import epath


@dataclasses.dataclass(frozen=True)
class VisionConfig:
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
    def head_dim(self) -> int:
        return self.hidden_size // self.num_heads

    @property
    def patch_dim(self) -> int:
        """Length of a flattened patch (C, T, H, W)."""
        return self.in_channels * self.temporal_patch_size * self.patch_size**2

    @property
    def merge_unit(self) -> int:
        """Patches of one merged token."""
        return self.spatial_merge_size**2

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


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Decoder; defaults are transformers'."""

    vocab_size: int = 152064
    hidden_size: int = 8192
    intermediate_size: int = 29568
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 128
    rms_norm_eps: float = 1e-5
    rope_theta: float = 1e6
    mrope_section: tuple[int, ...] = (16, 24, 24)
    max_position_embeddings: int = 32768
    bos_token_id: int | None = 151643
    eos_token_id: int | tuple[int, ...] | None = 151645


@dataclasses.dataclass(frozen=True)
class Config:
    """The whole model. Hashable, so that it can be static under jit."""

    vision: VisionConfig = VisionConfig()
    text: TextConfig = TextConfig()
    image_token_id: int = 151655
    video_token_id: int = 151656
    vision_start_token_id: int = 151652
    vision_end_token_id: int = 151653
    tie_word_embeddings: bool = False

    def __post_init__(self):
        v, t = self.vision, self.text
        if v.out_hidden_size != t.hidden_size:
            raise ValueError(f"vision out_hidden_size {v.out_hidden_size} is not the text hidden_size {t.hidden_size}")
        if v.hidden_size % v.num_heads or v.head_dim % 4:
            raise ValueError(f"vision heads {v.num_heads} must divide {v.hidden_size} into a multiple of 4")
        if v.window_size % (v.patch_size * v.spatial_merge_size):
            raise ValueError(f"window_size {v.window_size} must be a multiple of patch_size x spatial_merge_size")
        if t.num_attention_heads % t.num_key_value_heads:
            raise ValueError(f"{t.num_attention_heads} heads do not divide into {t.num_key_value_heads} KV heads")
        if 2 * sum(t.mrope_section) != t.head_dim:
            raise ValueError(f"mrope_section {t.mrope_section} must sum to head_dim/2 = {t.head_dim // 2}")
        if not all(0 <= i < v.depth for i in v.fullatt_block_indexes):
            raise ValueError(f"fullatt_block_indexes {v.fullatt_block_indexes} outside depth {v.depth}")

    @classmethod
    def from_hf(cls, source: Any) -> Config:
        """From a dict, a config.json, or a folder that has one. ValueError on what this model does not implement."""
        if not isinstance(source, Mapping):
            path = epath.Path(source)
            source = json.loads((path / "config.json" if path.is_dir() else path).read_text())
        if source.get("model_type", "qwen2_5_vl") != "qwen2_5_vl":
            raise ValueError(f"model_type {source['model_type']!r} is not qwen2_5_vl")
        text = source.get("text_config") or source
        return cls(
            vision=_vision(source.get("vision_config") or {}),
            text=_text(text),
            tie_word_embeddings=bool(source.get("tie_word_embeddings") or text.get("tie_word_embeddings") or False),
            **{
                k: source[k]
                for k in ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
                if source.get(k) is not None
            },
        )

    def to_hf(self) -> dict[str, Any]:
        """The nested config.json that transformers >= 5 writes (and 4.5x reads)."""
        v, t = dataclasses.asdict(self.vision), dataclasses.asdict(self.text)
        del v["rms_norm_eps"]
        theta = v.pop("rope_theta")
        v |= {"model_type": "qwen2_5_vl_vision", "hidden_act": "silu"}
        v["rope_parameters"] = {"rope_theta": theta, "rope_type": "axial"}
        v["fullatt_block_indexes"] = list(v["fullatt_block_indexes"])
        rope = {
            "rope_theta": t.pop("rope_theta"),
            "rope_type": "default",
            "mrope_section": list(t.pop("mrope_section")),
        }
        if t["head_dim"] * t["num_attention_heads"] == t["hidden_size"]:
            del t["head_dim"]
        if isinstance(t["eos_token_id"], tuple):
            t["eos_token_id"] = list(t["eos_token_id"])
        t |= {
            "model_type": "qwen2_5_vl_text",
            "hidden_act": "silu",
            "rope_parameters": rope,
            "use_sliding_window": False,
        }
        top = {k: v for k, v in dataclasses.asdict(self).items() if k not in ("vision", "text")}
        arch = {"architectures": ["Qwen2_5_VLForConditionalGeneration"], "model_type": "qwen2_5_vl"}
        return {**arch, **top, "text_config": t, "vision_config": v}


def _take(cls: type, source: Mapping) -> dict[str, Any]:
    names = {f.name for f in dataclasses.fields(cls)} - {"rope_theta", "mrope_section"}
    optional = ("bos_token_id", "eos_token_id")  # null is a value there: no such token
    out = {k: v for k, v in source.items() if k in names and (v is not None or k in optional)}
    return {k: tuple(v) if isinstance(v, list) else v for k, v in out.items()}


def _vision(source: Mapping) -> VisionConfig:
    if source.get("hidden_act", "silu") != "silu":
        raise ValueError(f"vision hidden_act {source['hidden_act']!r} is not silu")
    kwargs = _take(VisionConfig, source)
    kwargs.pop("rms_norm_eps", None)
    if source.get("in_chans") is not None:  # the key of released checkpoints
        kwargs["in_channels"] = source["in_chans"]
    rope = source.get("rope_parameters") or {}
    return VisionConfig(**kwargs, rope_theta=float(rope.get("rope_theta", 10000.0)))


def _text(source: Mapping) -> TextConfig:
    if source.get("hidden_act", "silu") != "silu":
        raise ValueError(f"text hidden_act {source['hidden_act']!r} is not silu")
    if source.get("use_sliding_window"):
        raise ValueError("use_sliding_window is not implemented")
    rope = source.get("rope_parameters") or source.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope type {kind!r} is not implemented (default, mrope)")
    kwargs = _take(TextConfig, source)
    heads = kwargs.get("num_attention_heads", TextConfig.num_attention_heads)
    if "num_key_value_heads" in source and source["num_key_value_heads"] is None:
        kwargs["num_key_value_heads"] = heads
    kwargs.setdefault("head_dim", kwargs.get("hidden_size", TextConfig.hidden_size) // heads)
    theta = rope.get("rope_theta", source.get("rope_theta", 1e6))
    return TextConfig(**kwargs, rope_theta=float(theta), mrope_section=tuple(rope.get("mrope_section", (16, 24, 24))))
