"""The batch: a plain dict of arrays of fixed shapes. NumPy only, so that data workers may import it.

B text rows, T tokens a row, R vision rows a text row, P patch slots a vision row, A answer tokens a row, C patch length
(1176). W = VisionConfig.window_tokens. Slots stand in window order: four slots in a row make one merged token, windows
are whole merged tokens, and every W consecutive slots of the flattened R P form a dense group (R P is a multiple of W).
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np


class Batch(TypedDict, total=False):
    """Arrays of one packed batch. A training step gets each with a leading accumulation axis."""

    tokens: np.ndarray  # i32 [B, T]
    positions: np.ndarray  # i32 [B, 3, T], M-RoPE (t, h, w)
    segments: np.ndarray  # i32 [B, T], sample inside the row from 1, 0 = padding
    image_index: np.ndarray  # i32 [B, T], index into the row's R P / 4 merged tokens, -1 = text
    patches: np.ndarray  # f32 [B, R, P, C], normalised, features in (C, T, H, W) order, zero in padding
    patch_segments: np.ndarray  # i32 [B, R, P], frame inside the vision row from 1, 0 = padding: full attention
    window_segments: np.ndarray  # i32 [B, R, P], window inside its group of W slots from 1, 0 = padding
    patch_hw: np.ndarray  # i32 [B, R, P, 2], row and column of the patch in its image, for the rotary tables
    answer_index: np.ndarray  # i32 [B, A], position whose hidden state predicts the answer token, -1 = padding
    answer_targets: np.ndarray  # i32 [B, A], token to predict
    answer_weights: np.ndarray  # f32 [B, A], 0 = padding


def batch_spec(
    B: int, T: int, R: int, P: int, A: int, *, patch_dim: int = 1176, accum: int | None = None
) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Shape and dtype of every array of a batch; `accum` puts an accumulation axis in front."""
    i, f = np.dtype("int32"), np.dtype("float32")
    spec = {
        "tokens": ((B, T), i),
        "positions": ((B, 3, T), i),
        "segments": ((B, T), i),
        "image_index": ((B, T), i),
        "patches": ((B, R, P, patch_dim), f),
        "patch_segments": ((B, R, P), i),
        "window_segments": ((B, R, P), i),
        "patch_hw": ((B, R, P, 2), i),
        "answer_index": ((B, A), i),
        "answer_targets": ((B, A), i),
        "answer_weights": ((B, A), f),
    }
    lead = () if accum is None else (accum,)
    return {name: (lead + shape, dtype) for name, (shape, dtype) in spec.items()}
