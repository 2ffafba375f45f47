"""Qwen-Image-Edit on the host: sizes, the chat with its images, index arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from edit_rl_jax.data.images import ImageError, resize
from edit_rl_jax.editors.base import Arrays, EditError, Request, Size, TokenLengths
from edit_rl_jax.editors.mmdit.chats import joined
from edit_rl_jax.editors.qwen_image_edit.layout import layout
from edit_rl_jax.editors.qwen_image_edit.prompt import DROPPED, EMPTY, Tokenizer, encode
from edit_rl_jax.flow.guidance import Guidance, TrueGuidance
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings, load_patches
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded

SIDE, SEEN_AREA = 32, 384**2
"""Sides are rounded to multiples of 32 pixels; area at which a "Plus" model's language model sees an image."""
SYSTEM = (None, "You are a helpful assistant.")
"""What `negative_system` may be: nothing, or what RL says where nobody says anything."""


@dataclasses.dataclass(frozen=True)
class Processor:
    """See `editors.base.Processor`; the tokenizer is `prompt.Tokenizer`.

    vlm, images: the language model's configuration, and its rule for images. plus: 2509 and 2511: several images, which
    the language model sees smaller; else one, which it sees as the autoencoder does.

    Arrays: of a row the language model's `chats.TOKENS`, i32, branches * (64 + T) long, the branches one after another
    as samples of one row, and `chats.SHOWN` of their images, in one vision row whose slots follow from T;
    `layout.Layout`'s of each branch.
    """

    multiple: int
    downscale: int
    channels: int
    vlm: Config
    images: ImageSettings
    plus: bool
    steps: int = 50
    guidance: Guidance = TrueGuidance(4.0)
    max_side: int = 4096
    most_text: int = 2560

    @property
    def text(self) -> int:
        """Tokens of a text with one image of the released size, for plans."""
        return 384 if self.plus else 1536

    def fit(
        self, images: Sequence[Size], size: Size | None, max_pixels: int, max_side: int, where: str
    ) -> tuple[tuple[Size, ...], Size]:
        """Takes each image's aspect with about max_pixels (larger ones shrink, smaller ones grow); the result is as the
        last image where no size is given, else of that size, made smaller where it has more than max_pixels."""
        self._check(len(images), where)
        references = tuple(self._rounded(image, max_pixels, max_side) for image in images)
        result = references[-1]
        if size is not None:
            scale = min(1.0, math.sqrt(max_pixels / (size[0] * size[1])))
            result = tuple(int(x * scale) // self.multiple * self.multiple for x in size)
        if bad := [s for s in (*references, result) if not min(s)]:
            raise ImageError(where, "image too narrow", f"{bad[0]} leaves no pixels on a side")
        return references, (result[0], result[1])

    def _check(self, count: int, where: str) -> None:
        if not count or count > 1 and not self.plus:
            wanted = "takes one or more" if self.plus else "takes one"
            raise EditError(where, f"{count} references", f"Qwen-Image-Edit {wanted}")

    def _rounded(self, image: Size, area: int, max_side: int | None = None) -> Size:
        width = math.sqrt(area * (image[1] / image[0]))
        height = width / (image[1] / image[0])
        scale = 1.0 if max_side is None else min(1.0, max_side / max(width, height))
        if scale < 1:
            return int(height * scale) // SIDE * SIDE, int(width * scale) // SIDE * SIDE
        return round(height / SIDE) * SIDE, round(width / SIDE) * SIDE

    def _seen(self, request: Request) -> list[tuple[Size, tuple[int, int, int]]]:
        """For each image the size to which it is brought first, and its grid in the language model."""
        self._check(len(request.references), request.where)
        sizes: Sequence[Size] = request.references
        if self.plus:
            given = [(x.shape[0], x.shape[1]) for x in request.images] or request.references
            sizes = [self._rounded(size, SEEN_AREA) for size in given]
        try:
            if not all(map(min, sizes)):
                raise ValueError(f"{sizes} leave no pixels on a side")
            return [(size, self.images.grid(*size)) for size in sizes]
        except ValueError as e:
            raise ImageError(request.where, "image too narrow", str(e)) from None

    def _texts(self, tokenizer: Tokenizer, request: Request, branches: int) -> list[list[int]]:
        """Tokens of the instruction and, with guidance, of the negative."""
        if request.negative_system not in SYSTEM:
            raise EditError(request.where, "negative system text", "Qwen-Image-Edit's is always its own")
        counts = [h * w // self.vlm.merge_unit for _, (_, h, w) in self._seen(request)]
        instruction = EMPTY if request.instruction is None else request.instruction
        texts = [instruction, request.negative or EMPTY][:branches]
        return [encode(tokenizer, text, counts, self.plus, request.where) for text in texts]

    def text_length(self, tokenizer: Tokenizer, request: Request, guidance: Guidance) -> int:
        """Counts the longest branch's states, those of the images among them. Raises EditError for a system text and
        for a number of images, ImageError for one that is too narrow."""
        return max(map(len, self._texts(tokenizer, request, guidance.branches))) - DROPPED

    def prepare(
        self, tokenizer: Tokenizer | None, requests: Sequence[Request | None], lengths: TokenLengths, guidance: Guidance
    ) -> Arrays:
        """Encodes the chats of both branches with the images, and lays out the row. Raises ValueError, naming the row
        that does not fit."""
        B, branches = len(requests), guidance.branches
        bucket = Bucket(DROPPED + lengths.text, 1, slots(lengths.text, self.vlm), 0)
        rows = [empty_batch(bucket, B, self.vlm) for _ in range(branches)]
        kept = np.zeros((branches, B), int)
        for b, request in enumerate(requests):
            if request is None:
                continue
            seen = self._seen(request)
            first = request.references if not self.plus else [size for size, _ in seen]
            shown = [resize(x, *size, Image.Resampling.LANCZOS) for x, size in zip(request.images, first, strict=True)]
            patches = np.concatenate([load_patches(x, self.images, where=request.where)[0] for x in shown])
            grids = tuple(grid for _, grid in seen)
            for e, ids in enumerate(self._texts(tokenizer, request, branches)):
                if (n := len(ids) - DROPPED) > lengths.text:
                    raise ValueError(f"row {b}: {n} tokens of text are more than {lengths} holds")
                tokens, kept[e, b] = np.asarray(ids, np.int32), n
                none = np.zeros(len(tokens), bool)
                sample = Encoded(request.where, tokens, none, self.vlm.positions(tokens, grids)[0], patches, grids)
                write_row(rows[e], b, [sample], self.vlm)
        cut = lambda size: (size[0] // self.multiple, size[1] // self.multiple)
        references = [[cut(s) for s in r.references] if r else [] for r in requests]
        sizes = [cut(r.size) if r else (0, 0) for r in requests]
        index = [layout(list(map(int, kept[e])), references, sizes, lengths) for e in range(branches)]
        stacked = {k: np.stack([one[k] for one in index], axis=1) for k in index[0]}
        return {**joined(rows), **stacked}


def slots(text: int, vlm: Config) -> int:
    """Patch slots, whole windows, that hold whatever images so many tokens of text show: a window of slots is left with
    less than 3 quarters used at most once an image, by its corner, and an image takes 7 tokens besides its own."""
    side = vlm.vision.window_merged
    window = side**2
    return window * vlm.merge_unit * (text // max(side * (side - 1), 1) + 2 + text // 64)
