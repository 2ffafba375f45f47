"""Decoding large latents in overlapping tiles, blended linearly, as diffusers does. Runs on the host, tile by tile."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Float


def decode_tiled(
    decode: Callable, latents: Float[np.ndarray, "B h w C"], tile: int, overlap: float = 0.25
) -> Float[np.ndarray, "B H W c"]:
    """Pixels of latents, with at most `tile` x `tile` latents decoded at once.

    decode: jitted latents -> pixels, called with at most four shapes of tiles. Neighbours share `overlap` of a side.
    Raises ValueError where that is not a whole number of latents, or leaves none.
    """
    step = int(tile * (1 - overlap))
    if not 0 < step <= tile or tile * overlap % 1:
        raise ValueError(f"tiles of {tile} cannot overlap by {overlap} of a side")
    latents = np.asarray(latents)
    h, w = latents.shape[1:3]
    rows: list[list[np.ndarray]] = []
    for i in range(0, h, step):
        row = []
        for j in range(0, w, step):
            part = latents[:, i : i + tile, j : j + tile]
            pixels = np.array(decode(part))
            scale = pixels.shape[1] // part.shape[1]
            extent = int(tile * scale * overlap)
            if i:
                _blend(rows[-1][len(row)], pixels, extent)
            if j:
                _blend(row[-1].swapaxes(1, 2), pixels.swapaxes(1, 2), extent)
            row.append(pixels)
        rows.append(row)
    keep = tile * scale - extent
    return np.concatenate([np.concatenate([t[:, :keep, :keep] for t in row], axis=2) for row in rows], axis=1)


def _blend(before: np.ndarray, after: np.ndarray, extent: int) -> None:
    """Fades the last `extent` rows of `before` into the first of `after`, in place."""
    extent = min(before.shape[1], after.shape[1], extent)
    weight = (np.arange(extent, dtype=np.float32) / max(extent, 1))[None, :, None, None]
    after[:, :extent] = before[:, before.shape[1] - extent :] * (1 - weight) + after[:, :extent] * weight
