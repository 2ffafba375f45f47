"""An Example as the arrays of one sample. NumPy only."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32, Int32

from edit_rl_jax.data.errors import ImageError, RecordError
from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import image_size
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.patches import ImageSettings, load_patches
from edit_rl_jax.vlm.positions import Grid
from edit_rl_jax.vlm.tokenizer import TextEncoder, Tokenizer


@dataclasses.dataclass(frozen=True)
class Measured:
    """An example with its text encoded and its images measured by their headers: enough to plan batches.

    Attributes:
      tokens: int32 [T], image pads expanded.
      answer: bool [T], True on the tokens to predict, which stand at the end.
      grids: (t, h, w) of each image, in patches.
      images: the images, still encoded or as arrays, in order.
      arrays: float32 [A] each, what is known of the answer tokens (see `Tokens`).
    """

    key: str
    tokens: Int32[np.ndarray, " T"]
    answer: Bool[np.ndarray, " T"]
    grids: tuple[Grid, ...]
    images: tuple[bytes | np.ndarray, ...]
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One sample, ready to be placed in a row.

    Attributes:
      tokens, answer, grids, arrays: as in Measured.
      positions: int32 [axes, T].
      patches: float32 [N, patch_dim], its images' patches in order, Hugging Face order inside an image; without those
        that an earlier sample of its row has.
      names: of the images that samples of a row share; () = it shares none.
    """

    key: str
    tokens: Int32[np.ndarray, " T"]
    answer: Bool[np.ndarray, " T"]
    positions: Int32[np.ndarray, "axes T"]
    patches: Float32[np.ndarray, "N D"]
    grids: tuple[Grid, ...]
    arrays: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    names: tuple[str, ...] = ()


class Together(tuple):
    """Samples (Measured or Encoded) that share a row of a batch, one after another: one alone, or a pair.

    An image that an earlier one of them shows, too, is in the row once.
    """

    @property
    def key(self) -> str:
        return " + ".join(s.key for s in self)

    def shown(self) -> list[list[tuple[int, int]]]:
        """For each of these Measured samples and each of its images where that is first shown: (sample, image)."""
        out: list[list[tuple[int, int]]] = []
        for i, sample in enumerate(self):
            earlier = [(at, self[at[0]].images[at[1]]) for row in out for at in row]
            same = lambda x: next((at for at, y in earlier if y is x or _equal(x, y)), None)  # noqa: B023
            out.append([same(x) or (i, j) for j, x in enumerate(sample.images)])
        return out


def _equal(a: bytes | np.ndarray, b: bytes | np.ndarray) -> bool:
    if isinstance(a, bytes) or isinstance(b, bytes):
        return type(a) is type(b) and a == b
    return np.array_equal(a, b)


def measure_example(example: Example, encode: TextEncoder, image_token_id: int, settings: ImageSettings) -> Measured:
    """Encodes the text and measures the images by header. Raises RecordError or ImageError, naming the key.

    Parts are encoded one by one: images stand between special tokens, where byte-level BPE never merges, and the answer
    begins after the prompt as it does in generation. An answer that is given as tokens is taken as it is.
    """
    pieces: list[np.ndarray] = []
    grids: list[Grid] = []
    images: list[bytes | np.ndarray] = []
    for part in example.prompt:
        if isinstance(part, str):
            pieces.append(encode(part))
            if (pieces[-1] == image_token_id).any():
                raise RecordError(example.key, "image token in text", "images are given as parts, not as pad tokens")
            continue
        where = f"{example.key} image {len(images)}"
        size = image_size(part, where=where, max_pixels=settings.decode_limit)
        try:
            grids.append(settings.grid(*size))
        except ValueError as e:
            raise ImageError(where, "image too narrow", str(e)) from None
        images.append(part)
        merged = int(np.prod(grids[-1])) // settings.merge_size**2
        pieces.append(np.full(merged, image_token_id, np.int32))
    given, arrays = example.answer, {}
    if isinstance(given, str):
        answer = encode(given) if given else np.zeros(0, np.int32)
        if (answer == image_token_id).any():
            raise RecordError(example.key, "image token in text", "an answer shows no images")
    else:
        answer, arrays = np.asarray(given.ids, np.int32), {k: np.asarray(v) for k, v in given.arrays.items()}
        if wrong := [k for k, v in arrays.items() if v.shape != answer.shape]:
            raise RecordError(example.key, "malformed answer", f"not one number a token: {', '.join(wrong)}")
    tokens = np.concatenate([*pieces, answer])
    if len(tokens) == len(answer):
        raise RecordError(example.key, "empty prompt")
    mask = np.arange(len(tokens)) >= len(tokens) - len(answer)
    return Measured(example.key, tokens, mask, tuple(grids), tuple(images), arrays)


def encode_measured(
    measured: Measured,
    arch: Architecture,
    settings: ImageSettings,
    *,
    positions: str = "mrope",
    names: tuple[str, ...] = (),
    known: Collection[str] = (),
) -> Encoded:
    """Decodes the images and computes positions. Raises ImageError for pixels that cannot be decoded.

    positions: "mrope", the family's, or "1d", the place in the prompt on all axes. names, known: of its images (see
    `Encoded`), and those that an earlier sample has.
    """
    # an image that stands twice in one prompt, as where nothing was edited, is once in the row, too
    new = [i for i in range(len(measured.images)) if not names or names[i] not in {*known, *names[:i]}]
    parts = [load_patches(measured.images[i], settings, where=f"{measured.key} image {i}") for i in new]
    for (_, grid), planned in zip(parts, (measured.grids[i] for i in new), strict=True):
        if grid != planned:
            raise ImageError(measured.key, "unreadable image", f"header promised grid {planned}, pixels gave {grid}")
    patches = np.concatenate([p for p, _ in parts]) if parts else np.zeros((0, arch.patch_dim), np.float32)
    # an image token that a model wrote in an answer stands for no image
    text = measured.tokens[~measured.answer]
    prompt, after = arch.positions(text, measured.grids)
    if positions == "1d":
        prompt, after = np.tile(np.arange(len(text), dtype=np.int32), (len(prompt), 1)), len(text)
    rest = np.arange(after, after + measured.answer.sum(), dtype=np.int32)
    places = np.concatenate([prompt, np.tile(rest, (len(prompt), 1))], axis=1)
    tokens, answer = measured.tokens, measured.answer
    return Encoded(measured.key, tokens, answer, places, patches, measured.grids, measured.arrays, names)


def encode_example(
    example: Example, tokenizer: Tokenizer | TextEncoder, arch: Architecture, settings: ImageSettings
) -> Encoded:
    """An Example as the arrays of one sample. Raises RecordError or ImageError."""
    encode = tokenizer if isinstance(tokenizer, TextEncoder) else TextEncoder(tokenizer)
    return encode_measured(measure_example(example, encode, arch.image_token_id, settings), arch, settings)


def image_places(tokens: np.ndarray, grids: Sequence[Grid], arch: Architecture) -> list[np.ndarray]:
    """Where each image's merged tokens stand among the tokens of a prompt."""
    pads = np.flatnonzero(tokens == arch.image_token_id)
    ends = np.cumsum([t * h * w // arch.merge_unit for t, h, w in grids])
    return np.split(pads, ends[:-1]) if len(grids) else []
