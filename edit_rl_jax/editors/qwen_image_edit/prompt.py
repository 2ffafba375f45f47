"""Qwen-Image-Edit's chat: its template, read from diffusers' own source file, and its tokens."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path
from typing import Any, NamedTuple

from edit_rl_jax.editors.base import EditError
from edit_rl_jax.editors.prompt_files import read_constant
from edit_rl_jax.vlm.tokenizer import load_tokenizer

VARIABLE, ATTRIBUTE = "EDIT_RL_QWEN_TEMPLATE", "prompt_template_encode"
SOURCES = {False: "pipeline_qwenimage_edit.py", True: "pipeline_qwenimage_edit_plus.py"}  # by `plus`
SHA256 = {
    False: "846b0a7896f4ed820b88206dd2f23dbad7d2f1f2327589ab63be5ccc01c6f3a0",
    True: "d5d65822319c122831aa17afe5322570a88232ba8475cd5cd0b9822f56d83857",
}
DROPPED = 64
"""States of the language model that are left out: those before the user's turn."""
PICTURE = "Picture {}: <|vision_start|><|image_pad|><|vision_end|>"
"""Stands before the instruction for each image of a "Plus" model."""
EMPTY = " "
"""The negative text, and that of training without an instruction."""


class Tokenizer(NamedTuple):
    """The language model's, and the chat around the user's text."""

    text: Any
    template: str


def folder_tokenizer(folder: Path, plus: bool) -> Tokenizer:
    """Loads the tokenizer of a released folder, with the template of `read_template`."""
    home = folder / "processor"
    has = (home / "tokenizer.json").exists() or (home / "vocab.json").exists()
    return Tokenizer(load_tokenizer(home if has else folder / "tokenizer"), read_template(folder, plus))


def read_template(folder: Path, plus: bool) -> str:
    """Reads the template from the file that the environment's EDIT_RL_QWEN_TEMPLATE names, from diffusers' code in
    `folder`, or from the installed diffusers; the file is parsed, not run. Raises WeightsError where there is none, and
    for another text."""
    name = SOURCES[plus]
    spec = importlib.util.find_spec("diffusers")  # is not imported by this
    installed = [Path(p) / "pipelines" / "qwenimage" / name for p in (spec and spec.submodule_search_locations) or []]
    named = [Path(os.environ[VARIABLE])] if os.environ.get(VARIABLE) else [folder / name, *installed]
    advice = (
        f"Qwen-Image-Edit's prompt has a text that stands in diffusers' {name}: "
        f"install diffusers, name that file by {VARIABLE}, or lay it into the model's folder"
    )
    return read_constant(named, ATTRIBUTE, SHA256[plus], advice)


def encode(tokenizer: Tokenizer, text: str, image_tokens: list[int], plus: bool, where: str) -> list[int]:
    """Tokens of the chat whose images take so many each. Raises EditError for a text that holds an image's token."""
    pictures = "".join(PICTURE.format(k) for k in range(1, len(image_tokens) + 1)) if plus else ""
    chat = tokenizer.template.format(pictures + text)
    pad, counts = tokenizer.text.convert_tokens_to_ids("<|image_pad|>"), list(image_tokens)
    ids = tokenizer.text.encode(chat, add_special_tokens=False)
    if ids.count(pad) != len(counts):
        raise EditError(where, "image token in text", "an instruction shows no images")
    return [i for one in ids for i in ([pad] * counts.pop(0) if one == pad else [one])]
