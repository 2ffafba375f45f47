"""Replies as tokens in rows of fixed shapes: replies to one prompt stand together, where its images are once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.example import Example
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.image_prompts import digest
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Measured, encode_measured, measure_example
from edit_rl_jax.vlm.tokenizer import TextEncoder

ARRAYS = ("advantage", "old", "engine")  # of answer tokens, beside "weights"; see `update`


@dataclasses.dataclass(frozen=True)
class Batch:
    """Packed replies. arrays: of `vlm.rows`, with those of ARRAYS, [M, B, ...]. count: microbatches
    that hold something, the first ones. names: keys of the replies in each row, [M][B]. left_out: replies for which
    there was no row. images: passes through the vision tower that an update makes."""

    arrays: dict[str, np.ndarray]
    count: int
    names: list[list[tuple[str, ...]]]
    left_out: int
    images: int

    @property
    def real_token_share(self) -> float:
        """The share of tokens, in the microbatches that are run, that are no padding."""
        used = self.arrays["segments"][: self.count]
        return float((used > 0).mean()) if used.size else 0.0


class _Row:
    def __init__(self, bucket: Bucket):
        self.samples: list[int] = []
        self.tokens, self.answers = bucket.tokens, bucket.answers  # left
        self.grids: dict[str, Any] = {}


@dataclasses.dataclass(frozen=True)
class Packer:
    """Packs replies into M microbatches of B rows of a bucket."""

    encode: TextEncoder | None
    arch: Architecture
    images: ImageSettings
    bucket: Bucket
    rows: int
    microbatches: int

    def shapes(self) -> dict[str, jax.ShapeDtypeStruct]:
        """Says what a batch is [M, B, ...], without making one: a pod's whole batch may not fit into a host."""
        one, lead = empty_batch(self.bucket, 1, self.arch, extras=ARRAYS), (self.microbatches, self.rows)
        return {k: jax.ShapeDtypeStruct(lead + v.shape[1:], v.dtype) for k, v in one.items()}

    def empty(self) -> dict[str, np.ndarray]:
        """Makes the arrays [M, B, ...] of padding only."""
        flat = empty_batch(self.bucket, self.rows * self.microbatches, self.arch, extras=ARRAYS)
        return {k: v.reshape(self.microbatches, self.rows, *v.shape[1:]) for k, v in flat.items()}

    def pack(self, replies: Sequence[Example]) -> Batch:
        """Packs replies, those to one prompt standing together. Answers are `Tokens` with the arrays that `update` asks
        for. Each goes where most of its images are, then where it leaves least room. Raises RecordError or ImageError,
        naming the key."""
        samples = [measure_example(e, self.encode, self.arch.image_token_id, self.images) for e in replies]
        names = [tuple(digest(im).hex() for im in s.images) for s in samples]
        rows, left_out = self._place(samples, names)
        arrays, keys = self.empty(), [[() for _ in range(self.rows)] for _ in range(self.microbatches)]
        for i, row in enumerate(rows):
            m, b = divmod(i, self.rows)
            known: set[str] = set()
            encoded = []
            for n in row.samples:
                how = dict(names=names[n], known=set(known))
                encoded.append(encode_measured(samples[n], self.arch, self.images, **how))
                known |= set(names[n])
            write_row({k: v[m] for k, v in arrays.items()}, b, encoded, self.arch)
            keys[m][b] = tuple(samples[n].key for n in row.samples)
        return Batch(arrays, -(-len(rows) // self.rows), keys, left_out, sum(len(row.grids) for row in rows))

    def check(self, reply: Example) -> None:
        """Raises RecordError for a reply whose images no empty row takes."""
        s = measure_example(reply, self.encode, self.arch.image_token_id, self.images)
        grids = list({digest(image): grid for image, grid in zip(s.images, s.grids)}.values())
        if not self._fits(grids):
            patches = sum(int(np.prod(grid)) for grid in grids)
            raise RecordError(s.key, "images too large", f"{patches} patches, data.buckets {self.bucket}")

    def _place(self, samples: Sequence[Measured], names: Sequence[tuple[str, ...]]) -> tuple[list[_Row], int]:
        rows: list[_Row] = []
        left_out = 0
        for n, s in enumerate(samples):
            tokens, answers = len(s.tokens), int(s.answer.sum())
            grids = dict(zip(names[n], s.grids))
            open_rows = [r for r in rows if r.tokens >= tokens and r.answers >= answers]
            open_rows.sort(key=lambda r: (-len(r.grids.keys() & grids.keys()), r.tokens))  # noqa: B023
            fresh = [_Row(self.bucket)] if len(rows) < self.rows * self.microbatches else []
            fits = lambda r: r.grids.keys() >= grids.keys() or self._fits(list((r.grids | grids).values()))  # noqa: B023
            into = next((r for r in open_rows + fresh if fits(r)), None)
            if into is None or min(into.tokens - tokens, into.answers - answers) < 0:
                left_out += 1
                continue
            if not into.samples:
                rows.append(into)
            into.samples.append(n)
            into.tokens, into.answers, into.grids = into.tokens - tokens, into.answers - answers, into.grids | grids
        return rows, left_out

    def _fits(self, grids: list[Any]) -> bool:
        return self.arch.vision_rows(self.bucket.vision_rows, self.bucket.row_patches).place(grids)
