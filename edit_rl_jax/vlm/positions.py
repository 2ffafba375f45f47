"""Index arrays of vision towers and decoders, computed on the host. NumPy only.

A text row's images lie in R vision rows of P patch slots. A frame lies whole in one vision row (full attention is
inside a row). In a tower with windows each window lies whole in a group of W slots of the flattened rows; ragged
windows share groups, best fit, largest first. Without windows a frame is one window and a vision row one group.
"""

from __future__ import annotations

import dataclasses
import functools
from bisect import bisect_left, insort
from collections.abc import Sequence
from typing import Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

Grid = tuple[int, int, int]  # frames, rows and columns of patches


class VisionDoesNotFitError(ValueError):
    """The images need more slots than the vision rows have."""


@runtime_checkable
class Tower(Protocol):
    """What the layout of images depends on.

    Attributes:
      spatial_merge_size: side of a merged token in patches.
      window_merged: side of a window in merged tokens, 0 = no windows.
    """

    spatial_merge_size: int

    @property
    def window_merged(self) -> int: ...


@dataclasses.dataclass(frozen=True)
class VisionLayout:
    """Where every patch of a text row's images goes; R vision rows of P slots."""

    source: Int32[
        np.ndarray, "R P"
    ]  # index into all images' patches in processor order, one after another; -1 = padding
    patch_segments: Int32[np.ndarray, "R P"]  # frame inside the vision row from 1, 0 = padding
    window_segments: Int32[np.ndarray, "R P"]  # window inside its group from 1, 0 = padding
    patch_hw: Int32[np.ndarray, "R P 2"]  # row and column of the patch in its image
    merged_index: list[Int32[np.ndarray, n]]  # per image, in merged raster order: index into the flattened R P / 4


def windows(rows: int, cols: int, side: int) -> list[np.ndarray]:
    """Windows of a `rows` x `cols` raster in raster order: the raster indices inside each, in raster order."""
    raster = np.arange(rows * cols).reshape(rows, cols)
    starts = [(y, x) for y in range(0, rows, side) for x in range(0, cols, side)]
    return [raster[y : y + side, x : x + side].reshape(-1) for y, x in starts]


@functools.lru_cache(maxsize=8192)
def _cut(h: int, w: int, merge: int, side: int) -> tuple[int, tuple[int, ...]]:
    """Windows of one frame: how many are whole, and the patches of the ragged ones, largest first."""
    if h < 1 or w < 1 or h % merge or w % merge:
        raise ValueError(f"grid {(h, w)}: rows and columns must be positive multiples of {merge}")
    if not side:
        return 0, (h * w,)
    (down, low), (across, right) = divmod(h // merge, side), divmod(w // merge, side)
    ragged = [side * right] * down + [side * low] * across + [low * right]
    return down * across, tuple(sorted((merge**2 * n for n in ragged if n), reverse=True))


@functools.lru_cache(maxsize=64)
def _bins(rows: int, slots: int, group: int) -> tuple[tuple[tuple[int, int], ...], ...]:
    """The empty bins of each vision row, its slots cut where groups end: (free slots, end), ascending."""
    out = []
    for start in range(0, rows * slots, slots):
        cuts = sorted({start, start + slots, *range(-(-start // group) * group, start + slots, group)})
        out.append(tuple(sorted((end - begin, end) for begin, end in zip(cuts, cuts[1:]))))
    return tuple(out)


class VisionRows:
    """Vision rows being filled: says whether images fit, and where their patches lie.

    Raises ValueError where the slots are not whole merged tokens and, together, whole groups.
    """

    def __init__(self, rows: int, slots: int, tower: Tower):
        unit = tower.spatial_merge_size**2
        self._merge, self._side, self._shape = tower.spatial_merge_size, tower.window_merged, (rows, slots)
        self._group = unit * self._side**2 or max(slots, 1)
        if slots % unit or rows * slots % self._group:
            what = f"whole windows of {self._group} patches" if self._side else f"whole tokens of {unit} patches"
            want = f"multiples of {unit}, together of {self._group}"
            raise ValueError(f"patch slots must fill {what}: {rows} x {slots} are not {want}")
        self._rows = [(slots, bins) for bins in _bins(rows, slots, self._group)] if slots else []  # free slots, bins
        self._grids: list[Grid] = []
        self._placed: list[tuple[int, int, int, list[int]]] = []  # image, frame, vision row, starts of its windows

    @property
    def largest(self) -> int:
        """An upper bound on the patches of a frame that still fits."""
        return max((free for free, _ in self._rows), default=0)

    def place(self, grids: Sequence[Grid]) -> bool:
        """Adds images, largest first, each frame to the fullest row that takes it; False, and nothing added, if they
        do not fit."""
        rows, placed, first = list(self._rows), [], len(self._grids)
        frames = [(i, f, h, w) for i, (t, h, w) in enumerate(grids, first) for f in range(t)]
        for i, f, h, w in sorted(frames, key=lambda a: -a[2] * a[3]):
            for r in sorted(range(len(rows)), key=lambda r: rows[r][0]):
                if (found := self._put(*rows[r], h, w)) is not None:
                    rows[r], starts = found
                    placed.append((i, f, r, starts))
                    break
            else:
                return False
        self._rows, self._grids, self._placed = rows, [*self._grids, *grids], self._placed + placed
        return True

    def _put(self, free: int, bins: Sequence[tuple[int, int]], h: int, w: int):
        """The row with one more frame, and the start of each of its windows, the largest first; None if it is full."""
        whole, ragged = _cut(h, w, self._merge, self._side)
        at = bisect_left(bins, (self._group, 0))
        if h * w > free or whole > len(bins) - at:
            return None
        taken, bins = list(bins[at : at + whole]), [*bins[:at], *bins[at + whole :]]
        for n in ragged:
            at = bisect_left(bins, (n, 0))
            if at == len(bins):
                return None
            left, end = bins.pop(at)
            taken.append((left, end))
            if left > n:
                insort(bins, (left - n, end))
        return (free - h * w, bins), [end - left for left, end in taken]

    def __str__(self) -> str:
        return "{} vision rows of {}".format(*self._shape)

    def layout(self) -> VisionLayout:
        """The arrays of what was placed."""
        (rows, slots), m, unit = self._shape, self._merge, self._merge**2
        source = np.full(rows * slots, -1, np.int32)
        frame_ids, window_ids = np.zeros_like(source), np.zeros_like(source)
        hw = np.zeros((rows * slots, 2), np.int32)
        merged = [np.zeros(t * h * w // unit, np.int32) for t, h, w in self._grids]
        bases = np.cumsum([0, *(t * h * w for t, h, w in self._grids)])
        frames_in_row, windows_in_group = [0] * rows, [0] * (rows * slots // self._group)
        inner = np.stack(np.divmod(np.arange(unit), m), -1)  # row, column of a patch inside its merged token
        for image, f, r, starts in self._placed:
            h, w = self._grids[image][1] // m, self._grids[image][2] // m
            cut = windows(h, w, self._side or max(h, w))
            order = sorted(range(len(cut)), key=lambda i: -len(cut[i]))  # noqa: B023
            frames_in_row[r] += 1
            for i, start in sorted(zip(order, starts)):
                win, at = cut[i], np.arange(start, start + len(cut[i]) * unit)
                windows_in_group[start // self._group] += 1
                source[at] = bases[image] + f * h * w * unit + (win[:, None] * unit + np.arange(unit)).reshape(-1)
                frame_ids[at] = frames_in_row[r]
                window_ids[at] = windows_in_group[start // self._group]
                hw[at] = (np.stack(np.divmod(win, w), -1)[:, None] * m + inner).reshape(-1, 2)
                merged[image][f * h * w + win] = start // unit + np.arange(len(win))
        ids = (a.reshape(rows, slots) for a in (source, frame_ids, window_ids))
        return VisionLayout(*ids, hw.reshape(rows, slots, 2), merged)


def vision_slots(grid: Grid, tower: Tower) -> int:
    """Slots, whole groups (merged tokens where there are no windows), that one image needs alone in a vision row."""
    t, h, w = grid
    unit = tower.spatial_merge_size**2 * max(tower.window_merged, 1) ** 2
    slots = -(-t * h * w // unit) * unit
    while not VisionRows(1, slots, tower).place([grid]):
        slots += unit
    return slots


def lay_out(grids: Sequence[Grid], rows: VisionRows) -> VisionLayout:
    """Lays the images of one text row out in vision rows. Raises VisionDoesNotFitError when a frame finds none."""
    if not rows.place(grids):
        raise VisionDoesNotFitError(f"grids {list(map(tuple, grids))} do not fit in {rows}")
    return rows.layout()


def pack_vision(grids: Sequence[Grid], tower: Tower, rows: int, slots: int) -> VisionLayout:
    """`lay_out` in `rows` vision rows of `slots` slots."""
    return lay_out(grids, VisionRows(rows, slots, tower))


def rope_index(
    tokens: np.ndarray,
    grids: Sequence[Grid],
    image_token_id: int,
    *,
    merge: int = 2,
    mask: np.ndarray | None = None,
) -> tuple[Int32[np.ndarray, "3 T"], int]:
    """M-RoPE positions of one sample and the next free position (what the first generated token takes).

    `tokens` [T] holds an image's merged tokens as consecutive `image_token_id`, one grid of `grids` each in order.
    `mask` [T]: False = padding, on any side; it gets position 0. Raises ValueError when images and tokens disagree.
    """
    tokens = np.asarray(tokens)
    keep = np.ones(len(tokens), bool) if mask is None else np.asarray(mask, bool)
    is_image = tokens[keep] == image_token_id
    parts, at, position, images = [], 0, 0, iter(grids)
    while at < len(is_image):
        if is_image[at]:
            grid = next(images, None)
            if grid is None:
                raise ValueError(f"image tokens for more than the {len(grids)} images given")
            t, h, w = int(grid[0]), int(grid[1]) // merge, int(grid[2]) // merge
            n = t * h * w
            if at + n > len(is_image) or not is_image[at : at + n].all():
                raise ValueError(f"grid {tuple(grid)} needs {n} consecutive image tokens at {at}")
            parts.append(np.indices((t, h, w)).reshape(3, -1) + position)
            position += max(h, w)
        else:
            n = int(np.argmax(is_image[at:])) if is_image[at:].any() else len(is_image) - at
            parts.append(np.tile(np.arange(position, position + n), (3, 1)))
            position += n
        at += n
    if next(images, None) is not None:
        raise ValueError(f"{len(grids)} images given, image tokens for fewer")
    out = np.zeros((3, len(tokens)), np.int32)
    if parts:
        out[:, keep] = np.concatenate(parts, axis=1)
    return out, int(out.max()) + 1 if keep.any() else 0
