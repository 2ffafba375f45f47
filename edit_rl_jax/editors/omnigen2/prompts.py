"""The chat around an instruction, and its tokens: text goes to the language model alone, images only to the VAE."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

# As in the released model; `ORIGINAL` stands in negative prompts of RL and GEdit-Bench, `DROPPED` where training drops
# the text.
EDIT = "You are a helpful assistant that generates high-quality images based on user instructions."
ORIGINAL = "You are a helpful assistant."
DROPPED = "You are a helpful assistant that generates images."


def chat(instruction: str, system: str = EDIT) -> str:
    """ChatML of a system and a user turn, without an assistant's header."""
    return f"<|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{instruction}<|im_end|>\n"


def tokenize(
    tokenizer: Any, chats: Sequence[str], length: int
) -> tuple[Int[np.ndarray, "B T"], Int[np.ndarray, "B T"], list[int]]:
    """Tokens and segments (1 = text, 0 = padding on the right) of chats, and how many tokens each has before it is cut
    to `length`, as the released pipeline does."""
    tokens, segments = np.zeros((2, len(chats), length), np.int32)
    wanted = []
    for b, text in enumerate(chats):
        ids = tokenizer.encode(text, add_special_tokens=False)
        wanted.append(len(ids))
        kept = min(len(ids), length)
        tokens[b, :kept], segments[b, :kept] = ids[:kept], 1
    return tokens, segments, wanted
