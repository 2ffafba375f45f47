"""Where everything stands in OmniGen2's sequence: segments and rotary positions of rows. NumPy on the host.

A row is [text | references | noise], each padded to its length. Segment 0 is padding. Text token i turns by
(i, i, i); the patch at (row, column) of an image by (s, row, column), where s starts at the text's length and grows by
the longer side (in patches) of every image before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.omnigen2.config import REFERENCES

Size = tuple[int, int]
"""Rows and columns of an image in tokens."""


class Layout(TypedDict):
    """Index arrays of a batch. T, S, N: the lengths of text, references, noise."""

    text_segments: np.ndarray  # i32 [B, T], 1 = text
    text_positions: np.ndarray  # i32 [B, T, 3]
    reference_segments: np.ndarray  # i32 [B, S], reference from 1
    reference_positions: np.ndarray  # i32 [B, S, 3]
    noise_segments: np.ndarray  # i32 [B, N], 1 = image
    noise_positions: np.ndarray  # i32 [B, N, 3]


def layout(
    text_lengths: Sequence[int], references: Sequence[Sequence[Size]], sizes: Sequence[Size], lengths: TokenLengths
) -> Layout:
    """Index arrays of rows with that many text tokens, references of those sizes and an output of that size.

    A branch of guidance without references has `references=[()] * B`. Raises ValueError naming the row that does not
    fit the lengths or has more than 5 references.
    """
    rows = len(sizes)
    zeros = lambda n: (np.zeros((rows, n), np.int32), np.zeros((rows, n, 3), np.int32))
    text, text_at = zeros(lengths.text)
    reference, reference_at = zeros(lengths.references)
    noise, noise_at = zeros(lengths.noise)
    for b, (length, images, size) in enumerate(zip(text_lengths, references, sizes, strict=True)):
        used = {"text": length, "references": sum(h * w for h, w in images), "noise": size[0] * size[1]}
        if bad := {k: n for k, n in used.items() if n > getattr(lengths, k)}:
            raise ValueError(f"row {b}: {bad} tokens are more than {lengths} holds")
        if len(images) > REFERENCES:
            raise ValueError(f"row {b}: {len(images)} references, OmniGen2 takes {REFERENCES} at most")
        text[b, :length] = 1
        text_at[b, :length] = np.arange(length)[:, None]
        start, shift = 0, length
        for k, (h, w) in enumerate(images):
            reference[b, start : start + h * w] = k + 1
            reference_at[b, start : start + h * w] = grid(shift, h, w)
            start, shift = start + h * w, shift + max(h, w)
        noise[b, : used["noise"]] = 1
        noise_at[b, : used["noise"]] = grid(shift, *size)
    return Layout(
        text_segments=text,
        text_positions=text_at,
        reference_segments=reference,
        reference_positions=reference_at,
        noise_segments=noise,
        noise_positions=noise_at,
    )


def grid(shift: int, height: int, width: int) -> np.ndarray:
    """[height * width, 3] of (shift, row, column)."""
    row, column = np.divmod(np.arange(height * width), width)
    return np.stack([np.full_like(row, shift), row, column], axis=-1).astype(np.int32)
