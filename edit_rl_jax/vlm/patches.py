"""Images as patches of a vision tower: resizing rule, normalisation, order. NumPy and PIL only.

Facts: transformers' Qwen2VLImageProcessorPil (order of patches and features, bicubic resize of uint8, CLIP mean and
std).
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8

from edit_rl_jax.data.images import MAX_PIXELS, decode_image, resize
from edit_rl_jax.nn.model_files import fields, read_config, section
from edit_rl_jax.nn.safetensors_io import WeightsError

_BOUNDS = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), (1, 1024)),
    **dict.fromkeys(("min_pixels", "max_pixels", "decode_limit"), (1, 2**40)),
    "mean": (-1e3, 1e3),
    "std": (1e-6, 1e3),
}


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image becomes patches. `max_pixels` defaults to 512 x 512, the budget of reward training."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 512 * 512
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    decode_limit: int = MAX_PIXELS

    @classmethod
    def from_hf(cls, config: Mapping[str, Any] | str | os.PathLike, **overrides) -> ImageSettings:
        """From a `preprocessor_config.json` (mapping, file, or model folder); `overrides` replace fields.

        Raises WeightsError, one line that names the file and the key, for what is malformed or no model's.
        Reads both spellings of the pixel budget: `min_pixels`/`max_pixels` and `size.shortest_edge/longest_edge`.
        """
        config, where = read_config(config, "preprocessor_config.json")
        size = section(config, "size", where)
        if off := [k for k in ("do_resize", "do_rescale", "do_normalize") if config.get(k, True) is not True]:
            raise WeightsError(f"{where}: {', '.join(off)} is not true: images are always resized and normalized here")
        found = {
            "patch_size": config.get("patch_size"),
            "temporal_patch_size": config.get("temporal_patch_size"),
            "merge_size": config.get("merge_size"),
            "min_pixels": config.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge"),
            "max_pixels": config.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge"),
            "mean": config.get("image_mean"),
            "std": config.get("image_std"),
        }
        given = {k: v for k, v in found.items() if v is not None} | overrides
        settings = cls(**fields(cls, given, f"{where}: ", _BOUNDS))
        if len(settings.mean) != 3 or len(settings.std) != 3:
            raise WeightsError(f"{where}: image_mean and image_std are 3 numbers each")
        return settings

    def to_hf(self, processor: str = "Qwen2_5_VLProcessor") -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that the Hugging Face processor of that class reads."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": processor,
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) in patches of an image of this size."""
        h, w = smart_resize(height, width, self.patch_size * self.merge_size, self.min_pixels, self.max_pixels)
        return 1, h // self.patch_size, w // self.patch_size


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 512 * 512
) -> tuple[int, int]:
    """Size to resize an image to: sides multiples of `factor`, area in [min_pixels, max_pixels], aspect about kept.

    Raises ValueError for an aspect ratio above 200.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"aspect ratio of {height}x{width} exceeds 200")
    # Python's round (half to even) is part of the definition: the grid must equal the released processor's
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(x / beta / factor) * factor) for x in (height, width))
    elif h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(x * beta / factor) * factor for x in (height, width))
    return h, w


@functools.lru_cache(maxsize=8)
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "3 256"]:
    """Value of every uint8 level after rescaling to [0, 1] and normalisation, by channel."""
    return ((np.arange(256)[None] / 255.0 - np.array(mean)[:, None]) / np.array(std)[:, None]).astype(np.float32)


def patchify(
    image: UInt8[np.ndarray, "H W 3"], settings: ImageSettings
) -> tuple[Float32[np.ndarray, "N D"], tuple[int, int, int]]:
    """Resizes, normalises and cuts into patches in the Hugging Face processor's order.

    Returns patches float32 [N, 3 * temporal * patch * patch] (features C, T, H, W; rows of 2x2 merge groups) and the
    grid (t=1, h, w) in patches, N = h * w. A still image is repeated `temporal_patch_size` times.
    """
    t, gh, gw = settings.grid(*image.shape[:2])
    p, m = settings.patch_size, settings.merge_size
    x = resize(image, gh * p, gw * p).reshape(gh // m, m, p, gw // m, m, p, 3)
    x = x.transpose(0, 3, 1, 4, 6, 2, 5).reshape(gh * gw, 3, p * p)  # [N, C, H W], merge groups together
    table = _normalised(settings.mean, settings.std)
    out = np.empty((gh * gw, 3, settings.temporal_patch_size, p * p), np.float32)
    for c in range(3):
        out[:, c] = table[c][x[:, c]][:, None]
    return out.reshape(gh * gw, -1), (t, gh, gw)


def load_patches(
    data: bytes | str | os.PathLike | np.ndarray, settings: ImageSettings, *, where: str = "image"
) -> tuple[Float32[np.ndarray, "N D"], tuple[int, int, int]]:
    """`decode_image` then `patchify`. Raises ImageError."""
    return patchify(decode_image(data, where=where, max_pixels=settings.decode_limit), settings)
