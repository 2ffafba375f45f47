"""FLUX.1-Kontext on the host: sizes, ids of both texts, index arrays."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from edit_rl_jax.data.images import ImageError
from edit_rl_jax.editors.base import Arrays, EditError, Request, Size, TokenLengths
from edit_rl_jax.editors.flux_kontext.layout import layout
from edit_rl_jax.flow.guidance import EmbeddedGuidance, Guidance

_HALF = ((672, 1568), (688, 1504), (720, 1456), (752, 1392), (800, 1328), (832, 1248), (880, 1184), (944, 1104))
PREFERRED: tuple[Size, ...] = (*_HALF, (1024, 1024), *((w, h) for h, w in _HALF[::-1]))
"""(height, width) of the images that the network was trained on."""
AREA = 1024**2


class Tokenizers(NamedTuple):
    """CLIP's and T5's."""

    clip: Any
    t5: Any


@dataclasses.dataclass(frozen=True)
class Processor:
    """See `editors.base.Processor`; the tokenizer is `Tokenizers`.

    text: tokens of T5's text, at least and at most. Padding is text too: the network was trained so, and the result
    depends on their number. clip: of CLIP's, which is cut, as upstream.

    Arrays: `tokens` i32 [B, 1, T] and `clip_tokens` [B, 1, clip], `guidance` f32 [B, 1], and `layout.Layout`'s.
    """

    multiple: int
    downscale: int
    channels: int
    text: int = 512
    clip: int = 77
    steps: int = 28
    guidance: Guidance = EmbeddedGuidance(2.5)
    max_side: int = 1568

    def fit(
        self, images: Sequence[Size], size: Size | None, max_pixels: int, max_side: int, where: str
    ) -> tuple[tuple[Size, ...], Size]:
        """Takes the preferred size nearest in aspect, made smaller where max_pixels or max_side want it; the result is
        as the image where no size is given, else of its aspect, with max_pixels.

        The preferred sizes have 1024 x 1024 pixels give or take 2 %, and so it is with other limits.
        """
        if len(images) > 1:
            raise EditError(where, f"{len(images)} references", "FLUX.1-Kontext takes one")
        if size is None and not images:
            raise EditError(where, "no size", "without an image it must be given")
        references = tuple(self._preferred(image, max_pixels, max_side) for image in images)
        result = references[0] if size is None else self._rescaled(size, max_pixels)
        if bad := [s for s in (*references, result) if min(s) < self.multiple]:
            raise ImageError(where, "image too narrow", f"{bad[0]} leaves no {self.multiple} pixels on a side")
        return references, result

    def _preferred(self, image: Size, max_pixels: int, max_side: int) -> Size:
        aspect = image[1] / image[0]
        _, w, h = min((abs(aspect - w / h), w, h) for h, w in PREFERRED)
        scale = min(1.0, math.sqrt(max_pixels / AREA), max_side / max(h, w))
        return int(h * scale) // self.multiple * self.multiple, int(w * scale) // self.multiple * self.multiple

    def _rescaled(self, size: Size, max_pixels: int) -> Size:
        aspect = size[1] / size[0]
        h, w = round((max_pixels / aspect) ** 0.5), round((max_pixels * aspect) ** 0.5)
        return h // self.multiple * self.multiple, w // self.multiple * self.multiple

    def text_length(self, tokenizer: Any, request: Request, guidance: Guidance) -> int:
        """Gives `text`. Raises EditError for an instruction that is longer, and for a negative text: there is none."""
        if request.negative:
            raise EditError(request.where, "negative text", "FLUX.1-Kontext has none: its guidance is a number")
        length = len(tokenizer.t5.encode(request.instruction or ""))
        if length > self.text:
            raise EditError(request.where, "text too long", f"{length} tokens of text are more than {self.text}")
        return self.text

    def prepare(
        self, tokenizer: Any, requests: Sequence[Request | None], lengths: TokenLengths, guidance: Guidance
    ) -> Arrays:
        """Encodes the instruction for both encoders and lays out the row. Raises ValueError, naming the row that does
        not fit."""
        B = len(requests)
        tokens, clip = np.zeros((B, 1, lengths.text), np.int32), np.zeros((B, 1, self.clip), np.int32)
        for b, request in enumerate(requests):
            if request is None:
                continue
            text = request.instruction or ""
            ids = tokenizer.t5.encode(text)
            if len(ids) > self.text or self.text > lengths.text:
                raise ValueError(f"row {b}: {max(len(ids), self.text)} tokens of text are more than fit")
            tokens[b, 0, : self.text] = tokenizer.t5.pad_token_id
            tokens[b, 0, : len(ids)] = ids
            ids = tokenizer.clip.encode(text, truncation=True, max_length=self.clip)
            clip[b, 0] = [*ids, *[tokenizer.clip.pad_token_id] * (self.clip - len(ids))]
        cut = lambda size: (size[0] // self.multiple, size[1] // self.multiple)
        index = layout(
            [self.text if r else 0 for r in requests],
            [[cut(s) for s in r.references] if r else [] for r in requests],
            [cut(r.size) if r else (0, 0) for r in requests],
            lengths,
        )
        given = {"tokens": tokens, "clip_tokens": clip, "guidance": np.full((B, 1), guidance.text, np.float32)}
        return given | {name: np.asarray(value)[:, None] for name, value in index.items()}
