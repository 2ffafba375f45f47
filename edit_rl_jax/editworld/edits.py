"""Edits of scenes and their candidates: the right result, and every way of getting it wrong, at graded severity."""

import dataclasses
import itertools

import numpy as np
from jaxtyping import UInt8

from edit_rl_jax.editworld import language
from edit_rl_jax.editworld.render import DAMAGES, NATIVE, damage, paint, quantise
from edit_rl_jax.editworld.scene import (
    BACKGROUND_SLOT,
    BACKGROUNDS,
    CELLS,
    COLUMNS,
    ROWS,
    VALUES,
    Obj,
    Scene,
    allowed,
    choice,
    held_out,
    random_object,
    random_scene,
    rng,
)

TASKS = ("add", "remove", "replace", "colour", "material", "background", "move", "two")
KINDS = ("correct", "half", "wrong_object", "over_edited", "untouched", *DAMAGES)
# The score on which an error kind shows: two of semantic consistency, two of perceptual quality.
DIMENSION = {
    "half": "success",
    "wrong_object": "success",
    "untouched": "success",
    "over_edited": "over_editing",
    "noise": "artifacts",
    "blocks": "artifacts",
    "blur": "naturalness",
    "cast": "naturalness",
}


@dataclasses.dataclass(frozen=True)
class Op:
    """One change. `cell`: what it applies to (None for add, background); `obj`: what add and replace put there;
    `value`: the new colour, material or background; `places`: cells that add and move accept; `place`: their name.
    """

    task: str
    cell: int | None = None
    obj: Obj | None = None
    value: str | None = None
    places: tuple[int, ...] = ()
    place: str = ""

    def apply(self, scene: Scene) -> list[tuple[Scene, tuple[int, ...]]]:
        """Every acceptable (result, slots that the change concerns)."""
        if self.task == "background":
            return [(dataclasses.replace(scene, background=str(self.value), brightness=1.0), (BACKGROUND_SLOT,))]
        if self.task == "add":
            return [(scene.put(p, self.obj), (p,)) for p in self.places if scene.objects[p] is None]
        assert self.cell is not None
        old = scene.objects[self.cell]
        assert old is not None
        rest = scene.put(self.cell, None)
        if self.task == "move":
            return [(rest.put(p, old), (self.cell, p)) for p in self.places if scene.objects[p] is None]
        if self.task == "remove":
            return [(rest, (self.cell,))]
        new = self.obj if self.task == "replace" else change(old, self.task, str(self.value))
        return [(scene.put(self.cell, new), (self.cell,))]


@dataclasses.dataclass(frozen=True)
class Target:
    """An acceptable result; `slots[k]`: the slots that the k-th change concerns."""

    scene: Scene
    slots: tuple[tuple[int, ...], ...]


@dataclasses.dataclass(frozen=True)
class Edit:
    """A source scene, one or two changes, their instruction, what it calls each one's object, acceptable results."""

    task: str
    source: Scene
    ops: tuple[Op, ...]
    instruction: str
    references: tuple[str, ...]
    targets: tuple[Target, ...]


@dataclasses.dataclass(frozen=True)
class Candidate:
    """An editor's possible output. `severity` in (0, 1] grades the error; `damages`: (kind, severity, seed)."""

    scene: Scene
    kind: str
    severity: float
    damages: tuple[tuple[str, float, int], ...] = ()

    def render(self, resolution: int = NATIVE) -> UInt8[np.ndarray, "n n 3"]:
        """The picture, damage included."""
        image = paint(self.scene, resolution)
        for kind, severity, seed in self.damages:
            image = damage(image, kind, severity, rng("damage", seed))
        return quantise(image)


def change(obj: Obj, attribute: str, value: str) -> Obj:
    """The object with another colour, material, shape or size; it keeps its offset and brightness."""
    return dataclasses.replace(obj, **{attribute: value})


def targets(source: Scene, ops: tuple[Op, ...]) -> tuple[Target, ...]:
    """All acceptable results of doing every change."""
    found = [Target(source, ())]
    for op in ops:
        found = [Target(s, (*t.slots, slots)) for t in found for s, slots in op.apply(t.scene)]
    return tuple(found)


def _other(gen: np.random.Generator, obj: Obj, attribute: str, split: str, special: bool = False) -> str | None:
    """Another value of an attribute that the split allows, None if there is none (or none special)."""
    values = [v for v in VALUES[attribute] if v != getattr(obj, attribute)]
    values = [v for v in values if allowed(change(obj, attribute, v), split)]
    if special:
        values = [v for v in values if held_out(change(obj, attribute, v), split)]
    return choice(gen, values) if values else None


def _place(gen: np.random.Generator, empty: list[int]) -> tuple[tuple[int, ...], str]:
    """A place to put something: one cell, a row or column, or anywhere; with its name."""
    kind = gen.choice(["cell", "line", "any"], p=[0.6, 0.15, 0.25])
    if kind == "any":
        return tuple(empty), ""
    if kind == "line":
        word, lines = [("row", ROWS), ("column", COLUMNS)][int(gen.integers(2))]
        name = choice(gen, lines)
        cells = tuple(c for c in lines[name] if c in empty)
        if cells:
            return cells, f"{name} {word}"
    cell = choice(gen, empty)
    return (cell,), CELLS[cell]


def _op(gen: np.random.Generator, scene: Scene, task: str, split: str, cells: list[int], special: bool) -> Op | None:
    """A random change of one of `cells`; `special`: of or into a held-out combination. None where it cannot be."""
    if task == "background":
        return Op(task, value=choice(gen, [b for b in BACKGROUNDS if b != scene.background]))
    if task == "add":
        obj = random_object(gen, split, special=special, jitter=False)
        if not scene.empty or obj.look in scene.slots:
            return None
        places, name = _place(gen, scene.empty)
        return Op(task, obj=obj, places=places, place=name)
    if not cells:
        return None
    cell = choice(gen, cells)
    obj = scene.objects[cell]
    done = held_out(obj, split)
    if task == "remove":
        return Op(task, cell) if done or not special else None
    if task == "move":
        places, name = _place(gen, scene.empty)
        return Op(task, cell, places=places, place=name) if done or not special else None
    if task == "replace":
        new = random_object(gen, split, special=special and not done, jitter=False)
        new = dataclasses.replace(new, offset=obj.offset)
        return Op(task, cell, obj=new) if new.shape != obj.shape and new.look not in scene.slots else None
    value = _other(gen, obj, task, split, special and not done)
    if value is None or change(obj, task, value).look in scene.slots:
        return None
    return Op(task, cell, value=value)


def random_edit(gen: np.random.Generator, split: str, task: str | None = None) -> Edit:
    """A random edit of a random scene; outside train it concerns an object of the split's own combinations."""
    task = task or choice(gen, TASKS)
    special = split != "train"
    while True:
        source = random_scene(gen, split, special=special)
        names = [task]
        if task == "two":
            names = list(gen.choice([t for t in TASKS if t != "two"], 2))
        ops: list[Op] = []
        for k, name in enumerate(names):
            used = {o.cell for o in ops}
            cells = [c for c in source.occupied if c not in used]
            op = _op(gen, source, name, split, cells, special and k == 0)
            if op is not None:
                ops.append(op)
        if len(ops) < len(names) or (task == "two" and _clash(ops)):
            continue
        found = targets(source, tuple(ops))
        found = tuple(t for t in found if len(set(itertools.chain(*t.slots))) == sum(map(len, t.slots)))
        text, references = language.instruction(gen, source, tuple(ops))
        named = language.first_reference(references)
        checks = [language.mixed(o, named) for o in source.objects if o is not None and named is not None]
        # what a judge learns from names no held-out combination in its reasons either
        if found and (special or all(allowed(o, split) for o in checks)):
            return Edit(task, source, tuple(ops), text, references, found)


def _clash(ops: list[Op]) -> bool:
    """Whether two changes together would be ambiguous: both of the background, or both to places left open."""
    a, b = ops
    return (a.task == b.task == "background") or (bool(a.places) and bool(b.places))


def _wrong_look(gen: np.random.Generator, obj: Obj, count: int, split: str, old: Obj | None) -> Obj:
    """The object with `count` attributes wrong (never equal to `old`)."""
    for _ in range(100):
        out = obj
        for a in gen.permutation(["colour", "shape", "material", "size"])[:count]:
            value = _other(gen, out, str(a), split)
            out = out if value is None else change(out, str(a), value)
        if len(out.differs(obj)) == count and (old is None or out.look != old.look):
            return out
    raise RuntimeError("no wrong look found")


def _half_op(
    gen: np.random.Generator, edit: Edit, scene: Scene, k: int, slots: tuple[int, ...], severity: float, split
):
    """The scene with the k-th change tried and got wrong: right object, wrong value."""
    op, grade = edit.ops[k], 1 + int(severity * 2.999)
    old = None if op.cell is None else edit.source.objects[op.cell]
    if op.task == "background":
        value = choice(gen, [b for b in BACKGROUNDS if b not in (op.value, edit.source.background)])
        return dataclasses.replace(scene, background=value, brightness=1.0)
    if op.task in ("add", "replace"):
        return scene.put(slots[0], _wrong_look(gen, op.obj, grade, split, old))
    if op.task == "remove":
        return scene.put(op.cell, _wrong_look(gen, old, grade, split, old))
    if op.task == "move":  # copied, or gone, or put into a wrong place
        if grade == 1:
            return scene.put(slots[1], old)
        scene = scene.put(op.cell, None)
        wrong = [c for c in scene.empty if c not in op.places and c != op.cell]
        return scene.put(choice(gen, wrong), old) if grade == 2 and wrong else scene
    values = [v for v in VALUES[op.task] if v not in (op.value, getattr(old, op.task))]
    values = [v for v in values if allowed(change(old, op.task, v), split)]
    return scene.put(op.cell, change(old, op.task, choice(gen, values)))


def _half(gen: np.random.Generator, edit: Edit, severity: float, split: str) -> Scene:
    """Half right: a wrong value; of two changes one left out, or one or both got wrong."""
    target = choice(gen, edit.targets)
    if edit.task != "two":
        return _half_op(gen, edit, edit.source, 0, target.slots[0], severity, split)
    k = int(gen.integers(2))
    right = next(s for s, slots in edit.ops[k].apply(edit.source) if slots == target.slots[k])
    if severity <= 1 / 3:
        return _half_op(gen, edit, right, 1 - k, target.slots[1 - k], 0.2, split)
    if severity <= 2 / 3:
        return right
    return _half_op(gen, edit, edit.source, k, target.slots[k], 0.5, split)


def _extra(gen: np.random.Generator, edit: Edit, scene: Scene, taken: set[int], split: str) -> tuple[Scene, set[int]]:
    """One unasked change somewhere outside `taken`."""
    free = [c for c in range(9) if c not in taken]
    full, empty = [c for c in free if scene.objects[c]], [c for c in free if scene.objects[c] is None]
    if BACKGROUND_SLOT not in taken and (not free or gen.random() < 0.12):
        value = choice(gen, [b for b in BACKGROUNDS if b != scene.background])
        return dataclasses.replace(scene, background=value, brightness=1.0), {BACKGROUND_SLOT}
    if full and (not empty or gen.random() < 0.8):
        cell = choice(gen, full)
        if gen.random() < 0.25:
            return scene.put(cell, None), {cell}
        return scene.put(cell, _wrong_look(gen, scene.objects[cell], 1, split, None)), {cell}
    cell = choice(gen, empty)
    return scene.put(cell, random_object(gen, split, jitter=False)), {cell}


def _over(gen: np.random.Generator, edit: Edit, severity: float, split: str) -> Scene | None:
    """The right edit and 1, 2 or 3 changes that nobody asked for."""
    target = choice(gen, edit.targets)
    # Cells that an open placement would also accept are left alone: there an extra could pass for the asked one.
    taken = set(itertools.chain(*target.slots)) | {p for op in edit.ops for p in op.places}
    if len(taken) > 7:
        taken = set(itertools.chain(*target.slots)) | set(edit.source.empty)
    scene = target.scene
    for _ in range(1 + int(severity * 2.999)):
        if len(taken) == 10:
            return None
        scene, used = _extra(gen, edit, scene, taken, split)
        taken |= used
    return scene


def _wrong_object(gen: np.random.Generator, edit: Edit, severity: float, split: str) -> Scene | None:
    """The change done to another object (or another place), and with severity to two or three."""
    asked = {s for t in edit.targets for slots in t.slots for s in slots}
    scene, op = edit.source, choice(gen, edit.ops)
    others = [c for c in scene.occupied if c not in {o.cell for o in edit.ops}]
    count = 1 + int(severity * 2.999)
    if op.task == "add":
        free = [c for c in scene.empty if c not in asked]
        if not free:
            return None
        for cell in gen.permutation(free)[:count]:
            scene = scene.put(int(cell), op.obj)
        return scene
    if not others:
        return None
    for cell in map(int, gen.permutation(others)[:count]):
        obj = scene.objects[cell]
        if op.task == "background":
            scene = scene.put(cell, _wrong_look(gen, obj, 1, split, None))
        elif op.task == "remove":
            scene = scene.put(cell, None)
        elif op.task == "replace":
            new = op.obj if op.obj.look != obj.look else _wrong_look(gen, op.obj, 1, split, obj)
            scene = scene.put(cell, dataclasses.replace(new, offset=obj.offset))
        elif op.task == "move":
            free = [c for c in scene.empty if c not in asked] or scene.empty
            scene = scene.put(cell, None).put(choice(gen, free), obj)
        else:
            new = change(obj, op.task, op.value)
            if new.look == obj.look or not allowed(new, split):
                new = _wrong_look(gen, obj, 1, split, None)
            scene = scene.put(cell, new)
    return scene


def candidate(gen: np.random.Generator, edit: Edit, kind: str, severity: float, split: str) -> Candidate | None:
    """A candidate of one kind at about the given severity (discrete kinds use its third). None where the edit has none.

    Raises ValueError for an unknown kind.
    """
    makers = {"half": _half, "over_edited": _over, "wrong_object": _wrong_object}
    if kind == "correct":
        return Candidate(choice(gen, edit.targets).scene, kind, 0.0)
    if kind == "untouched":
        return Candidate(edit.source, kind, 1.0)
    if kind in DAMAGES:
        return Candidate(choice(gen, edit.targets).scene, kind, severity, ((kind, severity, int(gen.integers(2**31))),))
    if kind not in makers:
        raise ValueError(f"unknown kind {kind!r}; one of {KINDS}")
    graded = (1 + int(severity * 2.999)) / 3
    scene = makers[kind](gen, edit, severity, split)
    if scene is None or any(scene.slots == t.scene.slots for t in edit.targets):
        return None
    return Candidate(scene, kind, graded)


def third(severity: float) -> int:
    """0, 1 or 2: the third of (0, 1] in which a severity lies."""
    return min(2, int(np.ceil(severity * 3 - 1e-9)) - 1) if severity > 0 else 0
