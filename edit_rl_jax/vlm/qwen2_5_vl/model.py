"""Qwen2.5-VL: a tower with windows before the decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxtyping import Array, Float

from edit_rl_jax.nn.params import Init, LoRAConfig
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.vision import VisionTower
from edit_rl_jax.vlm.qwen_model import QwenVL

__all__ = ["Config", "LoRAConfig", "Qwen25VL"]


class Qwen25VL(QwenVL):
    """The model: see `QwenVL`."""

    def tower(self, cfg: Config, init: Callable[[str], Init], **options: Any) -> VisionTower:
        inits = {"init": init("vision"), "merger_init": init("merger"), "patch_init": init("patches")}
        return VisionTower(cfg.vision, **inits, **options)

    def image_features(self, arrays: Mapping[str, Array]) -> Float[Array, "B M D"]:
        """Merged tokens of packed images, in the text width and slot order."""
        return self.visual(*(arrays[k] for k in ("patches", "patch_segments", "window_segments", "patch_hw")))
