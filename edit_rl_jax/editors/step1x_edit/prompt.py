"""Step1X-Edit's chat: its prefix, read from upstream's own source file, and how its instruction becomes tokens."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

from edit_rl_jax.editors.base import EditError
from edit_rl_jax.editors.prompt_files import read_constant
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.tokenizer import load_tokenizer

VARIABLE, SOURCES = "EDIT_RL_STEP1X_PREFIX", ("modules/conditioner.py", "conditioner.py")
CONSTANT, SHA256 = "Qwen25VL_7b_PREFIX", "40882ddca94ca6971c8d5713d42464afa31dad09236dfacafe3ee26b4b44aa82"
HELPFUL = "You are a helpful assistant."
SYSTEM = f"<|im_start|>system\n{HELPFUL}<|im_end|>\n<|im_start|>user\n"
PICTURE, END, CLOSE = "Picture 1: <|vision_start|>", "<|vision_end|>", "<|im_end|>\n<|im_start|>assistant\n"
FIRST_QUOTE = 156
"""Characters of the chat among which quotes are no quotes."""
_QUOTES = str.maketrans("'“”", '"""')


class Tokenizer(NamedTuple):
    """The language model's, and the text before the image."""

    text: Any
    prefix: str


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a released folder, with the prefix of `read_prefix`."""
    return Tokenizer(load_tokenizer(folder / "processor"), read_prefix(folder))


def read_prefix(folder: Path) -> str:
    """Reads the prefix from the file that the environment's EDIT_RL_STEP1X_PREFIX names, or from upstream's code in
    `folder`; the file is parsed, not run. Raises WeightsError where there is none, and for another text."""
    named = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else [folder / name for name in SOURCES]
    advice = (
        "Step1X-Edit's prompt has a text that stands in its own source, modules/conditioner.py: "
        f"name that file by {VARIABLE}, or lay it into the model's folder"
    )
    return read_constant(named, CONSTANT, SHA256, advice)


def pieces(chat: str) -> list[str]:
    """Cuts a chat where it is tokenised: every character between quotes alone, in Chinese quotes. An apostrophe is a
    quote too, and one that nothing closes spells all that follows, as upstream has it."""
    out, text, quoted = [], "", False
    for i, c in enumerate(chat.translate(_QUOTES)):
        if c == '"' and i >= FIRST_QUOTE:
            text += c
            if not quoted:
                out.append(text)
                text = ""
            quoted = not quoted
        elif quoted:
            out.append(f"“{c}”")
        else:
            text += c
    return [*out, text] if text else out


def encode(tokenizer: Tokenizer, instruction: str, image_tokens: int, where: str) -> list[int]:
    """Tokens of the chat whose image takes so many. Raises EditError for an instruction that holds an image's token."""
    ids = lambda text: list(tokenizer.text.encode(text, add_special_tokens=False))
    pad, end = tokenizer.text.convert_tokens_to_ids(["<|image_pad|>", END])
    first, last = ids("“"), ids("”")
    before = SYSTEM + tokenizer.prefix + PICTURE
    found: list[int] = []
    for piece in pieces(before + END + instruction + CLOSE):
        one = ids(piece)
        wrapped = one[: len(first)] == first and one[len(one) - len(last) :] == last
        found += one[len(first) : len(one) - len(last)] if wrapped else one
    if end not in found:
        raise WeightsError(f"the prompt's prefix opens a quote and does not close it: {tokenizer.prefix[:40]!r}...")
    after = found[found.index(end) :]
    if pad in after:
        raise EditError(where, "image token in text", "an instruction shows no images")
    return [*ids(before), *[pad] * image_tokens, *after]
