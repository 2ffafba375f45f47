"""OmniGen2 on the host: sizes, chats, index arrays. Text goes to the language model alone, images only to the VAE."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from edit_rl_jax.data.images import floor_resize
from edit_rl_jax.editors.base import Arrays, EditError, Request, Size, TokenLengths
from edit_rl_jax.editors.omnigen2 import prompts
from edit_rl_jax.editors.omnigen2.config import REFERENCES
from edit_rl_jax.editors.omnigen2.layout import layout
from edit_rl_jax.flow.guidance import Guidance

BRANCHES = {1: ((0, True),), 2: ((0, True), (1, False)), 3: ((0, True), (1, True), (1, False))}
"""By their number: for each branch its text (0 = the instruction, 1 = the negative) and whether it has references."""


@dataclasses.dataclass(frozen=True)
class Processor:
    """See `editors.base.Processor`; the tokenizer is the language model's.

    Arrays: `tokens` and `token_segments` i32 [B, texts, T], and `layout.Layout`'s [B, branches, ...].
    """

    multiple: int
    downscale: int
    channels: int
    steps: int = 50
    guidance: Guidance = Guidance(5.0, 2.0)
    max_side: int = 1024

    def fit(
        self, images: Sequence[Size], size: Size | None, max_pixels: int, max_side: int, where: str
    ) -> tuple[tuple[Size, ...], Size]:
        """Shrinks to the limits and cuts sides to multiples; the result is as the only image where no size is given."""
        if len(images) > REFERENCES:
            raise EditError(where, f"{len(images)} references", f"OmniGen2 takes {REFERENCES} at most")
        if size is None and len(images) != 1:
            raise EditError(where, "no size", f"{len(images)} images do not say the result's: give it")
        references = tuple(floor_resize(*image, self.multiple, max_pixels, max_side, where) for image in images)
        result = references[0] if size is None else floor_resize(*size, self.multiple, max_pixels, max(size), where)
        return references, result

    def text_length(self, tokenizer: Any, request: Request, guidance: Guidance) -> int:
        """Counts the tokens of the longer chat."""
        return max(len(ids) for ids in _texts(tokenizer, request, guidance.branches))

    def prepare(
        self, tokenizer: Any, requests: Sequence[Request | None], lengths: TokenLengths, guidance: Guidance
    ) -> Arrays:
        """Encodes the chats and lays out the branches. Raises ValueError, naming the row that does not fit."""
        branches = BRANCHES[guidance.branches]
        tokens, segments = np.zeros((2, len(requests), len({text for text, _ in branches}), lengths.text), np.int32)
        for b, request in enumerate(requests):
            for e, ids in enumerate(_texts(tokenizer, request, len(branches)) if request else ()):
                if len(ids) > lengths.text:
                    raise ValueError(f"row {b}: {len(ids)} tokens of text are more than {lengths} holds")
                tokens[b, e, : len(ids)], segments[b, e, : len(ids)] = ids, 1
        cut = lambda size: (size[0] // self.multiple, size[1] // self.multiple)
        references = [[cut(s) for s in r.references] if r else [] for r in requests]
        sizes = [cut(r.size) if r else (0, 0) for r in requests]
        none: list[list[Size]] = [[] for _ in requests]
        index = [
            layout(segments[:, text].sum(-1).tolist(), references if seen else none, sizes, lengths)
            for text, seen in branches
        ]
        stacked = {name: np.stack([one[name] for one in index], axis=1) for name in index[0]}
        return {"tokens": tokens, "token_segments": segments, **stacked}


def _texts(tokenizer: Any, request: Request, branches: int) -> list[list[int]]:
    """Encodes the instruction and, with guidance, the negative."""
    own = prompts.DROPPED if request.instruction is None else prompts.EDIT
    negative = prompts.EDIT if request.negative_system is None else request.negative_system
    chats = [prompts.chat(request.instruction or "", own), prompts.chat(request.negative, negative)]
    return [list(tokenizer.encode(c, add_special_tokens=False)) for c in chats[: min(branches, 2)]]
