"""Index arrays of the vision tower and the decoder, computed on the host. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Int32

from edit_rl_jax.vlm.qwen2_5_vl.config import VisionConfig

Grid = tuple[int, int, int]  # frames, rows and columns of patches


class VisionDoesNotFitError(ValueError):
    """The images need more slots than the vision rows have."""


@dataclasses.dataclass(frozen=True)
class VisionLayout:
    """Where every patch of a text row's images goes; R vision rows of P slots."""

    source: Int32[
        np.ndarray, "R P"
    ]  # index into all images' patches in processor order, one after another; -1 = padding
    patch_segments: Int32[np.ndarray, "R P"]
    window_segments: Int32[np.ndarray, "R P"]
    patch_hw: Int32[np.ndarray, "R P 2"]
    merged_index: list[Int32[np.ndarray, n]]  # per image, in merged raster order: index into the flattened R P / 4


def windows(rows: int, cols: int, side: int) -> list[np.ndarray]:
    """Windows of a `rows` x `cols` raster in raster order: the raster indices inside each, in raster order."""
    raster = np.arange(rows * cols).reshape(rows, cols)
    starts = [(y, x) for y in range(0, rows, side) for x in range(0, cols, side)]
    return [raster[y : y + side, x : x + side].reshape(-1) for y, x in starts]


def _merged_grid(grid: Grid, cfg: VisionConfig) -> tuple[int, int, int]:
    t, h, w = (int(n) for n in grid)
    m = cfg.spatial_merge_size
    if min(t, h, w) < 1 or h % m or w % m:
        raise ValueError(f"grid {(t, h, w)}: rows and columns must be positive multiples of {m}")
    return t, h // m, w // m


def vision_slots(grid: Grid, cfg: VisionConfig) -> int:
    """Slots, a multiple of W, that one image needs alone in a vision row."""
    t, h, w = _merged_grid(grid, cfg)
    sizes = [len(win) * cfg.merge_unit for win in windows(h, w, cfg.window_merged)] * t
    groups: list[int] = []
    for size in sorted(sizes, reverse=True):
        fit = [i for i, free in enumerate(groups) if free >= size]
        if fit:
            best = min(fit, key=groups.__getitem__)
            groups[best] -= size
        else:
            groups.append(cfg.window_tokens - size)
    return len(groups) * cfg.window_tokens


class _Row:
    """One vision row: its slots cut at the group boundaries of the flattened rows into bins with a free tail each."""

    def __init__(self, index: int, slots: int, group: int):
        start = index * slots
        cuts = sorted({start, start + slots, *range(-(-start // group) * group, start + slots, group)})
        self.ends = cuts[1:]
        self.next = cuts[:-1]  # first free flattened slot of each bin

    def place(self, sizes: Sequence[int]) -> list[int] | None:
        """Flattened start slots of windows of those sizes (best fit, largest first), or None, changing nothing."""
        new, starts = list(self.next), [0] * len(sizes)
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            fit = [b for b, end in enumerate(self.ends) if end - new[b] >= sizes[i]]
            if not fit:
                return None
            best = min(fit, key=lambda b: self.ends[b] - new[b])
            starts[i] = new[best]
            new[best] += sizes[i]
        self.next = new
        return starts

    @property
    def free(self) -> int:
        return sum(end - begin for begin, end in zip(self.next, self.ends))


def pack_vision(grids: Sequence[Grid], cfg: VisionConfig, rows: int, row_slots: int) -> VisionLayout:
    """Lays the images of one text row out in `rows` vision rows of `row_slots` slots.

    Every frame lies in one vision row (full attention is inside a row), every window inside one group of W slots of the
    flattened rows; ragged windows share groups. Two images of equal size may take half a group each at a row boundary,
    so `row_slots` needs to be a multiple of the merge unit only, `rows * row_slots` one of W.
    Raises VisionDoesNotFitError when a frame finds no row.
    """
    unit, W = cfg.merge_unit, cfg.window_tokens
    if row_slots % unit or rows * row_slots % W:
        raise ValueError(f"{rows} rows of {row_slots} slots: want multiples of {unit}, together of {W}")
    layout = [_Row(r, row_slots, W) for r in range(rows)]
    source = np.full(rows * row_slots, -1, np.int32)
    frame_ids, window_ids = np.zeros_like(source), np.zeros_like(source)
    hw = np.zeros((rows * row_slots, 2), np.int32)
    merged_index, frames, base = [], [], 0
    for image, grid in enumerate(grids):
        t, h, w = _merged_grid(grid, cfg)
        merged_index.append(np.zeros(t * h * w, np.int32))
        for f in range(t):
            frames.append((h * w * unit, image, f, h, w, base))
            base += h * w * unit
    frames_in_row, windows_in_group = [0] * rows, [0] * (rows * row_slots // W)
    m = cfg.spatial_merge_size
    inner = np.stack(np.divmod(np.arange(unit), m), -1)  # row, column of a patch inside its merged token
    for size, image, f, h, w, base in sorted(frames, key=lambda a: (-a[0], a[1], a[2])):
        wins = windows(h, w, cfg.window_merged)
        for r in sorted(range(rows), key=lambda r: layout[r].free):  # the fullest row that takes it
            starts = layout[r].place([len(win) * unit for win in wins]) if layout[r].free >= size else None
            if starts is not None:
                break
        else:
            raise VisionDoesNotFitError(
                f"grids {list(map(tuple, grids))} do not fit in {rows} vision rows of {row_slots}"
            )
        frames_in_row[r] += 1
        for win, start in zip(wins, starts):
            at = np.arange(start, start + len(win) * unit)
            windows_in_group[start // W] += 1
            source[at] = base + (win[:, None] * unit + np.arange(unit)).reshape(-1)
            frame_ids[at] = frames_in_row[r]
            window_ids[at] = windows_in_group[start // W]
            cell = np.stack(np.divmod(win, w), -1)
            hw[at] = (cell[:, None] * m + inner).reshape(-1, 2)
            merged_index[image][f * h * w + win] = start // unit + np.arange(len(win))
    shape = (rows, row_slots)
    return VisionLayout(
        source.reshape(shape), frame_ids.reshape(shape), window_ids.reshape(shape), hw.reshape(*shape, 2), merged_index
    )


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
