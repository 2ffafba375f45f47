"""Text to ids: a tokenizer from a folder, checked. No torch, no JAX."""

from __future__ import annotations

import os
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Int32

from edit_rl_jax.nn.model_files import read_json
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.family import Architecture

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


def check_tokenizer(tokenizer: Any, arch: Architecture) -> None:
    """Raises WeightsError where a tokenizer is another model's: more entries, or another image token."""
    image = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    if len(tokenizer) > arch.vocab_size or image != arch.image_token_id:
        have = f"{len(tokenizer)} entries, <|image_pad|> {image}"
        raise WeightsError(f"tokenizer ({have}) is not the model's ({arch.vocab_size}, {arch.image_token_id})")


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
