"""EditWorld's oracle as a reward: the truth about any pixels, with the interface of a judgement."""

from collections.abc import Sequence

import numpy as np

from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.edits import Edit
from edit_rl_jax.rewards.editscore.judge import Judgement


def judge(edit: Edit, pixels: np.ndarray) -> Judgement:
    """Scores pixels [H, W, 3] (uint8, or float on 0-255) as a result of the edit, on 0-25.

    Pixels that the oracle cannot read (too small, another shape, not finite) are a judgement that is not valid.
    """
    try:
        found = oracle.score(pixels, edit)
    except ValueError as error:
        return Judgement(problem=str(error))
    sc, pq = (found.success, found.over_editing), (found.naturalness, found.artifacts)
    return Judgement(sc=sc, pq=pq, overall=found.overall, overall_std=0.0)


def score(items: Sequence[tuple[Edit, np.ndarray]]) -> list[Judgement]:
    """Judges (edit, pixels), in order."""
    return [judge(edit, pixels) for edit, pixels in items]
