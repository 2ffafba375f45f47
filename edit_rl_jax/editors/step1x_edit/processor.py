"""Step1X-Edit on the host: sizes, the chat with its image, index arrays."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

import numpy as np
from PIL import Image

from edit_rl_jax.data.images import ImageError, resize
from edit_rl_jax.editors.base import Arrays, EditError, Request, Size, TokenLengths
from edit_rl_jax.editors.mmdit.chats import joined
from edit_rl_jax.editors.step1x_edit.layout import layout
from edit_rl_jax.editors.step1x_edit.prompt import HELPFUL, Tokenizer, encode
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import load_patches, smart_resize
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded

DROPPED = 217
"""States of the language model that are left out: those before the prefix's last character."""
LEAST, MOST = 256, 324
"""Tokens of the image in the language model."""


@dataclasses.dataclass(frozen=True)
class Processor:
    """See `editors.base.Processor`; the tokenizer is `prompt.Tokenizer`.

    text: states of the language model that the network sees; what is padding among them becomes text in the connector,
    so the result depends on their number. vlm: the language model's configuration.

    Arrays: of a row the language model's `chats.TOKENS`, i32, branches * (217 + T) long, the branches one after another
    as samples of one row, and `chats.SHOWN` of their image; `state_mask` bool [B, branches, T]; `layout.Layout`'s.
    """

    multiple: int
    downscale: int
    channels: int
    version: str
    vlm: Config
    guidance: Guidance
    text: int = 640
    steps: int = 28
    max_side: int = 2048

    def fit(
        self, images: Sequence[Size], size: Size | None, max_pixels: int, max_side: int, where: str
    ) -> tuple[tuple[Size, ...], Size]:
        """Takes the size of the image's aspect with max_pixels (larger images shrink, smaller ones grow), or where a
        size is given of that one's; reference and result always have one size."""
        if len(images) != 1:
            raise EditError(where, f"{len(images)} references", "Step1X-Edit takes one")
        h, w = size or images[0]
        first = math.ceil(math.sqrt(max_pixels * max(w / h, h / w)))
        second = math.ceil(first / max(w / h, h / w))
        scale = min(1.0, max_side / first)
        long, short = (int(x * scale) // self.multiple * self.multiple for x in (first, second))
        if not short:
            raise ImageError(where, "image too narrow", f"{(h, w)} leaves no {self.multiple} pixels on a side")
        found = (short, long) if w > h else (long, short)
        return (found,), found

    def text_length(self, tokenizer: Tokenizer, request: Request, guidance: Guidance) -> int:
        """Gives `text`. Raises EditError for a text that is longer with its image, for a system text, and where there
        is no image; ImageError for an image of which the language model would see more than `MOST` tokens."""
        self._texts(tokenizer, request, guidance.branches)
        return self.text

    def _shown(self, request: Request) -> tuple[Size, Size]:
        """The size at which the language model sees the image, and its grid in patches."""
        if len(request.references) != 1:
            raise EditError(request.where, f"{len(request.references)} references", "Step1X-Edit takes one")
        factor = self.vlm.vision.patch_size * self.vlm.vision.spatial_merge_size
        try:
            size = smart_resize(*request.references[0], factor, 4 * factor**2, 16384 * factor**2)
            _, h, w = self._images.grid(*size)
        except ValueError as e:
            raise ImageError(request.where, "image too narrow", str(e)) from None
        if h * w > MOST * self.vlm.merge_unit:
            raise ImageError(request.where, "image too narrow", f"{h} x {w} patches are more than the model takes")
        return size, (h, w)

    @property
    def _images(self):
        pixels = (self.vlm.vision.patch_size * self.vlm.vision.spatial_merge_size) ** 2
        return self.vlm.images(min_pixels=LEAST * pixels, max_pixels=MOST * pixels)

    def _texts(self, tokenizer: Tokenizer, request: Request, branches: int) -> list[list[int]]:
        """Tokens of the instruction and, with guidance, of the negative."""
        if request.negative_system not in (None, HELPFUL):
            raise EditError(request.where, "negative system text", f"Step1X-Edit's is always {HELPFUL!r}")
        _, (h, w) = self._shown(request)
        texts = [request.instruction or "", request.negative][:branches]
        found = [encode(tokenizer, text, h * w // self.vlm.merge_unit, request.where) for text in texts]
        if (longest := max(map(len, found)) - DROPPED) > self.text:
            raise EditError(request.where, "text too long", f"{longest} tokens of text are more than {self.text}")
        return found

    def prepare(
        self, tokenizer: Tokenizer | None, requests: Sequence[Request | None], lengths: TokenLengths, guidance: Guidance
    ) -> Arrays:
        """Encodes the chats of both branches with the image, and lays out the row. Raises ValueError, naming the row
        that does not fit."""
        B, branches = len(requests), guidance.branches
        if any(requests) and self.text > lengths.text:
            raise ValueError(f"{self.text} tokens of text are more than {lengths} holds")
        bucket = Bucket(DROPPED + lengths.text, 1, _slots(self.vlm), 0)
        rows = [empty_batch(bucket, B, self.vlm) for _ in range(branches)]
        mask = np.zeros((B, branches, lengths.text), bool)
        for b, request in enumerate(requests):
            if request is None:
                continue
            size, (h, w) = self._shown(request)
            image = resize(request.images[0], *request.references[0], Image.Resampling.LANCZOS)
            patches, grid = load_patches(resize(image, *size), self._images, where=request.where)
            for e, ids in enumerate(self._texts(tokenizer, request, branches)):
                tokens = np.asarray(ids, np.int32)
                # upstream takes what has the id 0, "!", for padding: nothing sees it, and it sees nothing
                positions, _ = self.vlm.positions(tokens[tokens > 0], [grid])
                places = np.zeros((len(positions), len(tokens)), np.int32)
                places[:, tokens > 0] = positions
                none = np.zeros(len(tokens), bool)
                write_row(rows[e], b, [Encoded(request.where, tokens, none, places, patches, (grid,))], self.vlm)
                mask[b, e, : len(tokens) - DROPPED] = True
        for one in rows:
            one["segments"] = np.where(one["tokens"] > 0, one["segments"], 0).astype(np.int32)
        cut = lambda size: (size[0] // self.multiple, size[1] // self.multiple)
        index = layout(
            [self.text if r else 0 for r in requests],
            [[cut(s) for s in r.references] if r else [] for r in requests],
            [cut(r.size) if r else (0, 0) for r in requests],
            lengths,
            self.version,
        )
        stacked = {k: np.repeat(np.asarray(x)[:, None], branches, axis=1) for k, x in index.items()}
        return {**joined(rows), "state_mask": mask, **stacked}


@functools.cache
def _slots(vlm: Config) -> int:
    """Patch slots that hold any image of at most `MOST` tokens."""
    m = vlm.vision.spatial_merge_size
    return max(vlm.vision_slots((1, m * h, m * w)) for h in range(1, MOST + 1) for w in range(1, MOST // h + 1))
