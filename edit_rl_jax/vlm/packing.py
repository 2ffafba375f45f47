"""Packing: which samples share a row. NumPy on the host, deterministic; `rows` writes the arrays.

A row of text holds several samples one after another (segments keep them apart); its images lie in R vision rows of P
patch slots, each image whole in one of them. A bucket fixes all shapes, so one bucket is one compiled program.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.positions import Grid


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The shapes of one row: T text tokens, R vision rows of P patch slots, A answer tokens."""

    tokens: int
    vision_rows: int
    row_patches: int
    answers: int

    @property
    def slots(self) -> int:
        return self.vision_rows * self.row_patches

    @property
    def area(self) -> int:
        """Grows with what a row costs."""
        return self.tokens + self.slots

    def __str__(self) -> str:
        return f"T{self.tokens} V{self.vision_rows}x{self.row_patches} A{self.answers}"


@dataclasses.dataclass(frozen=True)
class Demand:
    """What a sample takes of a row: text tokens, images by their grids (t, h, w) in patches, answer tokens."""

    tokens: int
    grids: tuple[Grid, ...]
    answers: int

    @property
    def patches(self) -> int:
        return sum(t * h * w for t, h, w in self.grids)

    def fits(self, bucket: Bucket, arch: Architecture) -> bool:
        """Whether the sample fits an empty row."""
        if self.tokens > bucket.tokens or self.answers > bucket.answers:
            return False
        return arch.vision_rows(bucket.vision_rows, bucket.row_patches).place(self.grids)


class Pool:
    """Samples waiting for rows, as arrays for a fast greedy search."""

    def __init__(self, demands: Sequence[Demand], arch: Architecture, rng: np.random.Generator | None = None):
        self.demands, self.arch = list(demands), arch
        # a little chance in the search, so that the same samples do not share their rows in every epoch
        self.chance = np.ones(len(demands)) if rng is None else rng.uniform(0.95, 1.05, len(demands))
        self.need = np.array([(d.tokens, d.patches, d.answers) for d in demands], np.int64).reshape(-1, 3)
        self.largest = np.array([max((h * w for _, h, w in d.grids), default=0) for d in demands], np.int64)
        self.alive = np.ones(len(demands), bool)

    def fill(self, bucket: Bucket, first: int, tries: int = 8) -> list[int]:
        """Samples of a row grown greedily from `first`: always the one that best matches what is left."""
        left = np.array([bucket.tokens, bucket.slots, bucket.answers], np.int64)
        scale = 1.0 / np.maximum(left, 1)
        empty = lambda: self.arch.vision_rows(bucket.vision_rows, bucket.row_patches)
        rows, alive, row = empty(), self.alive.copy(), []
        candidates: Sequence[int] = [first]
        while len(candidates):
            for i in candidates:
                alive[i] = False
                if rows.place(self.demands[i].grids):
                    row.append(int(i))
                    left = left - self.need[i]
                    break
            ok = np.flatnonzero(alive & (self.need <= left).all(1) & (self.largest <= rows.largest))
            # the text and vision parts decide; the answer budget only bounds
            match = (self.need[ok, :2] * scale[:2]) @ (left[:2] * scale[:2]) * self.chance[ok]
            candidates = ok[np.argsort(-match, kind="stable")[:tries]]
        # a written row places all its images at once, largest first, not sample by sample: seldom, that fits less
        while not empty().place([g for i in row for g in self.demands[i].grids]):
            row.pop()
        return row

    def share(self, bucket: Bucket, row: list[int]) -> tuple[float, float]:
        """(text tokens, patches) that the row uses of its bucket."""
        used = self.need[row].sum(0)
        return used[0] / bucket.tokens, used[1] / max(bucket.slots, 1)


def plan_rows(
    demands: Sequence[Demand], buckets: Sequence[Bucket], arch: Architecture, rng: np.random.Generator | None = None
) -> list[tuple[int, list[int]]]:
    """Rows for all samples, as (bucket index, samples).

    Starts each row from the sample that is hardest to place and takes the bucket that the row fills best.
    Raises ValueError naming the position of a sample that fits no bucket.
    """
    pool = Pool(demands, arch, rng)
    largest = np.maximum(np.array([(b.tokens, b.slots, b.answers) for b in buckets]).max(0), 1)
    hardness = (pool.need / largest).max(1) * pool.chance
    rows = []
    for first in np.argsort(-hardness, kind="stable"):
        if not pool.alive[first]:
            continue
        best = None
        for b, bucket in enumerate(buckets):
            if demands[first].fits(bucket, arch):
                row = pool.fill(bucket, int(first))
                share = pool.share(bucket, row)
                if best is None or (sum(share), min(share)) > best[0]:
                    best = (sum(share), min(share)), b, row
        if best is None:
            raise ValueError(f"sample {first} fits no bucket: {demands[first]}")
        rows.append(best[1:])
        pool.alive[best[2]] = False
    return rows


def plan_batches(
    demands: Sequence[Demand],
    buckets: Sequence[Bucket],
    arch: Architecture,
    rows: int,
    final: bool,
    rng: np.random.Generator | None = None,
) -> tuple[list[tuple[int, list[list[int]]]], list[int]]:
    """Batches, as (bucket index, at most `rows` rows of samples), and the samples left for later (none when `final`).

    With `rng`, rows and batches come in random order: planning goes from hard to easy samples, training must not.
    Only the better-filled half of the rows is given out while more samples are to come: the rest meets new partners. At
    the end of an epoch what is left goes into the one bucket that takes it in the smallest area (text tokens + patch
    slots, padding rows included), or, where that is smaller, into one last batch a bucket.
    """
    pool = Pool(demands, arch)
    queues: list[list[list[int]]] = [[] for _ in buckets]
    for b, row in plan_rows(demands, buckets, arch, rng):
        queues[b].append(row)
    batches = []
    for b, bucket in enumerate(buckets):
        whole = len(queues[b]) // rows
        if not final:
            queues[b].sort(key=lambda row: -sum(pool.share(bucket, row)))  # noqa: B023
            whole = min(whole, max(1, len(queues[b]) // (2 * rows)))
        given, queues[b] = queues[b][: whole * rows], queues[b][whole * rows :]
        given = given if rng is None else [given[i] for i in rng.permutation(len(given))]
        batches += [(b, given[i * rows : (i + 1) * rows]) for i in range(whole)]
    batches = batches if rng is None else [batches[i] for i in rng.permutation(len(batches))]
    rest = sorted(i for q in queues for row in q for i in row)
    if not final or not rest:
        return batches, rest
    area = [b.area for b in buckets]
    options = [(sum(area[b] for b, q in enumerate(queues) if q), [(b, q) for b, q in enumerate(queues) if q])]
    for b, bucket in enumerate(buckets):
        if all(demands[i].fits(bucket, arch) for i in rest):
            packed = [[rest[i] for i in row] for _, row in plan_rows([demands[i] for i in rest], [bucket], arch)]
            last = [(b, packed[i : i + rows]) for i in range(0, len(packed), rows)]
            options.append((area[b] * len(last), last))
    return batches + min(options, key=lambda o: o[0])[1], []
