"""Pages of pictures that evaluations show beside their figures."""

import io
from collections.abc import Sequence

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageDraw

from edit_rl_jax.data.images import resize

LINE, GAP = 14, 6  # pixels

Row = tuple[str, Sequence[tuple[UInt8[np.ndarray, "_ _ 3"], str]]]  # a title, pictures with captions


def montage(rows: Sequence[Row], side: int | None = 160) -> bytes:
    """Draws rows of pictures as a PNG: a row's title above, captions below; where all are empty they take no room.

    side: pixels of a picture's longest side (None = of the largest picture, and nothing is resized).
    """
    pictures = [[x if side is None else _resized(x, side) for x, _ in cells] for _, cells in rows]
    sides = [x.shape[:2] for row in pictures for x in row]
    high, wide = (side, side) if side else map(max, zip(*sides))
    above = LINE * any(title for title, _ in rows)
    height = above + high + LINE * any(caption for _, cells in rows for _, caption in cells) + GAP
    page = Image.new("RGB", (max(map(len, pictures)) * (wide + GAP), len(rows) * height), "white")
    draw = ImageDraw.Draw(page)
    for y, ((title, cells), row) in enumerate(zip(rows, pictures)):
        draw.text((0, y * height), title.partition("\n")[0][:80], fill="black")
        for x, (picture, (_, caption)) in enumerate(zip(row, cells)):
            at = (x * (wide + GAP), y * height + above)
            page.paste(Image.fromarray(picture), at)
            draw.text((at[0], at[1] + picture.shape[0] + 1), caption, fill="black")
    file = io.BytesIO()
    page.save(file, "PNG")
    return file.getvalue()


def _resized(image: np.ndarray, side: int) -> np.ndarray:
    return resize(image, *(max(1, round(s * side / max(image.shape[:2]))) for s in image.shape[:2]))
