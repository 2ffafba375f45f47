"""Packing: which samples share a row, and the arrays of a batch. NumPy on the host, deterministic.

A row of text holds several samples one after another (segments keep them apart); its images lie in R vision rows of P
patch slots, each image whole in one of them. A bucket fixes all shapes, so one bucket is one compiled program.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import ImageSettings, image_size
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, VisionConfig
from edit_rl_jax.vlm.qwen2_5_vl.inputs import batch_spec
from edit_rl_jax.vlm.qwen2_5_vl.positions import Grid, pack_vision
from edit_rl_jax.vlm.tokenizer import Encoded, Measured, TextEncoder, Tokenizer, encode_measured, measure_example


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

    def fits(self, bucket: Bucket, vision: VisionConfig) -> bool:
        """Whether the sample fits an empty row."""
        if self.tokens > bucket.tokens or self.answers > bucket.answers:
            return False
        return VisionRows(bucket, vision).place(self.grids)


@functools.lru_cache(maxsize=8192)
def _windows(grid: Grid, vision: VisionConfig) -> tuple[int, tuple[int, ...]]:
    """Patches of one frame in whole windows: how many; and of its ragged windows: sizes, largest first."""
    _, h, w = grid
    unit, side, merge = vision.merge_unit, vision.window_merged, vision.spatial_merge_size
    (down, low), (across, right) = divmod(h // merge, side), divmod(w // merge, side)
    ragged = [side * right] * down + [side * low] * across + [low * right]
    return down * across, tuple(sorted((unit * n for n in ragged if n), reverse=True))


class VisionRows:
    """How full the vision rows of a bucket are: the placement of `positions.pack_vision`, without its arrays.

    Windows lie in groups of W slots of the flattened rows, best fit, largest first; a frame lies in one row.
    """

    def __init__(self, bucket: Bucket, vision: VisionConfig):
        self._vision, group, slots = vision, vision.window_tokens, bucket.row_patches
        self._rows: list[tuple[int, int, list[int]]] = []  # free slots, whole free groups, free tails (ascending)
        for start in range(0, bucket.slots, slots):
            cuts = sorted({start, start + slots, *range(-(-start // group) * group, start + slots, group)})
            sizes = [end - begin for begin, end in zip(cuts, cuts[1:])]
            self._rows.append((slots, sizes.count(group), sorted(n for n in sizes if n < group)))

    @property
    def largest(self) -> int:
        """An upper bound on the patches of a frame that still fits."""
        return max(free for free, _, _ in self._rows)

    def place(self, grids: Sequence[Grid]) -> bool:
        """Adds the images, largest first; False, and nothing added, if they do not fit."""
        rows = list(self._rows)
        frames = [(1, h, w) for t, h, w in grids for _ in range(t)]
        for frame in sorted(frames, key=lambda g: -g[1] * g[2]):
            for r in sorted(range(len(rows)), key=lambda r: rows[r][0]):
                placed = self._put(rows[r], frame)
                if placed is not None:
                    rows[r] = placed
                    break
            else:
                return False
        self._rows = rows
        return True

    def _put(self, row: tuple[int, int, list[int]], frame: Grid) -> tuple[int, int, list[int]] | None:
        free, whole, tails = row
        size, (windows, ragged) = frame[1] * frame[2], _windows(frame, self._vision)
        if size > free or windows > whole:
            return None
        whole, tails = whole - windows, list(tails)
        for n in ragged:
            at = bisect.bisect_left(tails, n)
            if at < len(tails):
                left = tails.pop(at) - n
            elif whole:
                whole, left = whole - 1, self._vision.window_tokens - n
            else:
                return None
            if left:
                bisect.insort(tails, left)
        return free - size, whole, tails


class Pool:
    """Samples waiting for rows, as arrays for a fast greedy search."""

    def __init__(self, demands: Sequence[Demand], vision: VisionConfig, rng: np.random.Generator | None = None):
        self.demands, self.vision = list(demands), vision
        # a little chance in the search, so that the same samples do not share their rows in every epoch
        self.chance = np.ones(len(demands)) if rng is None else rng.uniform(0.95, 1.05, len(demands))
        self.need = np.array([(d.tokens, d.patches, d.answers) for d in demands], np.int64).reshape(-1, 3)
        self.largest = np.array([max((h * w for _, h, w in d.grids), default=0) for d in demands], np.int64)
        self.alive = np.ones(len(demands), bool)

    def fill(self, bucket: Bucket, first: int, tries: int = 8) -> list[int]:
        """Samples of a row grown greedily from `first`: always the one that best matches what is left."""
        left = np.array([bucket.tokens, bucket.slots, bucket.answers], np.int64)
        scale = 1.0 / np.maximum(left, 1)
        rows, alive, row = VisionRows(bucket, self.vision), self.alive.copy(), []
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
        # pack_vision sorts the whole row's images, where the above went sample by sample: seldom, that fits less
        while not VisionRows(bucket, self.vision).place([g for i in row for g in self.demands[i].grids]):
            row.pop()
        return row

    def share(self, bucket: Bucket, row: list[int]) -> tuple[float, float]:
        """(text tokens, patches) that the row uses of its bucket."""
        used = self.need[row].sum(0)
        return used[0] / bucket.tokens, used[1] / max(bucket.slots, 1)


def plan_rows(
    demands: Sequence[Demand], buckets: Sequence[Bucket], vision: VisionConfig, rng: np.random.Generator | None = None
) -> list[tuple[int, list[int]]]:
    """Rows for all samples, as (bucket index, samples).

    Starts each row from the sample that is hardest to place and takes the bucket that the row fills best.
    Raises ValueError naming the position of a sample that fits no bucket.
    """
    pool = Pool(demands, vision, rng)
    largest = np.maximum(np.array([(b.tokens, b.slots, b.answers) for b in buckets]).max(0), 1)
    hardness = (pool.need / largest).max(1) * pool.chance
    rows = []
    for first in np.argsort(-hardness, kind="stable"):
        if not pool.alive[first]:
            continue
        best = None
        for b, bucket in enumerate(buckets):
            if demands[first].fits(bucket, vision):
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
    vision: VisionConfig,
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
    pool = Pool(demands, vision)
    queues: list[list[list[int]]] = [[] for _ in buckets]
    for b, row in plan_rows(demands, buckets, vision, rng):
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
        if all(demands[i].fits(bucket, vision) for i in rest):
            packed = [[rest[i] for i in row] for _, row in plan_rows([demands[i] for i in rest], [bucket], vision)]
            last = [(b, packed[i : i + rows]) for i in range(0, len(packed), rows)]
            options.append((area[b] * len(last), last))
    return batches + min(options, key=lambda o: o[0])[1], []


def empty_batch(bucket: Bucket, rows: int, patch_dim: int, patch_dtype=np.float32) -> dict[str, np.ndarray]:
    """`rows` rows of padding only: the arrays of `qwen2_5_vl.inputs`."""
    shape = (rows, bucket.tokens, bucket.vision_rows, bucket.row_patches, bucket.answers)
    batch = {k: np.zeros(s, d) for k, (s, d) in batch_spec(*shape, patch_dim=patch_dim).items() if k != "patches"}
    batch["patches"] = np.zeros((*batch["patch_segments"].shape, patch_dim), patch_dtype)
    batch["image_index"][:] = -1
    batch["answer_index"][:] = -1
    return batch


def write_row(batch: dict[str, np.ndarray], row: int, samples: Sequence[Encoded], cfg: Config) -> None:
    """Places samples, in order, into row `row` of a batch, in place. Raises VisionDoesNotFitError."""
    if not samples:
        return
    _, vision_rows, slots, _ = batch["patches"].shape
    layout = pack_vision([g for s in samples for g in s.grids], cfg.vision, vision_rows, slots)
    real = layout.source >= 0
    batch["patches"][row, real] = np.concatenate([s.patches for s in samples])[layout.source[real]]
    batch["patch_segments"][row] = layout.patch_segments
    batch["window_segments"][row] = layout.window_segments
    batch["patch_hw"][row] = layout.patch_hw
    start, answers, merged = 0, 0, iter(layout.merged_index)
    for s, sample in enumerate(samples):
        end = start + len(sample.tokens)
        batch["tokens"][row, start:end] = sample.tokens
        batch["positions"][row, :, start:end] = sample.positions
        batch["segments"][row, start:end] = s + 1
        for place in _image_places(sample.tokens, sample.grids, cfg):
            batch["image_index"][row, start + place] = next(merged)
        where = np.flatnonzero(sample.answer)
        span = slice(answers, answers + len(where))
        batch["answer_index"][row, span] = start + where - 1
        batch["answer_targets"][row, span] = sample.tokens[where]
        batch["answer_weights"][row, span] = 1.0
        start, answers = end, answers + len(where)


def _image_places(tokens: np.ndarray, grids: Sequence[Grid], cfg: Config) -> list[np.ndarray]:
    """Where each image's merged tokens stand in the sample."""
    pads = np.flatnonzero(tokens == cfg.image_token_id)
    ends = np.cumsum([t * h * w // cfg.vision.merge_unit for t, h, w in grids])
    return np.split(pads, ends[:-1]) if len(grids) else []


class Packed:
    """The `pipeline.Format` of Qwen2.5-VL: samples one after another in rows of text, their images in vision rows.

    tokenizer: None where only shapes are wanted. cfg: image token id and vision geometry. images: default the model's
    geometry. Raises ValueError for a bucket whose patch slots are not whole windows.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        cfg: Config,
        buckets: Sequence[Bucket],
        images: ImageSettings | None = None,
        patch_dtype=np.float32,
    ):
        v = cfg.vision
        for b in buckets:
            if b.row_patches % v.merge_unit or b.slots % v.window_tokens:
                raise ValueError(f"bucket {b}: patch slots must fill whole windows of {v.window_tokens}")
        self.buckets, self.cfg, self.patch_dtype = tuple(buckets), cfg, patch_dtype
        self.images = images or ImageSettings(v.patch_size, v.temporal_patch_size, v.spatial_merge_size)
        self._text = None if tokenizer is None else TextEncoder(tokenizer)

    def _demand(self, sample: Measured) -> Demand:
        return Demand(len(sample.tokens), sample.grids, int(sample.answer.sum()))

    def measure(self, example: Example) -> Measured:
        sample = measure_example(example, self._text, self.cfg.image_token_id, self.images)
        demand = self._demand(sample)
        if not any(demand.fits(b, self.cfg.vision) for b in self.buckets):
            raise RecordError(sample.key, "too long for every bucket", str(demand))
        return sample

    def load(self, sample: Measured) -> tuple[int, int]:
        return len(sample.tokens), self._demand(sample).patches

    def capacity(self) -> tuple[int, int]:
        return max(b.tokens for b in self.buckets), max(b.slots for b in self.buckets)

    def plan(self, samples: Sequence[Measured], rows: int, final: bool, rng: np.random.Generator | None):
        return plan_batches([self._demand(s) for s in samples], self.buckets, self.cfg.vision, rows, final, rng)

    def empty(self, bucket: int, rows: int) -> dict[str, np.ndarray]:
        return empty_batch(self.buckets[bucket], rows, self.cfg.vision.patch_dim, self.patch_dtype)

    def encode(self, sample: Measured) -> Encoded:
        return encode_measured(sample, self.cfg, self.images)

    def blank(self, sample: Measured) -> Encoded:
        pixels = tuple(np.zeros(image_size(im, max_pixels=2**62) + (3,), np.uint8) for im in sample.images)
        return self.encode(dataclasses.replace(sample, images=pixels, answer=np.zeros_like(sample.answer)))

    def write(self, batch: dict[str, np.ndarray], row: int, encoded: Sequence[Encoded]) -> None:
        write_row(batch, row, encoded, self.cfg)

    def counts(self, batch: dict[str, np.ndarray]) -> dict[str, int]:
        return {
            "answers": int((batch["answer_index"] >= 0).sum()),
            "tokens": int((batch["segments"] > 0).sum()),
            "patches": int((batch["patch_segments"] > 0).sum()),
            "token_slots": batch["tokens"].size,
            "patch_slots": batch["patch_segments"].size,
        }
