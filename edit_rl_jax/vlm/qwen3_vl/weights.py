"""Qwen3-VL's names in Hugging Face checkpoints: Qwen2.5-VL's mapping, but the files on the hub have transformers'
names, and older styles do not load there."""

import dataclasses
import functools
from typing import Any

from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen3_vl.config import Config

NAMING = dataclasses.replace(weights.NAMING, written=str)
save = functools.partial(weights.save, naming=NAMING)


def architecture(source: Any) -> Config:
    """`Config.from_hf`; a head in a folder's files that differs from the embedding is a head of its own."""
    return weights.architecture(source, Config)
