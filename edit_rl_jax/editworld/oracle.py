"""The oracle: scores any pixels as an edit of a known scene, by reading them.

A picture is explained as (colour cast, blur) of a scene of the world plus a remainder. The scene that is read decides
semantic consistency (success, over-editing); cast and blur decide naturalness, the remainder (noise, blocks, anything
that no scene explains) artifacts. Each is a float on 0-25.
*Success* = each is at least what `ENOUGH` wants.
"""

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from edit_rl_jax.editworld import reading
from edit_rl_jax.editworld.edits import Edit, Target
from edit_rl_jax.editworld.scene import BACKGROUND_SLOT, Scene

ENOUGH = {"success": 20, "over_editing": 20, "naturalness": 18, "artifacts": 18}  # of a successful edit
_EXTRA = (25.0, 14.0, 8.0, 4.0, 1.0)  # over-editing by the number of unasked changes
_PARTIAL = (1.0, 0.6, 0.36, 0.2, 0.1)  # an added or replacing object by its number of wrong attributes


@dataclasses.dataclass(frozen=True)
class Verdict:
    """What the oracle says. `severities`: damage by kind on 0-1; `fractions`: how far each change was made; `extra`:
    unasked changes; `scene`: what it read."""

    success: float
    over_editing: float
    naturalness: float
    artifacts: float
    severities: dict[str, float]
    fractions: tuple[float, ...]
    extra: int
    scene: Scene

    @property
    def sc(self) -> tuple[int, int]:
        """(success, over-editing) as integers 0-25"""
        return round(self.success), round(self.over_editing)

    @property
    def pq(self) -> tuple[int, int]:
        """(naturalness, artifacts) as integers 0-25"""
        return round(self.naturalness), round(self.artifacts)

    @property
    def overall(self) -> float:
        """sqrt(min SC * min PQ)"""
        return math.sqrt(min(self.success, self.over_editing) * min(self.naturalness, self.artifacts))

    @property
    def is_success(self) -> bool:
        """Says whether each score is at least what `ENOUGH` wants."""
        return is_success((self.success, self.over_editing), (self.naturalness, self.artifacts))


def is_success(sc: Sequence[float], pq: Sequence[float]) -> bool:
    """Says whether an edit with these scores (0-25) is what was asked for: each is at least what `ENOUGH` wants."""
    return all(score >= least for score, least in zip((*sc, *pq), ENOUGH.values(), strict=True))


def _slot_fraction(task: str, old, want, got) -> tuple[float, int]:
    """(how far one slot is done on 0-1, unasked changes within it)"""
    if got == want:
        return 1.0, 0
    if got == old:
        return 0.0, 0
    if task == "background":
        return _PARTIAL[2], 0
    if task == "remove" or got is None:
        return (_PARTIAL[3], 0) if task == "remove" else (0.0, 1)
    if task in ("add", "replace"):
        return _PARTIAL[sum(a != b for a, b in zip(want, got))], 0
    asked = [i for i, (a, b) in enumerate(zip(old, want)) if a != b]
    extra = any(got[i] != want[i] for i in range(4) if i not in asked)
    right, touched = all(got[i] == want[i] for i in asked), all(got[i] != old[i] for i in asked)
    return 1.0 if right else _PARTIAL[2] if touched else 0.0, int(extra)


def judge_against(slots: tuple, source: tuple, target: Target, edit: Edit) -> tuple[tuple[float, ...], int]:
    """(how far each change was made, number of unasked changes) of a scene's slots, for one acceptable result."""
    want = target.scene.slots
    fractions, extra = [], 0
    concerned = {s for group in target.slots for s in group}
    for op, group in zip(edit.ops, target.slots):
        if op.task == "move":
            left, there = slots[group[0]] is None, slots[group[1]] == want[group[1]]
            elsewhere = any(slots[i] == want[group[1]] != source[i] for i in range(BACKGROUND_SLOT))
            part = (1.0 if there else _PARTIAL[2] if elsewhere else _PARTIAL[3]) if left else 0.5 if there else 0.0
            extra += not left and slots[group[0]] != source[group[0]]
        else:
            part, more = _slot_fraction(op.task, source[group[0]], want[group[0]], slots[group[0]])
            extra += more
        fractions.append(part)
    extra += sum(slots[i] != source[i] for i in range(len(slots)) if i not in concerned)
    return tuple(fractions), extra


def judge(scene: Scene, edit: Edit) -> tuple[tuple[float, ...], int]:
    """`judge_against` the acceptable result that is kindest to the scene."""
    return _kindest(scene, edit)[1]


def _kindest(scene: Scene, edit: Edit) -> tuple[Target, tuple[tuple[float, ...], int]]:
    source, slots = edit.source.slots, scene.slots
    found = [(t, judge_against(slots, source, t, edit)) for t in edit.targets]
    return max(found, key=lambda f: (sum(semantic(*f[1])), min(semantic(*f[1]))))


def semantic(fractions: tuple[float, ...], extra: int) -> tuple[float, float]:
    """(success, over-editing) on 0-25"""
    return 25 * (sum(fractions) / len(fractions)) ** 1.35, _EXTRA[min(extra, 4)]


def quality(*severities: float) -> float:
    """Naturalness or artifacts on 0-25 from the severities that concern it."""
    return 25 - 23 * min(1.0, math.sqrt(sum(s * s for s in severities)))


def score(pixels: np.ndarray, edit: Edit) -> Verdict:
    """Scores pixels [H, W, 3] (uint8, or float on 0-255, any size) as a result of an edit. Raises as `prepare`."""
    found = reading.read(pixels, (edit.source, *(t.scene for t in edit.targets)))
    target, (fractions, extra) = _kindest(found.scene, edit)
    clear = [f and f * _clear(found, edit.source, slots) for f, slots in zip(fractions, target.slots)]
    success, over = semantic(tuple(clear), extra)
    s = found.severities
    natural, clean = quality(s["blur"], s["cast"]), quality(s["noise"], s["blocks"])
    return Verdict(success, over, natural, clean, s, fractions, extra, found.scene)


def _clear(found: reading.Reading, source: Scene, slots: tuple[int, ...]) -> float:
    """1 where a change is fully visible, 0 where it is at most half faded in."""
    before = found.scene
    for slot in slots:
        if slot == BACKGROUND_SLOT:
            before = dataclasses.replace(before, background=source.background, brightness=source.brightness)
        else:
            before = before.put(slot, source.objects[slot])
    return min(1.0, max(0.0, (found.clarity(before) - 0.5) / 0.35))


def score_batch(pixels: Sequence[np.ndarray] | np.ndarray, edits: Sequence[Edit]) -> list[Verdict]:
    """`score` of every picture with its edit; one picture's bad pixels raise for all. Raises ValueError on a length."""
    if len(pixels) != len(edits):
        raise ValueError(f"{len(pixels)} pictures for {len(edits)} edits")
    return [score(p, e) for p, e in zip(pixels, edits)]
