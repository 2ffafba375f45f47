"""Exact principles of an edit of the world, and the oracle's verdicts on them.

A question names, in the world's words, what a good result shows; the answer is yes where it is so. Of each change, what
is where afterwards (Follow: `north big green striped circle`, `south none`); that nothing else changed (Keep: `extra
none`, `background sky`); that the picture is clean (Quality: `noise none blocks none`).
"""

import dataclasses

from edit_rl_jax.data.records import Principle
from edit_rl_jax.editworld import language
from edit_rl_jax.editworld.edits import Edit, Op
from edit_rl_jax.editworld.oracle import ENOUGH, Verdict
from edit_rl_jax.editworld.scene import CELLS

NOTHING_ELSE = Principle("extra none", "Keep")
CLEAN = (
    ("naturalness", Principle("blur none cast none", "Quality")),
    ("artifacts", Principle("noise none blocks none", "Quality")),
)


def _asked(edit: Edit, op: Op) -> str:
    place = op.place or "any"
    if op.task == "background":
        return f"background {op.value}"
    if op.task == "add":
        return f"{place} {op.obj}"
    assert op.cell is not None
    old, cell = edit.source.objects[op.cell], CELLS[op.cell]
    if op.task == "move":
        return f"{cell} to {place} {old}"
    if op.task == "remove":
        return f"{cell} none"
    new = op.obj if op.task == "replace" else dataclasses.replace(old, **{op.task: op.value})
    return f"{cell} {language.content(new)}"


def _backgrounds(edit: Edit) -> bool:
    """Whether the background was asked to change."""
    return any(op.task == "background" for op in edit.ops)


def principles_of(edit: Edit) -> tuple[Principle, ...]:
    """Makes the principles of an edit: one of each change, one or two of what must stay, two of quality."""
    follow = [Principle(_asked(edit, op), "Follow") for op in edit.ops]
    keep = [] if _backgrounds(edit) else [Principle(f"background {edit.source.background}", "Keep")]
    return (*follow, NOTHING_ELSE, *keep, *(p for _, p in CLEAN))


def verdicts_of(edit: Edit, found: Verdict) -> tuple[int, ...]:
    """Gives the oracle's verdicts, 0 or 1, in the order of `principles_of`. A change that is made but not fully visible
    counts as not made."""
    visible = found.success >= ENOUGH["success"] or min(found.fractions) < 1
    follow = [int(f >= 1 and visible) for f in found.fractions]
    keep = [] if _backgrounds(edit) else [int(found.scene.background == edit.source.background)]
    clean = [int(getattr(found, name) >= ENOUGH[name]) for name, _ in CLEAN]
    return (*follow, int(found.extra == 0), *keep, *clean)
