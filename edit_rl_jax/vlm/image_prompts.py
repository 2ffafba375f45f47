"""Texts and images as prompts of the generation engine: tokens, pictures by content, and the cuts at which they share.

A prompt may be cut where the texts of all prompts of its kind part (the system turn, the text before the instruction)
and where its last image begins: prompts that differ in that image alone then share everything before it. The cuts
follow from the prompt's own content, so its result does not depend on what else is asked.
"""

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

import jax
import numpy as np

from edit_rl_jax.data.example import Example
from edit_rl_jax.vlm.device_patches import device_patches, device_picture_key
from edit_rl_jax.vlm.engine.prompt import Picture, Prompt, rung
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.patches import ImageSettings, load_patches
from edit_rl_jax.vlm.positions import Grid, lay_out
from edit_rl_jax.vlm.samples import image_places, measure_example
from edit_rl_jax.vlm.tokenizer import TextEncoder

Image = np.ndarray | bytes | jax.Array  # the last: born on the device


class ImagePrompts:
    """Makes `Prompt`s of texts and images, for one model's tokenizer and image settings.

    positions: "mrope" = the family's; "1d" = a token's place in the prompt, on all axes, as the released EditReward
    weights were trained.
    """

    def __init__(
        self, arch: Architecture, tokenizer: Any, images: ImageSettings, positions: Literal["mrope", "1d"] = "mrope"
    ):
        self.arch, self.images, self.encode, self.positions = arch, images, TextEncoder(tokenizer), positions

    def stem(self, texts: Sequence[str]) -> np.ndarray:
        """The tokens with which all these texts begin."""
        return common([self.encode(t) for t in texts])

    def make(
        self,
        parts: Sequence[str | Image],
        key: str,
        *,
        heads: Sequence[np.ndarray] = (),
        after_last: bool = False,
        opening: Sequence[int] = (),
        item: int = 0,
        purpose: int = 0,
    ) -> Prompt:
        """The prompt of `parts`, text and images in order.

        heads: beginnings to be cut behind where the prompt has them. after_last: cut behind the last image too.
        opening: tokens with which every answer begins, as a part of the prompt. Raises ImageError or RecordError
        (ValueErrors), naming `key`.
        """
        seen = tuple(p if isinstance(p, str | bytes | np.ndarray) else _outline(p) for p in parts)
        measured = measure_example(Example(seen, "", key), self.encode, self.arch.image_token_id, self.images)
        places = image_places(measured.tokens, measured.grids, self.arch)
        images = [p for p in parts if not isinstance(p, str)]
        pictures = tuple(
            (int(place[0]), self.picture(image, grid, f"{key} image {i}"))
            for i, (place, image, grid) in enumerate(zip(places, images, measured.grids))
        )
        tokens = np.concatenate([measured.tokens, np.asarray(opening, np.int32)])
        positions, _ = self.arch.positions(tokens, measured.grids)
        if self.positions == "1d":
            positions = np.broadcast_to(np.arange(len(tokens), dtype=np.int32), positions.shape)
        cuts = {len(h) for h in heads if np.array_equal(tokens[: len(h)], h)}
        if places:
            cuts |= {int(places[-1][0])} | ({int(places[-1][-1]) + 1} if after_last else set())
        good = tuple(sorted(c for c in cuts if 0 < c < len(tokens) - 1))
        return Prompt(tokens, positions, pictures, good, item, purpose)

    def picture(self, image: Image, grid: Grid, where: str) -> Picture:
        """An image for the engine; one that is on the device stays there."""
        arch, settings = self.arch, self.images
        slots = rung(arch.vision_slots(grid), arch.vision_slots((1, settings.merge_size, settings.merge_size)))
        on_device = isinstance(image, jax.Array)

        def load():
            layout = lay_out([grid], arch.vision_rows(1, slots))
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
            return {"patches": patches, **arch.vision_arrays(layout)}, layout.merged_index[0]

        key = device_picture_key(image) if on_device else digest(image)
        return Picture(digest(key, repr(settings)), int(np.prod(grid)) // arch.merge_unit, slots, load)


def common(texts: Sequence[np.ndarray]) -> np.ndarray:
    """The longest common beginning."""
    length = min(map(len, texts))
    same = np.logical_and.reduce([t[:length] == texts[0][:length] for t in texts])
    return texts[0][: length if same.all() else int(np.argmin(same))]


def _outline(image: jax.Array) -> np.ndarray:
    """An array of the image's size that takes no memory, for measuring."""
    return np.broadcast_to(np.uint8(0), image.shape)


def digest(*content: Any) -> bytes:
    """Names content: texts, bytes, arrays, each with its kind and length; an array on the device by its hash."""
    out = hashlib.sha256()
    for piece in content:
        if isinstance(piece, jax.Array):
            piece = device_picture_key(piece)
        shape = str(piece.shape) if isinstance(piece, np.ndarray) else type(piece).__name__
        data = piece.encode() if isinstance(piece, str) else piece if isinstance(piece, bytes) else piece.tobytes()
        out.update(f"{shape} {len(data)}:".encode() + data)
    return out.digest()
