"""Where everything stands in FLUX.1-Kontext's sequence: segments and rotary positions of rows. NumPy on the host.

A row is [text | noise | references], each padded to its length. Segment 0 is padding of the batch. Text stands at
(0, 0, 0), the patch at (row, column) of the result at (0, row, column), of reference k at (k, row, column).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from edit_rl_jax.editors.base import TokenLengths

Size = tuple[int, int]
"""Rows and columns of an image in tokens."""


class Layout(TypedDict):
    """Index arrays of a batch. T, S, N: the lengths of text, references, noise."""

    text_segments: np.ndarray  # i32 [B, T], 1 = text
    text_positions: np.ndarray  # i32 [B, T, 3]
    noise_segments: np.ndarray  # i32 [B, N], 1 = image
    noise_positions: np.ndarray  # i32 [B, N, 3]
    reference_segments: np.ndarray  # i32 [B, S], reference from 1
    reference_positions: np.ndarray  # i32 [B, S, 3]


def layout(
    text_lengths: Sequence[int], references: Sequence[Sequence[Size]], sizes: Sequence[Size], lengths: TokenLengths
) -> Layout:
    """Index arrays of rows with that many text tokens (FLUX's own padding among them), references of those sizes and an
    output of that size. Raises ValueError naming the row that does not fit the lengths."""
    rows = len(sizes)
    zeros = lambda n: (np.zeros((rows, n), np.int32), np.zeros((rows, n, 3), np.int32))
    text, text_at = zeros(lengths.text)
    noise, noise_at = zeros(lengths.noise)
    reference, reference_at = zeros(lengths.references)
    for b, (length, images, size) in enumerate(zip(text_lengths, references, sizes, strict=True)):
        used = {"text": length, "references": sum(h * w for h, w in images), "noise": size[0] * size[1]}
        if bad := {k: n for k, n in used.items() if n > getattr(lengths, k)}:
            raise ValueError(f"row {b}: {bad} tokens are more than {lengths} holds")
        text[b, :length] = 1
        noise[b, : used["noise"]] = 1
        noise_at[b, : used["noise"]] = grid(0, *size)
        start = 0
        for k, (h, w) in enumerate(images, 1):
            reference[b, start : start + h * w] = k
            reference_at[b, start : start + h * w] = grid(k, h, w)
            start += h * w
    return Layout(
        text_segments=text,
        text_positions=text_at,
        noise_segments=noise,
        noise_positions=noise_at,
        reference_segments=reference,
        reference_positions=reference_at,
    )


def grid(number: int, height: int, width: int) -> np.ndarray:
    """[height * width, 3] of (number, row, column)."""
    row, column = np.divmod(np.arange(height * width), width)
    return np.stack([np.full_like(row, number), row, column], axis=-1).astype(np.int32)
