"""Says which of a judge's dimensions answers what a benchmark asks: one table for all of them."""

import dataclasses
from collections.abc import Collection

from edit_rl_jax.rewards.base import Dimension, Judgement

# Figures that are the smaller one of two dimensions.
GROUPS = {"sc": ("prompt_following", "consistency"), "pq": ("naturalness", "artifacts")}
# Dimensions of other judges, and the one of these figures that is the truth for them.
LIKE = {"instruction_following": "sc", "visual_quality": "pq"}
# What a benchmark asks for, and the figures that answer it, the best first; the overall one where a judge has none of
# them. EditReward's first prompt asks for over-editing too, so that it answers for consistency.
AXES = {
    "overall": (),
    "prompt_following": ("prompt_following", "instruction_following"),
    "consistency": ("consistency", "instruction_following"),
    "IA": ("instruction_following", "prompt_following"),  # instruction adherence
    "VC": ("consistency", "instruction_following"),  # visual consistency
    "VQ": ("visual_quality", "pq"),  # visual quality
}


def matching(axis: str, dimensions: Collection[str]) -> str:
    """Names the figure of a judge with these dimensions that answers an axis of `AXES`."""
    return next((n for n in AXES[axis] if set(GROUPS.get(n, (n,))) <= set(dimensions)), "overall")


def names_of(dimensions: Collection[str]) -> list[str]:
    """Names the figures, beside the overall one, that records of the world and a judge with these dimensions both
    have."""
    groups = [name for name, members in GROUPS.items() if set(members) <= set(dimensions)]
    alone = [d for name, members in GROUPS.items() if name not in groups for d in members if d in dimensions]
    return groups + alone + [d for d in LIKE if d in dimensions]


def dimension_of(judged: Judgement, name: str) -> Dimension | None:
    """Returns a judgement's figure with its spread: a dimension, a group's, or the overall one.

    A group's is the mean over passes of the smaller score, where the judge tells it (`details`, EditScore's): the
    smaller of the means, which stands for it else, is never less.
    """
    if name == "overall":
        return judged.overall
    found = [judged.dimensions.get(d) for d in GROUPS.get(name, (name,))]
    if None in found:
        return None
    least, told = min(found, key=lambda d: d.value), judged.details
    if name in GROUPS and isinstance(told.get(name), float | int):
        return dataclasses.replace(least, value=told[name], spread=told.get("std", {}).get(name))
    return least


def figure(judged: Judgement, name: str) -> float | None:
    """Returns a judgement's figure: a dimension, a group's, or the overall one (see `dimension_of`)."""
    found = dimension_of(judged, name)
    return None if found is None else float(found.value)
