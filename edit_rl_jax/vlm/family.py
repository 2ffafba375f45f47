"""What a family of vision-language models is: its architecture for the host, its model for the device, its files.

Everything above asks these: packing and prompts the architecture, the generation engine the model, training, loading,
export and plans the family. A family is a module (`vlm.qwen2_5_vl.family` is one), found by the `model_type` in a
folder's `config.json`: in FAMILIES, or as an entry point of the group "edit_rl_families" of an installed package.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int

from edit_rl_jax.nn.model_files import read_config, short
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import Grid, VisionLayout, VisionRows

FAMILIES = {name: f"edit_rl_jax.vlm.{name}.family" for name in ("qwen2_5_vl", "qwen3_vl")}  # model_type -> module


@runtime_checkable
class Architecture(Protocol):
    """A model's sizes and rules, as the host needs them. Frozen, hashable (static under jit), picklable; no JAX.

    Attributes:
      model_type: the family, as in `config.json`.
      image_token_id: the token that stands for a merged token of an image.
      processor: class of its Hugging Face processor, as in `preprocessor_config.json`.
      position_axes: rows of `positions` (3 for M-RoPE). Generated tokens advance by one on all of them.
    """

    model_type: str
    image_token_id: int
    processor: str
    position_axes: int

    @property
    def vocab_size(self) -> int:
        """Rows of the model's head."""
        ...

    @property
    def patch_dim(self) -> int:
        """Length C of a flattened patch."""
        ...

    @property
    def merge_unit(self) -> int:
        """Patches of a merged token."""
        ...

    @property
    def shards(self) -> tuple[int, ...]:
        """Counts (heads, widths) that tensor parallelism must divide."""
        ...

    def images(self, **settings: Any) -> ImageSettings:
        """How images become patches; `settings` replace the family's defaults."""
        ...

    def positions(self, tokens: np.ndarray, grids: Sequence[Grid]) -> tuple[Int[np.ndarray, "axes T"], int]:
        """Positions of a prompt's tokens [T] whose images have these grids, and the next free one. Raises ValueError
        when images and tokens disagree."""
        ...

    def vision_rows(self, rows: int, slots: int) -> VisionRows:
        """Empty vision rows. Raises ValueError for slots that the tower cannot divide."""
        ...

    def vision_slots(self, grid: Grid) -> int:
        """Patch slots that one image needs alone in a vision row."""
        ...

    def vision_arrays(self, layout: VisionLayout) -> dict[str, np.ndarray]:
        """What the tower wants beside "patches", [R, P, ...] each, zero in padding; "patch_segments" among them."""
        ...

    def to_hf(self) -> dict[str, Any]:
        """The content of `config.json`."""
        ...


class Decoder(Protocol):
    """The model, as generation and losses need it: an NNX module.

    Features and Embedded are pytrees that the family names: of Qwen2.5-VL one array each; a family whose later layers
    see the image again has its further levels among them.

    Attributes:
      cfg: its Architecture.
      attention: implementation (see `nn.attention`), None = by platform.
    """

    cfg: Any
    attention: str | None

    def image_features(self, arrays: Mapping[str, Any]) -> Any:
        """Features of packed images: leaves [B, M, ...], M merged tokens in slot order. arrays: "patches" [B, R, P, C]
        and `Architecture.vision_arrays` [B, R, P, ...]; others are ignored."""
        ...

    def embed(self, tokens: Any, features: Any = None, is_image: Any = None) -> Any:
        """Embedded of tokens [B, T]: leaves [B, T, ...]. features: leaves [B, T, ...], those of each place where
        is_image [B, T]; elsewhere they are of no account."""
        ...

    def language_model(self, x: Any, positions: Any, attend: Any, states: Any = None) -> tuple[Any, Any]:
        """Hidden states [B, T, D] after the final norm, and the layers' new states, stacked on a leading axis L.

        x: Embedded. positions: [B, axes, T]. Each layer calls `attend(q [B, T, H, d], k [B, T, Hkv, d], v, state) ->
        (out [B, T, H, d], new state)`. states: a pytree with a leading axis L, or None.
        """
        ...

    def hidden(self, batch: Mapping[str, Any]) -> Any:
        """Hidden states [B, T, D] of packed rows (see `rows`); in padding nothing of use."""
        ...

    def logits(self, h: Any) -> Any:
        """fp32 next-token logits [..., V] of hidden states [..., D]."""
        ...


@runtime_checkable
class Family(Protocol):
    """A family: a module with these names.

    Attributes:
      NAMING: its names in checkpoints (`nn.weights.Naming`).
      LORA_PARTS: beginnings of module names by the fields of `LoRAConfig` that switch adapters on there.
      PUBLISHED: hub ids whose `config.json` needs no download: (content, licence).
      ENTRIES: of the tokenizer of those models; the rows of their tables that follow are free.
    """

    NAMING: Any
    LORA_PARTS: Mapping[str, str]
    PUBLISHED: Mapping[str, tuple[Mapping[str, Any], str]]
    ENTRIES: int

    def architecture(self, source: Any) -> Architecture:
        """Reads a `config.json`: mapping, JSON text, file, or folder, whose weights then may have a say. Raises
        WeightsError, one line that names the file and the key."""
        ...

    def model(self, cfg: Any, *, rngs: Any, lora: Any = None, **options: Any) -> Any:
        """The model (`Decoder`), to be made abstract by `nnx.eval_shape`. options: trainable, dtype, remat, attention
        as `vlm.qwen2_5_vl.model.Qwen25VL` has them."""
        ...

    def save(self, state: Any, cfg: Any, folder: str | Path, *, dtype: Any = None, naming: Any = ...) -> Path:
        """Writes weights and `config.json` as Hugging Face tools read them; naming: default NAMING."""
        ...


def named(model_type: str) -> Any:
    """The family of a `model_type`. Raises WeightsError naming those that there are."""
    known = {e.name: e.value for e in entry_points(group="edit_rl_families")} | FAMILIES
    if model_type not in known:
        raise WeightsError(f"model_type {short(model_type)} is not implemented; there are {', '.join(sorted(known))}")
    return importlib.import_module(known[model_type])


def of(source: Any) -> Any:
    """The family of a model: its Architecture, or what `nn.model_files.read_config` takes. A config without a
    `model_type` is Qwen2.5-VL's where its `architectures` say so. Raises WeightsError."""
    if isinstance(source, Architecture):
        return named(source.model_type)
    config, where = read_config(source)
    try:
        return named(config.get("model_type") or "qwen2_5_vl")
    except WeightsError as e:
        raise WeightsError(f"{where}: {e}") from None


def published(name: str) -> tuple[Mapping[str, Any], str] | None:
    """(content of `config.json`, licence) of a hub id that some family knows; None for another."""
    return next((m.PUBLISHED[name] for m in map(named, FAMILIES) if name in m.PUBLISHED), None)
