"""Selects one of several replies about an edit, by gold verdicts; deterministic. Paper: arXiv 2604.27505."""

import dataclasses
from collections.abc import Sequence

from edit_rl_jax.data.principles import Principles
from edit_rl_jax.data.records import CATEGORIES


@dataclasses.dataclass(frozen=True)
class Candidate:
    """A reply that could be read.

    Attributes:
      verdicts: 0 or 1 for each principle.
      average: the mean verdict that it states or has. score: its final score, 0 to 10.
    """

    verdicts: tuple[int, ...]
    average: float
    score: float


def accuracy(verdicts: Sequence[int], gold: Sequence[int]) -> float:
    """Returns the share of verdicts that agree with gold ones. Raises ValueError for unequal or no lengths."""
    if not gold or len(verdicts) != len(gold):
        raise ValueError(f"{len(verdicts)} verdicts, {len(gold)} gold ones")
    return sum(v == g for v, g in zip(verdicts, gold)) / len(gold)


def select(candidates: Sequence[Candidate | None], gold: Sequence[int]) -> int | None:
    """Returns the place of the best candidate; None where all are None, which is one that could not be read.

    The best has the highest accuracy against gold; of equals the higher average, then the higher final score, then the
    smaller place. Raises ValueError where a candidate has not one verdict for each gold one.
    """
    ranks = [
        (accuracy(c.verdicts, gold), c.average, c.score, -place) for place, c in enumerate(candidates) if c is not None
    ]
    return -max(ranks)[3] if ranks else None


def right_by_category(verdicts: Sequence[int], gold: Sequence[int], principles: Principles) -> dict[str, list[int]]:
    """Counts [right verdicts, all verdicts] by category; all CATEGORIES are there."""
    found = {name: [0, 0] for name in CATEGORIES}
    for verdict, right, principle in zip(verdicts, gold, principles, strict=True):
        found[principle.category][0] += verdict == right
        found[principle.category][1] += 1
    return found
