"""Where everything stands in OmniGen2's sequence: segments and rotary positions of a bucket. NumPy on the host.

A row is [text | references | noise], each padded to the bucket's length. Segment 0 is padding. Text token i turns by
(i, i, i); the patch at (row, column) of an image by (s, row, column), where s starts at the text's length and grows by
the longer side (in patches) of every image before.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypedDict

import numpy as np

from edit_rl_jax.editors.base import Bucket, Size
from edit_rl_jax.editors.omnigen2.config import REFERENCES


class Layout(TypedDict):
    """Index arrays of a batch. T, S, N: the bucket's text, references, noise."""

    text_segments: np.ndarray  # i32 [B, T], 1 = text
    text_positions: np.ndarray  # i32 [B, T, 3]
    reference_segments: np.ndarray  # i32 [B, S], reference from 1
    reference_positions: np.ndarray  # i32 [B, S, 3]
    noise_segments: np.ndarray  # i32 [B, N], 1 = image
    noise_positions: np.ndarray  # i32 [B, N, 3]


def layout(
    text_lengths: Sequence[int], references: Sequence[Sequence[Size]], sizes: Sequence[Size], bucket: Bucket
) -> Layout:
    """Index arrays of rows with that many text tokens, references of those sizes and an output of that size.

    A branch of guidance without references has `references=[()] * B`. Raises ValueError naming the row that does not
    fit the bucket or has more than 5 references.
    """
    rows = len(sizes)
    zeros = lambda n: (np.zeros((rows, n), np.int32), np.zeros((rows, n, 3), np.int32))
    text, text_at = zeros(bucket.text)
    reference, reference_at = zeros(bucket.references)
    noise, noise_at = zeros(bucket.noise)
    for b, (length, images, size) in enumerate(zip(text_lengths, references, sizes, strict=True)):
        used = {"text": length, "references": sum(h * w for h, w in images), "noise": size[0] * size[1]}
        if bad := {k: n for k, n in used.items() if n > getattr(bucket, k)}:
            raise ValueError(f"row {b}: {bad} tokens are more than {bucket} holds")
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


def padded(rows: Sequence[np.ndarray | Sequence[np.ndarray]], length: int) -> np.ndarray:
    """[B, length, C] fp32 of ragged rows of tokens [n, C] (or lists of them, which follow each other), zero after."""
    joined = [np.concatenate(list(r)) if isinstance(r, list | tuple) and len(r) else np.asarray(r) for r in rows]
    width = next(r.shape[-1] for r in joined if r.ndim == 2)
    out = np.zeros((len(joined), length, width), np.float32)
    for b, r in enumerate(joined):
        if r.ndim == 2:
            out[b, : len(r)] = r
    return out
