"""The arrays of packed rows: a plain dict of arrays of fixed shapes. NumPy only, so that data workers may import it.

B text rows, T tokens a row, R vision rows a text row, P patch slots a vision row, A answer tokens a row:

    tokens            i32 [B, T]
    positions         i32 [B, axes, T]     of the family (M-RoPE: t, h, w)
    segments          i32 [B, T]           sample inside the row from 1, 0 = padding
    image_index       i32 [B, T]           index into the row's merged tokens, -1 = text
    patches           f32 [B, R, P, C]     normalised, zero in padding; `merge_unit` slots in a row make a merged token
    patch_segments    i32 [B, R, P]        frame inside the vision row from 1, 0 = padding
    ...               [B, R, P, ...]       the family's further vision arrays, zero in padding
    answer_index      i32 [B, A]           position whose hidden state predicts the answer token, -1 = padding
    answer_targets    i32 [B, A]           token to predict
    answer_weights    f32 [B, A]           0 = padding
    answer_NAME       f32 [B, A]           on request, of answers that are given as tokens

A training step gets each with a leading accumulation axis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import image_size
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.packing import Bucket, Demand, plan_batches
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import lay_out
from edit_rl_jax.vlm.samples import Encoded, Measured, Together, encode_measured, image_places, measure_example
from edit_rl_jax.vlm.tokenizer import TextEncoder, Tokenizer


def empty_batch(
    bucket: Bucket, rows: int, arch: Architecture, patch_dtype=np.float32, extras: Sequence[str] = ()
) -> dict[str, np.ndarray]:
    """`rows` rows of padding only."""
    B, T, R, P, A = rows, bucket.tokens, bucket.vision_rows, bucket.row_patches, bucket.answers
    batch = {k: np.zeros((B, T), np.int32) for k in ("tokens", "segments")}
    batch["positions"] = np.zeros((B, arch.position_axes, T), np.int32)
    batch["image_index"] = np.full((B, T), -1, np.int32)
    batch["patches"] = np.zeros((B, R, P, arch.patch_dim), patch_dtype)
    for name, one in arch.vision_arrays(arch.vision_rows(R, P).layout()).items():
        batch[name] = np.zeros((B, *one.shape), one.dtype)
    batch["answer_index"], batch["answer_targets"] = np.full((B, A), -1, np.int32), np.zeros((B, A), np.int32)
    return batch | {f"answer_{k}": np.zeros((B, A), np.float32) for k in ("weights", *extras)}


def write_row(batch: dict[str, np.ndarray], row: int, samples: Sequence[Encoded], arch: Architecture) -> None:
    """Places samples, in order, into row `row` of a batch, in place. Raises VisionDoesNotFitError."""
    if not samples:
        return
    grids, seen, shown = [], {}, []
    for s in samples:
        mine = []
        for i, grid in enumerate(s.grids):
            name = s.names[i] if s.names else (len(shown), i)
            if name not in seen:
                seen[name] = len(grids)
                grids.append(grid)
            mine.append(seen[name])
        shown.append(mine)
    layout = lay_out(grids, arch.vision_rows(*batch["patches"].shape[1:3]))
    real = layout.source >= 0
    batch["patches"][row, real] = np.concatenate([s.patches for s in samples])[layout.source[real]]
    for name, value in arch.vision_arrays(layout).items():
        batch[name][row] = value
    start, answers = 0, 0
    extras = {k for k in batch if k.startswith("answer_")} - {"answer_index", "answer_targets", "answer_weights"}
    for s, sample in enumerate(samples):
        end = start + len(sample.tokens)
        batch["tokens"][row, start:end] = sample.tokens
        batch["positions"][row, :, start:end] = sample.positions
        batch["segments"][row, start:end] = s + 1
        for place, image in zip(image_places(sample.tokens[~sample.answer], sample.grids, arch), shown[s]):
            batch["image_index"][row, start + place] = layout.merged_index[image]
        where = np.flatnonzero(sample.answer)
        span = slice(answers, answers + len(where))
        batch["answer_index"][row, span] = start + where - 1
        batch["answer_targets"][row, span] = sample.tokens[where]
        batch["answer_weights"][row, span] = sample.arrays.get("weights", 1.0)
        for name in extras:
            batch[name][row, span] = sample.arrays[name.removeprefix("answer_")]
        start, answers = end, answers + len(where)


class Packed:
    """The `formats.Format` of a VLM: samples one after another in rows of text, their images in vision rows.

    A tuple of examples is one sample here: its parts stand side by side in one row, where an image of several is once.

    tokenizer: None where only shapes are wanted. arch: the model's. images: default the model's own. extras: arrays of
    the answer tokens that every example brings (see `data.example.Tokens`), as `answer_NAME` in the batch; "weights"
    needs no request. positions: as in `samples.encode_measured`. Raises ValueError for a bucket whose patch slots are
    not whole windows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        arch: Architecture,
        buckets: Sequence[Bucket],
        images: ImageSettings | None = None,
        patch_dtype=np.float32,
        extras: Sequence[str] = (),
        positions: str = "mrope",
    ):
        for b in buckets:
            try:
                arch.vision_rows(b.vision_rows, b.row_patches)
            except ValueError as e:
                raise ValueError(f"bucket {b}: {e}") from None
        self.buckets, self.arch, self.patch_dtype, self.extras = tuple(buckets), arch, patch_dtype, tuple(extras)
        self.images, self.positions = images or arch.images(), positions
        self._text = None if tokenizer is None else TextEncoder(tokenizer)

    def _demand(self, sample: Together | Demand) -> Demand:
        if isinstance(sample, Demand):
            return sample
        first = ((i, j) for i, row in enumerate(sample.shown()) for j, at in enumerate(row) if at == (i, j))
        grids = tuple(sample[i].grids[j] for i, j in first)
        return Demand(sum(len(s.tokens) for s in sample), grids, sum(int(s.answer.sum()) for s in sample))

    def measure(self, example: Example | tuple[Example, ...]) -> Together:
        parts = example if isinstance(example, tuple) else (example,)
        sample = Together(measure_example(e, self._text, self.arch.image_token_id, self.images) for e in parts)
        for s in sample:
            if missing := [k for k in self.extras if k not in s.arrays]:
                raise RecordError(s.key, "malformed answer", f"without {', '.join(missing)}")
        demand = self._demand(sample)
        if not any(demand.fits(b, self.arch) for b in self.buckets):
            raise RecordError(sample.key, "too long for every bucket", str(demand))
        return sample

    def outline(self, sample: Together) -> tuple[Any, ...]:
        return dataclasses.astuple(self._demand(sample))

    def outlined(self, outline: Sequence[Any]) -> Demand:
        tokens, grids, answers = outline
        return Demand(tokens, tuple((t, h, w) for t, h, w in grids), answers)

    def load(self, sample: Together | Demand) -> tuple[int, int]:
        demand = self._demand(sample)
        return demand.tokens, demand.patches

    def capacity(self) -> tuple[int, int]:
        return max(b.tokens for b in self.buckets), max(b.slots for b in self.buckets)

    def plan(self, samples: Sequence[Together | Demand], rows: int, final: bool, rng: np.random.Generator | None):
        return plan_batches([self._demand(s) for s in samples], self.buckets, self.arch, rows, final, rng)

    def empty(self, bucket: int, rows: int) -> dict[str, np.ndarray]:
        return empty_batch(self.buckets[bucket], rows, self.arch, self.patch_dtype, self.extras)

    def encode(self, sample: Together) -> Together:
        return self._encode(sample, sample.shown())

    def blank(self, sample: Together) -> Together:
        return self._encode(Together(map(_blank, sample)), sample.shown())

    def _encode(self, sample: Together, shown: list[list[tuple[int, int]]]) -> Together:
        out, known = [], set()
        for s, row in zip(sample, shown):
            names = tuple(f"{sample.key} {at}" for at in row) if len(sample) > 1 else ()
            how = dict(positions=self.positions, names=names, known=known)
            out.append(encode_measured(s, self.arch, self.images, **how))
            known |= set(names)
        return Together(out)

    def write(self, batch: dict[str, np.ndarray], row: int, encoded: Sequence[Together]) -> None:
        write_row(batch, row, [s for together in encoded for s in together], self.arch)

    def counts(self, batch: dict[str, np.ndarray]) -> dict[str, int]:
        return {
            "answers": int((batch["answer_index"] >= 0).sum()),
            "tokens": int((batch["segments"] > 0).sum()),
            "patches": int((batch["patch_segments"] > 0).sum()),
            "token_slots": batch["tokens"].size,
            "patch_slots": batch["patch_segments"].size,
        }


def _blank(sample: Measured) -> Measured:
    pixels = tuple(np.zeros(image_size(im, max_pixels=2**62) + (3,), np.uint8) for im in sample.images)
    tokens, nothing = np.where(sample.answer, 0, sample.tokens), np.zeros_like(sample.answer)
    none = {k: np.zeros(0, np.float32) for k in sample.arrays}
    return dataclasses.replace(sample, tokens=tokens, images=pixels, answer=nothing, arrays=none)
