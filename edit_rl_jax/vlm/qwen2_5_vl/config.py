"""Configuration of Qwen2.5-VL, read from and written to a Hugging Face config.json (old flat and new nested layout)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edit_rl_jax.nn.model_files import checked, fields, read_config, section, short
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import Grid, VisionLayout, VisionRows, rope_index, vision_slots


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
    """The whole model; meets `family.Architecture`. Hashable, so that it can be static under jit."""

    model_type = "qwen2_5_vl"
    position_axes = 3  # M-RoPE: t, h, w
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
        if 2 * sum(t.mrope_section) != t.head_dim or len(t.mrope_section) != 3:
            raise ValueError(f"mrope_section {t.mrope_section} must be 3 that sum to head_dim/2 = {t.head_dim // 2}")
        if not all(0 <= i < v.depth for i in v.fullatt_block_indexes):
            raise ValueError(f"fullatt_block_indexes {v.fullatt_block_indexes} outside depth {v.depth}")

    @property
    def vocab_size(self) -> int:
        return self.text.vocab_size

    @property
    def patch_dim(self) -> int:
        return self.vision.patch_dim

    @property
    def merge_unit(self) -> int:
        return self.vision.merge_unit

    @property
    def shards(self) -> tuple[int, ...]:
        t = self.text
        return t.num_attention_heads, t.intermediate_size, t.vocab_size, self.vision.num_heads

    def images(self, **settings: Any) -> ImageSettings:
        v = self.vision
        return ImageSettings(v.patch_size, v.temporal_patch_size, v.spatial_merge_size, **settings)

    def positions(self, tokens: np.ndarray, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        return rope_index(tokens, grids, self.image_token_id, merge=self.vision.spatial_merge_size)

    def vision_rows(self, rows: int, slots: int) -> VisionRows:
        return VisionRows(rows, slots, self.vision)

    def vision_slots(self, grid: Grid) -> int:
        return vision_slots(grid, self.vision)

    def vision_arrays(self, layout: VisionLayout) -> dict[str, np.ndarray]:
        """Full attention is inside "patch_segments", windows are "window_segments"; rotary is of "patch_hw"."""
        return {k: getattr(layout, k) for k in ("patch_segments", "window_segments", "patch_hw")}

    @classmethod
    def from_hf(cls, source: Any) -> Config:
        """From a dict, a config.json, or a folder that has one, as transformers reads it.

        Raises WeightsError, one line that names the file and the key, for what is malformed, larger than any model, or
        not implemented here. Whether head and embedding are one is what either level says; where a file holds two
        that differ, they are two all the same (`weights.read_config`).
        """
        source, where = read_config(source)
        flat = source.get("text_config") is None  # files of the hub
        text = source if flat else section(source, "text_config", where)
        levels = ((source, where), (text, f"{where}: text_config"))
        tied = [checked(c.get("tie_word_embeddings"), "bool | None", f"{w}: tie_word_embeddings") for c, w in levels]
        own = fields(cls, source, f"{where}: ", _BOUNDS, skip=("vision", "text", "tie_word_embeddings"))
        try:
            _check_kind(source)
            towers = {
                "vision": _vision(section(source, "vision_config", where), f"{where}: vision_config."),
                "text": _text(text, f"{where}: " if flat else f"{where}: text_config."),
            }
            return cls(**towers, **own, tie_word_embeddings=any(tied))
        except WeightsError:
            raise
        except ValueError as e:
            raise WeightsError(f"{where}: {e}") from None

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


# lowest and highest value that a model can have
_TOKEN, _LAYERS, _POSITIVE = (0, 2**24), (1, 1024), (1e-30, 1e30)
_BOUNDS = {
    **dict.fromkeys(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), _TOKEN),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (-1, 2**24)),
    **dict.fromkeys(("depth", "num_hidden_layers"), _LAYERS),
    **dict.fromkeys(("num_heads", "num_attention_heads", "num_key_value_heads"), (1, 4096)),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size"), (1, 1024)),
    "fullatt_block_indexes": (0, 1023),
    "vocab_size": _TOKEN,
    "max_position_embeddings": (1, 2**40),
    "rms_norm_eps": (0, 1),
}


def _check_kind(source: Mapping) -> None:
    """Refuses what is another model, or this one quantized."""
    kind, names, quantized = (source.get(k) for k in ("model_type", "architectures", "quantization_config"))
    if kind not in (None, "qwen2_5_vl"):
        raise ValueError(f"model_type {short(kind)} is not qwen2_5_vl")
    if kind is None and names and "qwen2_5_vl" not in str(names).lower():
        raise ValueError(f"architectures {short(names)} are not Qwen2.5-VL's")
    if quantized:
        raise ValueError(f"quantized weights are not implemented: quantization_config {short(quantized)}")


def _check_act(source: Mapping, tower: str) -> None:
    if source.get("hidden_act", "silu") != "silu":
        raise ValueError(f"{tower} hidden_act {short(source['hidden_act'])} is not silu")


def _vision(source: Mapping, prefix: str) -> VisionConfig:
    _check_act(source, "vision")
    if source.get("in_channels") is None and source.get("in_chans") is not None:  # the key of released checkpoints
        source = {**source, "in_channels": source["in_chans"]}
    theta = section(source, "rope_parameters", prefix).get("rope_theta", 10000.0)
    theta = checked(theta, "float", f"{prefix}rope_theta", *_POSITIVE)
    return VisionConfig(
        **fields(VisionConfig, source, prefix, _BOUNDS, ("rope_theta", "rms_norm_eps")), rope_theta=theta
    )


def _text(source: Mapping, prefix: str) -> TextConfig:
    _check_act(source, "text")
    if source.get("use_sliding_window"):
        raise ValueError("use_sliding_window is not implemented")
    kinds = checked(source.get("layer_types"), "tuple[str, ...] | None", f"{prefix}layer_types") or ()
    if set(kinds) - {"full_attention"}:
        raise ValueError(f"layer_types {short(sorted(set(kinds)))} are not implemented (full_attention)")
    rope = section(source, "rope_scaling", prefix) or section(source, "rope_parameters", prefix)
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind not in ("default", "mrope"):
        raise ValueError(f"rope type {short(kind)} is not implemented (default, mrope)")
    if rope.get("partial_rotary_factor", 1) != 1:
        raise ValueError("partial_rotary_factor is not implemented")
    heads = source.get("num_attention_heads", TextConfig.num_attention_heads)
    null = {k for k in ("num_key_value_heads", "head_dim") if k in source and source[k] is None}
    source = {k: v for k, v in source.items() if k not in null}
    if "num_key_value_heads" in null:
        source["num_key_value_heads"] = heads
    kwargs = fields(TextConfig, source, prefix, _BOUNDS, ("rope_theta", "mrope_section"))
    hidden = kwargs.get("hidden_size", TextConfig.hidden_size)
    if "head_dim" not in kwargs and hidden % heads:
        raise ValueError(f"hidden_size {hidden} does not divide into {heads} heads")
    kwargs.setdefault("head_dim", hidden // heads)
    theta = checked(rope.get("rope_theta", source.get("rope_theta", 1e6)), "float", f"{prefix}rope_theta", *_POSITIVE)
    sections = checked(rope.get("mrope_section", [16, 24, 24]), "tuple[int, ...]", f"{prefix}mrope_section", 0)
    return TextConfig(**kwargs, rope_theta=theta, mrope_section=sections)
