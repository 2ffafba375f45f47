"""What the configurations of Qwen's VLMs share: the decoder's sizes and switches, and reading `config.json`."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, TypeVar

import numpy as np

from edit_rl_jax.nn.model_files import checked, fields, read_config, section, short
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.positions import Grid, VisionRows, rope_index, vision_slots

# lowest and highest value that a model can have
_TOKEN, _LAYERS, POSITIVE = (0, 2**24), (1, 1024), (1e-30, 1e30)
BOUNDS = {
    **dict.fromkeys(("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id"), _TOKEN),
    **dict.fromkeys(("bos_token_id", "eos_token_id"), (-1, 2**24)),
    **dict.fromkeys(("depth", "num_hidden_layers"), _LAYERS),
    **dict.fromkeys(("num_heads", "num_attention_heads", "num_key_value_heads"), (1, 4096)),
    **dict.fromkeys(("patch_size", "temporal_patch_size", "spatial_merge_size"), (1, 1024)),
    **dict.fromkeys(("fullatt_block_indexes", "deepstack_visual_indexes"), (0, 1023)),
    "vocab_size": _TOKEN,
    "max_position_embeddings": (1, 2**40),
    "rms_norm_eps": (0, 1),
}
C = TypeVar("C", bound="QwenConfig")
T = TypeVar("T", bound="TextConfig")


class TowerSizes:
    """What follows from the fields that every vision tower's configuration has."""

    hidden_size: int
    num_heads: int
    in_channels: int
    patch_size: int
    temporal_patch_size: int
    spatial_merge_size: int

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


@dataclasses.dataclass(frozen=True)
class TextConfig:
    """Decoder; switches, and defaults, are Qwen2.5-VL's in transformers.

    Attributes:
      bias: biases of the q, k and v projections. qk_norm: RMSNorm of each head's q and k before rotary.
      interleaved: the axes of M-RoPE take turns over the frequencies, instead of one section each.
      default_theta: rope_theta where a file does not say; None = it must.
    """

    bias: ClassVar[bool] = True
    qk_norm: ClassVar[bool] = False
    interleaved: ClassVar[bool] = False
    default_theta: ClassVar[float | None] = 1e6
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

    @classmethod
    def from_hf(cls: type[T], source: Mapping, prefix: str) -> T:
        """From a `text_config`, or the whole of a flat file; prefix: of the names in messages. Raises ValueError."""
        check_act(source, "text", "silu")
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
        heads = source.get("num_attention_heads", cls.num_attention_heads)
        null = {k for k in ("num_key_value_heads", "head_dim") if k in source and source[k] is None}
        source = {k: v for k, v in source.items() if k not in null}
        if "num_key_value_heads" in null:
            source["num_key_value_heads"] = heads
        kwargs = fields(cls, source, prefix, BOUNDS, ("rope_theta", "mrope_section"))
        if "head_dim" not in kwargs:
            kwargs["head_dim"] = cls.head_width(kwargs.get("hidden_size", cls.hidden_size), heads)
        theta = rope.get("rope_theta", source.get("rope_theta", cls.default_theta))
        theta = checked(theta, "float", f"{prefix}rope_theta", *POSITIVE)
        sections = rope.get("mrope_section", list(cls.mrope_section))
        sections = checked(sections, "tuple[int, ...]", f"{prefix}mrope_section", 0)
        return cls(**kwargs, rope_theta=theta, mrope_section=sections)

    @classmethod
    def head_width(cls, hidden: int, heads: int) -> int:
        """Width of a head where a file does not say. Raises ValueError."""
        if hidden % heads:
            raise ValueError(f"hidden_size {hidden} does not divide into {heads} heads")
        return hidden // heads

    def to_hf(self) -> dict[str, Any]:
        """The fields as JSON has them, without those of rotary."""
        out = {k: list(v) if isinstance(v, tuple) else v for k, v in dataclasses.asdict(self).items()}
        return {k: v for k, v in out.items() if k not in ("rope_theta", "mrope_section")}


@dataclasses.dataclass(frozen=True)
class QwenConfig:
    """A whole model; with its tower's and decoder's own configurations it meets `family.Architecture`. Hashable, so
    that it can be static under jit."""

    model_type: ClassVar[str]
    name: ClassVar[str]  # for messages
    processor: ClassVar[str]
    position_axes: ClassVar[int] = 3  # M-RoPE: t, h, w
    vision: Any
    text: Any
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
        if t.num_attention_heads % t.num_key_value_heads:
            raise ValueError(f"{t.num_attention_heads} heads do not divide into {t.num_key_value_heads} KV heads")
        if 2 * sum(t.mrope_section) != t.head_dim or len(t.mrope_section) != 3:
            raise ValueError(f"mrope_section {t.mrope_section} must be 3 that sum to head_dim/2 = {t.head_dim // 2}")

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

    def positions(self, tokens: np.ndarray, grids: Sequence[Grid]) -> tuple[np.ndarray, int]:
        return rope_index(tokens, grids, self.image_token_id, merge=self.vision.spatial_merge_size)

    def vision_rows(self, rows: int, slots: int) -> VisionRows:
        return VisionRows(rows, slots, self.vision)

    def vision_slots(self, grid: Grid) -> int:
        return vision_slots(grid, self.vision)

    @classmethod
    def from_hf(cls: type[C], source: Any) -> C:
        """From a dict, a config.json, or a folder that has one, as transformers reads it.

        Raises WeightsError, one line that names the file and the key, for what is malformed, larger than any model, or
        not implemented here. Whether head and embedding are one is what either level says; where a file holds two
        that differ, they are two all the same (the family's `architecture`).
        """
        source, where = read_config(source)
        flat = source.get("text_config") is None  # files of the hub
        text = source if flat else section(source, "text_config", where)
        levels = ((source, where), (text, f"{where}: text_config"))
        tied = [checked(c.get("tie_word_embeddings"), "bool | None", f"{w}: tie_word_embeddings") for c, w in levels]
        own = fields(cls, source, f"{where}: ", BOUNDS, skip=("vision", "text", "tie_word_embeddings"))
        try:
            cls._check_kind(source)
            parts = cls.parts()
            towers = {
                "vision": parts[0].from_hf(section(source, "vision_config", where), f"{where}: vision_config."),
                "text": parts[1].from_hf(text, f"{where}: " if flat else f"{where}: text_config."),
            }
            return cls(**towers, **own, tie_word_embeddings=any(tied))
        except WeightsError:
            raise
        except ValueError as e:
            raise WeightsError(f"{where}: {e}") from None

    @classmethod
    def parts(cls) -> tuple[type, type]:
        """Classes of the tower's and the decoder's configuration: those of the defaults."""
        defaults = {f.name: f.default for f in dataclasses.fields(cls)}
        return type(defaults["vision"]), type(defaults["text"])

    @classmethod
    def _check_kind(cls, source: Mapping) -> None:
        """Refuses what is another model, or this one quantized."""
        kind, names, quantized = (source.get(k) for k in ("model_type", "architectures", "quantization_config"))
        if kind not in (None, cls.model_type):
            raise ValueError(f"model_type {short(kind)} is not {cls.model_type}")
        if kind is None and names and cls.model_type.replace("_", "") not in str(names).lower().replace("_", ""):
            raise ValueError(f"architectures {short(names)} are not {cls.name}'s")
        if quantized:
            raise ValueError(f"quantized weights are not implemented: quantization_config {short(quantized)}")

    def top(self) -> dict[str, Any]:
        """The fields beside those of tower and decoder."""
        return {k: v for k, v in dataclasses.asdict(self).items() if k not in ("vision", "text")}


def check_act(source: Mapping, tower: str, wanted: str) -> None:
    """Raises ValueError for another activation function."""
    if source.get("hidden_act", wanted) != wanted:
        raise ValueError(f"{tower} hidden_act {short(source['hidden_act'])} is not {wanted}")
