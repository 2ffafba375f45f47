"""Questions as prompts of the generation engine: tokens, pictures by content, and the cuts at which prompts share.

A prompt may be cut where the texts of all prompts of its kind part (the system turn, the text before the instruction)
and where its last image begins: the edits of one source and instruction then share everything up to the edited image.
The cuts follow from the prompt's own content, so its result does not depend on what else is asked.
"""

import hashlib
import itertools
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import ImageSettings, load_patches
from edit_rl_jax.rewards.editscore.prompts import Image, Parts, Prompts, Question
from edit_rl_jax.vlm.device_patches import device_patches, device_picture_key
from edit_rl_jax.vlm.engine.decoder import VISION
from edit_rl_jax.vlm.engine.prompt import Picture, Prompt, rung
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.positions import Grid, pack_vision, rope_index, vision_slots
from edit_rl_jax.vlm.tokenizer import TextEncoder, measure_example

PURPOSE = {"sc": 0, "pq": 1}
_INSTRUCTIONS = ("make it red", "Zoom", "7 more", "(none)", "“Wow”", "一 added", ".", "\tx")


class Questions:
    """Makes `Prompt`s of the questions about an edit, for one model's tokenizer, texts and image settings.

    `opening`: tokens with which every answer begins, as a part of the prompt.
    """

    def __init__(
        self, cfg: Config, tokenizer: Any, prompts: Prompts, images: ImageSettings, opening: Sequence[int] = ()
    ):
        self.cfg, self.prompts, self.images = cfg, prompts, images
        self.opening = np.asarray(opening, np.int32)
        self.encode = TextEncoder(tokenizer)
        self._sees_source = len(prompts.shown("pq", b"", b"")) == 2
        self._stems = {q: self._stem(q) for q in PURPOSE}

    def _stem(self, question: Question) -> np.ndarray:
        """The tokens with which every prompt of a question begins, whatever the instruction and the images."""
        shown = self.prompts.shown(question, b"", b"")
        texts = [self.prompts.build(question, i, shown)[0] for i in _INSTRUCTIONS]
        return _common([self.encode(t) for t in texts])

    def parts(self, question: Question, source: Image, edited: Image, instruction: str) -> Parts:
        """The prompt's text and images. Raises ValueError on an empty instruction."""
        return self.prompts.build(question, instruction, self.prompts.shown(question, source, edited))

    def prompt(self, question: Question, parts: Parts, key: str, item: int = 0) -> Prompt:
        """The prompt of `parts`. Raises ImageError or RecordError (ValueErrors), naming `key`."""
        seen = tuple(p if isinstance(p, str | bytes | np.ndarray) else _outline(p) for p in parts)
        measured = measure_example(Example(seen, "", key), self.encode, self.cfg.image_token_id, self.images)
        images = [p for p in parts if not isinstance(p, str)]
        pads = np.flatnonzero(measured.tokens == self.cfg.image_token_id)
        sizes = [int(np.prod(g)) // self.cfg.vision.merge_unit for g in measured.grids]
        starts = [int(pads[n]) for n in itertools.accumulate(sizes[:-1], initial=0)]
        pictures = tuple(
            (start, self.picture(image, grid, f"{key} image {i}"))
            for i, (start, image, grid) in enumerate(zip(starts, images, measured.grids))
        )
        tokens = np.concatenate([measured.tokens, self.opening])
        positions, _ = rope_index(tokens, measured.grids, self.cfg.image_token_id, merge=self.images.merge_size)
        cuts = {starts[-1]} | ({starts[-1] + sizes[-1]} if self._sees_source else set())
        stem = self._stems[question]
        for head in (_common(list(self._stems.values())), stem):
            if np.array_equal(tokens[: len(head)], head):
                cuts.add(len(head))
        good = tuple(sorted(c for c in cuts if 0 < c < len(tokens) - 1))
        return Prompt(tokens, positions, pictures, good, item, PURPOSE[question])

    def picture(self, image: Any, grid: Grid, where: str) -> Picture:
        """An image for the engine; one that is on the device stays there."""
        cfg, settings = self.cfg.vision, self.images
        slots = rung(vision_slots(grid, cfg), cfg.window_tokens)
        on_device = isinstance(image, jax.Array)

        def load():
            layout = pack_vision([grid], cfg, 1, slots)
            source = layout.source
            if on_device:
                cut = device_patches(image[None], settings)[0]
                patches = cut[np.maximum(source, 0)] * (source >= 0)[..., None].astype(np.float32)
            else:
                cut, found = load_patches(image, settings, where=where)
                if found != tuple(grid):
                    raise ValueError(f"{where}: header promised grid {grid}, pixels gave {found}")
                patches = np.zeros((*source.shape, cut.shape[1]), np.float32)
                patches[source >= 0] = cut[source[source >= 0]]
            arrays = (patches, layout.patch_segments, layout.window_segments, layout.patch_hw)
            return dict(zip(VISION, arrays)), layout.merged_index[0]

        key = device_picture_key(image) if on_device else digest(image)
        return Picture(digest(key, repr(settings)), int(np.prod(grid)) // cfg.merge_unit, slots, load)


def _common(texts: Sequence[np.ndarray]) -> np.ndarray:
    """The longest common beginning."""
    length = min(map(len, texts))
    same = np.logical_and.reduce([t[:length] == texts[0][:length] for t in texts])
    return texts[0][: length if same.all() else int(np.argmin(same))]


def _outline(image: jax.Array) -> np.ndarray:
    """An array of the image's size that takes no memory, for measuring."""
    return np.broadcast_to(np.uint8(0), image.shape)


def digest(*content: Any) -> bytes:
    """Names content: texts, bytes, arrays, each with its kind and length; an array on the device by its identity."""
    out = hashlib.sha256()
    for piece in content:
        if isinstance(piece, jax.Array):
            piece = device_picture_key(piece)
        shape = str(piece.shape) if isinstance(piece, np.ndarray) else type(piece).__name__
        data = piece.encode() if isinstance(piece, str) else piece if isinstance(piece, bytes) else piece.tobytes()
        out.update(f"{shape} {len(data)}:".encode() + data)
    return out.digest()
