"""A training example: what a reward's `to_examples(record, seed)` makes and the pipeline encodes."""

from __future__ import annotations

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with its answer.

    Attributes:
      prompt: parts in order. Text is ChatML with "<|vision_start|>" and "<|vision_end|>" written out; between them
        stands an image: a uint8 RGB array [H, W, 3], or an encoded image (bytes: PNG, JPEG, WebP), which is measured by
        its header and decoded in a worker only when its batch is built.
      answer: the text to learn, its final "<|im_end|>" included; "" for scoring.
      key: names the example in errors and in the metadata of batches.
    """

    prompt: tuple[str | np.ndarray | bytes, ...]
    answer: str
    key: str
