"""A training example: what a reward's `to_examples(record, seed)` makes and the pipeline encodes.

A tuple of Examples in that list is one sample whose parts share a row of the batch, side by side (a pair).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tokens:
    """An answer by its exact tokens, as a model sampled them: re-encoding its text could give others.

    Attributes:
      ids: int32 [A].
      arrays: float32 [A] each, what is known of the tokens: "weights" of the loss (default 1), and what an objective
        asks its batch format for (advantages, old log-probabilities).
    """

    ids: np.ndarray
    arrays: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Example:
    """One prompt with its answer.

    Attributes:
      prompt: parts in order. Text is ChatML with "<|vision_start|>" and "<|vision_end|>" written out; between them
        stands an image: a uint8 RGB array [H, W, 3], or an encoded image (bytes: PNG, JPEG, WebP), which is measured by
        its header and decoded in a worker only when its batch is built.
      answer: the text to learn, its final "<|im_end|>" included, or tokens; "" for scoring.
      key: names the example in errors and in the metadata of batches.
    """

    prompt: tuple[str | np.ndarray | bytes, ...]
    answer: str | Tokens
    key: str


@dataclasses.dataclass(frozen=True)
class EditExample:
    """One edit to learn. Images as in Example.

    Attributes:
      instruction: in words, None where training leaves it out.
      references: the images to edit.
      target: the result.
      key: as in Example.
      seed: of the example's random numbers on the device, below 2^31.
    """

    instruction: str | None
    references: tuple[np.ndarray | bytes, ...]
    target: np.ndarray | bytes
    key: str
    seed: int = 0
