"""Rows of one edit each: an instruction, the images to edit and the result, for training an editor. NumPy only.

A shape fixes the text's length, the number of references and one size of image for both, below which references may
have a limit; the sizes of a dataset are covered by several shapes. Of an image the middle in its shape's aspect is
resized to its size.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.images import MAX_PIXELS, decode_image, image_size
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.editors.base import Preparer, Request, Size, TokenLengths, check_text, smaller, tokens
from edit_rl_jax.ranges import knob

OWN = ("target", "references", "reference_count", "text_mask", "seed")  # arrays of a batch; the rest is the editor's


@dataclasses.dataclass(frozen=True)
class EditShape:
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
class Editing:
    """The section `eval` of what is trained on these rows, for its SECTIONS (see `training.interfaces`)."""

    prompts: int = knob(0, "[0, 1000000]")  # at the end, held-out prompts of EditWorld edited and scored; 0 = none
    sample_steps: int = knob(20, "[1, 1000]")  # of those edits, Euler, without guidance


@dataclasses.dataclass(frozen=True)
class Row:
    """An edit with its shape chosen and the tokens of its text counted."""

    key: str
    instruction: str | None
    references: tuple[np.ndarray | bytes, ...]
    target: np.ndarray | bytes
    seed: int
    bucket: int
    text: int
    valid: bool = True


class EditRows:
    """The `pipeline.Format` of editors. A batch of B rows has

    target u8 [B, H, W, 3], references u8 [B, R, h, w, 3] (zeros where a row has fewer), reference_count i32 [B]
    (-1 = a row of padding), text_mask bool [B, T], seed i32 [B], and what the editor's `prepare` gives for one branch.

    tokenizer: None where only shapes are wanted. reference_pixels: of a reference at most; 0: as the result. Raises
    ValueError for sizes that are not the editor's.
    """

    def __init__(self, processor: Preparer, tokenizer: Any, shapes: Sequence[EditShape], reference_pixels: int = 0):
        self.reference_pixels = reference_pixels
        self.buckets, self.processor, self.tokenizer = tuple(shapes), processor, tokenizer
        self.guidance = dataclasses.replace(processor.guidance, text=1.0, image=1.0)
        for b in self.buckets:
            if b.height % processor.multiple or b.width % processor.multiple:
                raise ValueError(f"bucket {b}: sides must be multiples of {processor.multiple} pixels")

    def measure(self, example: EditExample) -> Row:
        size = image_size(example.target, where=f"{example.key} target", max_pixels=MAX_PIXELS)
        for i, image in enumerate(example.references):
            image_size(image, where=f"{example.key} reference {i}", max_pixels=MAX_PIXELS)
        count = len(example.references)
        lengths = {i: self._text(example, b) for i, b in enumerate(self.buckets) if count <= b.references}
        if not lengths:
            raise RecordError(example.key, "too many references", f"{count}, no bucket holds so many")
        if not (fits := [i for i, n in lengths.items() if n <= self.buckets[i].text]):
            check_text(min(lengths.values()), max(self.buckets[i].text for i in lengths), example.key)
        best = min(fits, key=lambda i: (self.buckets[i].distance(size), self.buckets[i].area))
        e = example
        return Row(e.key, e.instruction, e.references, e.target, e.seed, best, lengths[best])

    def _text(self, example: EditExample, shape: EditShape) -> int:
        request = self._request(example.instruction, (), len(example.references), shape, example.key)
        return self.processor.text_length(self.tokenizer, request, self.guidance)

    def reference_size(self, shape: EditShape) -> Size:
        """The (height, width) of a shape's references in pixels."""
        return smaller((shape.height, shape.width), self.reference_pixels, self.processor.multiple)

    def _request(self, instruction: str | None, images: Any, count: int, shape: EditShape, where: str) -> Request:
        references = (self.reference_size(shape),) * count
        return Request(instruction, tuple(images), references, (shape.height, shape.width), where=where)

    def _prepared(self, requests: Sequence[Request | None], shape: EditShape) -> dict[str, np.ndarray]:
        noise, one = (tokens(self.processor, s) for s in ((shape.height, shape.width), self.reference_size(shape)))
        lengths = TokenLengths(shape.text, shape.references * one, noise)
        return dict(self.processor.prepare(self.tokenizer, requests, lengths, self.guidance))

    def outline(self, sample: Row) -> int:
        return sample.bucket

    def outlined(self, outline: int) -> Row:
        return Row("", None, (), b"", 0, outline, 0)

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
        return self._prepared([None] * rows, b) | {
            "target": np.zeros((rows, b.height, b.width, 3), np.uint8),
            "references": np.zeros((rows, b.references, *self.reference_size(b), 3), np.uint8),
            "reference_count": np.full(rows, -1, np.int32),
            "text_mask": np.zeros((rows, b.text), bool),
            "seed": np.zeros(rows, np.int32),
        }

    def encode(self, sample: Row) -> Row:
        b = self.buckets[sample.bucket]
        decode = lambda image, name, size: cover(decode_image(image, where=f"{sample.key} {name}"), *size)
        size = self.reference_size(b)
        references = tuple(decode(im, f"reference {i}", size) for i, im in enumerate(sample.references))
        target = decode(sample.target, "target", (b.height, b.width))
        return dataclasses.replace(sample, references=references, target=target)

    def blank(self, sample: Row) -> Row:
        return dataclasses.replace(sample, valid=False)

    def write(self, batch: dict[str, np.ndarray], row: int, encoded: Sequence[Row]) -> None:
        for sample in encoded:  # one at most
            if not sample.valid:
                continue
            batch["target"][row] = sample.target
            if sample.references:
                batch["references"][row, : len(sample.references)] = sample.references
            batch["reference_count"][row] = len(sample.references)
            batch["text_mask"][row, : sample.text] = True
            batch["seed"][row] = sample.seed
            shape = self.buckets[sample.bucket]
            request = self._request(sample.instruction, sample.references, len(sample.references), shape, sample.key)
            for name, values in self._prepared([request], shape).items():
                batch[name][row] = values[0]

    def counts(self, batch: dict[str, np.ndarray]) -> dict[str, int]:
        images, text = batch["reference_count"] + 1, batch["text_mask"]  # images of padding: 0
        noise, one = (tokens(self.processor, batch[k].shape[-3:-1]) for k in ("target", "references"))
        edits = int((images > 0).sum())
        patches = edits * noise + (int(images.sum()) - edits) * one
        slots = images.size * (noise + batch["references"].shape[-4] * one)
        return {
            "answers": edits,
            "tokens": int(text.sum()) + patches,
            "patches": patches,
            "token_slots": text.size + slots,
            "patch_slots": slots,
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
