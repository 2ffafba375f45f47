"""Text to ids, and an Example to the arrays of one sample. No torch, no JAX."""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Bool, Float32, Int32

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import ImageError, ImageSettings, image_size, load_patches
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.nn.model_files import read_json
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.positions import Grid, rope_index

FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")


@runtime_checkable
class Tokenizer(Protocol):
    """What the pipeline needs of a Hugging Face tokenizer."""

    def encode(self, text: str, *, add_special_tokens: bool = ...) -> list[int]: ...


def load_tokenizer(path: str | os.PathLike) -> Any:
    """A tokenizer from a folder or hub id. Never runs remote code. Raises WeightsError, a line that names the file."""
    from transformers import AutoTokenizer

    folder = os.fspath(path)
    for name in FILES:
        if os.path.exists(os.path.join(folder, name)):
            read_json(os.path.join(folder, name))
    try:
        found = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        found.encode("<|im_end|>", add_special_tokens=False)
        return found
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as e:  # the libraries raise many kinds, panics of Rust among them
        reason = next(iter(str(e).splitlines()), "") or type(e).__name__
        name = _culprit(folder)
    raise WeightsError(f"{name}: no tokenizer can be read: {reason[:300]}")


def _culprit(folder: str) -> str:
    """Which file of a folder, from which no tokenizer can be read, is at fault."""
    import tokenizers

    if not os.path.isdir(folder):
        return folder
    try:
        tokenizers.Tokenizer.from_file(os.path.join(folder, FILES[0]))
    except BaseException:
        return os.path.join(folder, FILES[0])
    return os.path.join(folder, FILES[1])


def check_tokenizer(tokenizer: Any, cfg: Config) -> None:
    """Raises WeightsError where a tokenizer is another model's: more entries, or another image token."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    if len(tokenizer) > cfg.text.vocab_size or image != cfg.image_token_id:
        have = f"{len(tokenizer)} entries, <|image_pad|> {image}"
        raise WeightsError(f"tokenizer ({have}) is not the model's ({cfg.text.vocab_size}, {cfg.image_token_id})")


@dataclasses.dataclass(frozen=True)
class Measured:
    """An example with its text encoded and its images measured by their headers: enough to plan batches.

    Attributes:
      tokens: int32 [T], image pads expanded.
      answer: bool [T], True on the tokens to predict.
      grids: (t, h, w) of each image, in patches.
      images: the images, still encoded or as arrays, in order.
    """

    key: str
    tokens: Int32[np.ndarray, " T"]
    answer: Bool[np.ndarray, " T"]
    grids: tuple[Grid, ...]
    images: tuple[bytes | np.ndarray, ...]


@dataclasses.dataclass(frozen=True)
class Encoded:
    """One sample, ready to be placed in a row.

    Attributes:
      tokens, answer, grids: as in Measured.
      positions: int32 [3, T], M-RoPE (t, h, w).
      patches: float32 [N, 1176], all images' patches in order, Hugging Face order inside an image.
    """

    key: str
    tokens: Int32[np.ndarray, " T"]
    answer: Bool[np.ndarray, " T"]
    positions: Int32[np.ndarray, "3 T"]
    patches: Float32[np.ndarray, "N D"]
    grids: tuple[Grid, ...]


class TextEncoder:
    """Encodes text parts with a small memory: rubric texts repeat in every sample."""

    def __init__(self, tokenizer: Tokenizer, size: int = 256):
        self._tokenizer, self._size = tokenizer, size
        self._memory: dict[str, np.ndarray] = {}

    def __call__(self, text: str) -> Int32[np.ndarray, " T"]:
        found = self._memory.get(text)
        if found is None:
            found = np.asarray(self._tokenizer.encode(text, add_special_tokens=False), np.int32)
            if len(self._memory) >= self._size:
                self._memory.clear()
            self._memory[text] = found
        return found


def measure_example(example: Example, encode: TextEncoder, image_token_id: int, settings: ImageSettings) -> Measured:
    """Encodes the text and measures the images by header. Raises RecordError or ImageError, naming the key.

    Parts are encoded one by one: images stand between special tokens, where byte-level BPE never merges, and the answer
    begins after the prompt as it does in generation.
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
    answer = encode(example.answer) if example.answer else np.zeros(0, np.int32)
    tokens = np.concatenate([*pieces, answer])
    if len(tokens) == len(answer):
        raise RecordError(example.key, "empty prompt")
    mask = np.arange(len(tokens)) >= len(tokens) - len(answer)
    return Measured(example.key, tokens, mask, tuple(grids), tuple(images))


def encode_measured(measured: Measured, cfg: Config, settings: ImageSettings) -> Encoded:
    """Decodes the images and computes positions. Raises ImageError for pixels that cannot be decoded."""
    parts = [load_patches(im, settings, where=f"{measured.key} image {i}") for i, im in enumerate(measured.images)]
    for (_, grid), planned in zip(parts, measured.grids, strict=True):
        if grid != planned:
            raise ImageError(measured.key, "unreadable image", f"header promised grid {planned}, pixels gave {grid}")
    patches = np.concatenate([p for p, _ in parts]) if parts else np.zeros((0, cfg.vision.patch_dim), np.float32)
    positions, _ = rope_index(measured.tokens, measured.grids, cfg.image_token_id, merge=settings.merge_size)
    return Encoded(measured.key, measured.tokens, measured.answer, positions, patches, measured.grids)


def encode_example(
    example: Example, tokenizer: Tokenizer | TextEncoder, cfg: Config, settings: ImageSettings
) -> Encoded:
    """An Example as the arrays of one sample. `cfg` is a qwen2_5_vl Config. Raises RecordError or ImageError."""
    encode = tokenizer if isinstance(tokenizer, TextEncoder) else TextEncoder(tokenizer)
    return encode_measured(measure_example(example, encode, cfg.image_token_id, settings), cfg, settings)
