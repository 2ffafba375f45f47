"""Qwen3-VL: a tower of full attention before the decoder, whose first layers see inner levels of it again."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.nn.params import Init
from edit_rl_jax.sharding import shard
from edit_rl_jax.vlm.qwen3_vl.config import Config
from edit_rl_jax.vlm.qwen3_vl.vision import VisionTower
from edit_rl_jax.vlm.qwen_model import QwenVL

ARRAYS = ("patches", "patch_segments", "patch_hw", "pos_index", "pos_weight")


class Qwen3VL(QwenVL):
    """The model: see `QwenVL`."""

    def tower(self, cfg: Config, init: Callable[[str], Init], **options: Any) -> VisionTower:
        return VisionTower(cfg.vision, init=init, **options)

    def image_features(self, arrays: Mapping[str, Array]) -> dict[str, Array]:
        """Of packed images, in slot order: "merged" [B, M, D] stands for the token, "deep" [B, M, L, D] is added after
        each of the decoder's first L layers."""
        return self.visual(*(arrays[k] for k in ARRAYS))

    def embed(
        self,
        tokens: Int[Array, "B T"],
        features: Mapping[str, Array] | None = None,
        is_image: Bool[Array, "B T"] | None = None,
    ) -> Float[Array, "B T D"] | tuple[Float[Array, "B T D"], Float[Array, "B T L D"]]:
        """Token embeddings [B, T, D]; with features also their deep levels [B, T, L, D], zero but where is_image."""
        if features is None:
            return super().embed(tokens)
        x, deep = super().embed(tokens, features["merged"], is_image), features["deep"].astype(self.dtype)
        return x, shard(jnp.where(is_image[..., None, None], deep, 0), "batch", None, None, None)
