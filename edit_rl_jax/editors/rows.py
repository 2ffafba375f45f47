"""Rows of one edit each: an instruction, the images to edit and the result, for training an editor. NumPy only.

A bucket fixes the text's length, the number of references and one size of image for both; the sizes of a dataset are
covered by buckets of several shapes. Of an image the middle in its bucket's aspect is resized to its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from jaxtyping import Int32, UInt8
from PIL import Image

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.images import MAX_PIXELS, decode_image, image_size
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.vlm.tokenizer import TextEncoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Bucket:
    """The shapes of one row: text tokens, reference images, and the height and width of all images in pixels."""

    text: int
    references: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"T{self.text} R{self.references} {self.height}x{self.width}"

    @property
    def area(self) -> int:
        """Grows with what a row costs."""
        return self.text + (1 + self.references) * self.height * self.width

    def distance(self, size: tuple[int, int]) -> float:
        """How much an image of that (height, width) is distorted in aspect and area, with aspect first."""
        h, w = (math.log(a / b) for a, b in zip((self.height, self.width), size))
        return 100 * round(abs(h - w), 3) + abs(h + w)


@dataclasses.dataclass(frozen=True)
class Row:
    """An edit with its text encoded and its bucket chosen."""

    key: str
    tokens: Int32[np.ndarray, " T"]
    references: tuple[np.ndarray | bytes, ...]
    target: np.ndarray | bytes
    seed: int
    bucket: int
    valid: bool = True


# layout(text lengths, numbers of references, bucket, which rows are no padding) -> further arrays [rows, ...]
Layout = Callable[[Sequence[int], Sequence[int], Bucket, Sequence[bool]], Mapping[str, np.ndarray]]


class EditRows:
    """The `pipeline.Format` of editors. A batch of B rows has

    target u8 [B, H, W, 3], references u8 [B, R, H, W, 3] (zeros where a row has fewer), tokens i32 [B, T],
    seed i32 [B], and what `layout` gives, `noise_segments` [B, N] (0 = padding) among it.

    chat: the text of an instruction, or of none; "" where the model reads no text. multiple: sides of images must be
    multiples of it. Raises ValueError.
    """

    def __init__(
        self,
        tokenizer: Tokenizer | None,
        buckets: Sequence[Bucket],
        layout: Layout,
        chat: Callable[[str | None], str],
        multiple: int = 1,
    ):
        self.buckets, self.layout, self.chat = tuple(buckets), layout, chat
        self._text = None if tokenizer is None else TextEncoder(tokenizer)
        for b in self.buckets:
            if b.height % multiple or b.width % multiple:
                raise ValueError(f"bucket {b}: sides must be multiples of {multiple} pixels")

    def measure(self, example: EditExample) -> Row:
        tokens = np.zeros(0, np.int32) if self._text is None else self._text(self.chat(example.instruction))
        size = image_size(example.target, where=f"{example.key} target", max_pixels=MAX_PIXELS)
        for i, image in enumerate(example.references):
            image_size(image, where=f"{example.key} reference {i}", max_pixels=MAX_PIXELS)
        count = len(example.references)
        fits = [i for i, b in enumerate(self.buckets) if len(tokens) <= b.text and count <= b.references]
        if not fits:
            raise RecordError(example.key, "too long for every bucket", f"{len(tokens)} tokens, {count} references")
        best = min(fits, key=lambda i: (self.buckets[i].distance(size), self.buckets[i].area))
        return Row(example.key, tokens, example.references, example.target, example.seed, best)

    def load(self, sample: Row) -> tuple[int]:
        return (1,)

    def capacity(self) -> tuple[int]:
        return (1,)

    def plan(self, samples: Sequence[Row], rows: int, final: bool, rng: np.random.Generator | None):
        batches, rest = [], []
        for bucket in range(len(self.buckets)):
            queue = [i for i, s in enumerate(samples) if s.bucket == bucket]
            whole = len(queue) if final else len(queue) // rows * rows
            batches += [(bucket, [[i] for i in queue[k : min(k + rows, whole)]]) for k in range(0, whole, rows)]
            rest += queue[whole:]
        # without chance, in the order in which the first of their samples came
        order = np.argsort([rows[0][0] for _, rows in batches], kind="stable")
        order = order if rng is None else rng.permutation(len(batches))
        return [batches[int(i)] for i in order], sorted(rest)

    def empty(self, bucket: int, rows: int) -> dict[str, np.ndarray]:
        b = self.buckets[bucket]
        image = (b.height, b.width, 3)
        return {
            "target": np.zeros((rows, *image), np.uint8),
            "references": np.zeros((rows, b.references, *image), np.uint8),
            "tokens": np.zeros((rows, b.text), np.int32),
            "seed": np.zeros(rows, np.int32),
            **self.layout([0] * rows, [0] * rows, b, [False] * rows),
        }

    def encode(self, sample: Row) -> Row:
        b = self.buckets[sample.bucket]
        decode = lambda image, name: cover(decode_image(image, where=f"{sample.key} {name}"), b.height, b.width)
        references = tuple(decode(im, f"reference {i}") for i, im in enumerate(sample.references))
        return dataclasses.replace(sample, references=references, target=decode(sample.target, "target"))

    def blank(self, sample: Row) -> Row:
        return dataclasses.replace(sample, valid=False)

    def write(self, batch: dict[str, np.ndarray], row: int, encoded: Sequence[Row]) -> None:
        for sample in encoded:  # one at most
            if not sample.valid:
                continue
            batch["target"][row] = sample.target
            if sample.references:
                batch["references"][row, : len(sample.references)] = sample.references
            batch["tokens"][row, : len(sample.tokens)] = sample.tokens
            batch["seed"][row] = sample.seed
            index = self.layout([len(sample.tokens)], [len(sample.references)], self.buckets[sample.bucket], [True])
            for name, values in index.items():
                batch[name][row] = values[0]

    def counts(self, batch: dict[str, np.ndarray]) -> dict[str, int]:
        segments = {k: v for k, v in batch.items() if k.endswith("_segments")}
        real = {k: int((v > 0).sum()) for k, v in segments.items()}
        images = {k for k in segments if k != "text_segments"}
        return {
            "answers": int((batch["noise_segments"] > 0).any(axis=1).sum()),
            "tokens": sum(real.values()),
            "patches": sum(real[k] for k in images),
            "token_slots": sum(v.size for v in segments.values()),
            "patch_slots": sum(segments[k].size for k in images),
        }


def cover(image: UInt8[np.ndarray, "H W 3"], height: int, width: int) -> UInt8[np.ndarray, "height width 3"]:
    """Cuts out the middle of an image in the aspect of height x width and resizes it to that size (bicubic).

    The cut falls between pixels where it must: neither aspect nor centre is rounded.
    """
    h, w = image.shape[:2]
    scale = min(h / height, w / width)
    top, left = (h - height * scale) / 2, (w - width * scale) / 2
    box = (left, top, left + width * scale, top + height * scale)
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC, box=box))
