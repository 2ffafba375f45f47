"""EditWorld's oracle as a judge: the truth about any pixels of an edit that it knows."""

from collections.abc import Sequence

import numpy as np

from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.edits import Edit
from edit_rl_jax.rewards.base import Dimension, Judgement

SCALE = 25.0
DIMENSIONS = tuple(oracle.ENOUGH)


def judge(edit: Edit, pixels: np.ndarray) -> Judgement:
    """Scores pixels [H, W, 3] (uint8, or float on 0-255) as a result of the edit, on 0-25.

    Pixels that the oracle cannot read (too small, another shape, not finite) are a judgement that is not valid.
    """
    try:
        found = oracle.score(pixels, edit)
    except ValueError as error:
        return Judgement(problem=str(error))
    figures = {name: Dimension(getattr(found, name), None, SCALE) for name in DIMENSIONS}
    return Judgement(figures, Dimension(found.overall, None, SCALE), found.is_success)


def score(items: Sequence[tuple[Edit, np.ndarray]]) -> list[Judgement]:
    """Judges (edit, pixels), in order."""
    return [judge(edit, pixels) for edit, pixels in items]
