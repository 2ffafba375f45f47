"""Words of EditWorld: instructions, and the reasons that a judge writes.

A reason transcribes before it concludes, cell by cell, so that comparing pictures becomes comparing words:

    north big red striped circle , big blue striped circle colour . south small blue plain star , none gone .
    background sky , sky same . asked north big red striped circle to big blue striped circle done yes . extra 1 .

Every word is one token of the world's tokenizer, and always has a space before it.
"""

import dataclasses
import itertools

import numpy as np

from edit_rl_jax.editworld.scene import ATTRIBUTES, CELLS, Obj, Scene, choice

LEVELS = ("none", "slight", "mild", "strong", "severe")
DONE = ("no", "hardly", "half", "mostly", "yes")

TEMPLATES = {
    "add": (
        "add a {n} {p}",
        "put a {n} {p}",
        "place a {n} {p}",
        "draw a {n} {p}",
        "insert a {n} {p}",
        "i want a {n} {p}",
        "there should be a {n} {p}",
    ),
    "remove": (
        "remove {o}",
        "delete {o}",
        "take {o} away",
        "get rid of {o}",
        "erase {o}",
        "make {o} disappear",
        "i do not want {o}",
    ),
    "replace": (
        "replace {o} with a {n}",
        "swap {o} for a {n}",
        "turn {o} into a {n}",
        "change {o} into a {n}",
        "put a {n} instead of {o}",
        "exchange {o} for a {n}",
        "a {n} should replace {o}",
    ),
    "colour": (
        "make {o} {v}",
        "colour {o} {v}",
        "paint {o} {v}",
        "change the colour of {o} to {v}",
        "turn {o} {v}",
        "recolour {o} to {v}",
        "{o} should be {v}",
    ),
    "material": (
        "make {o} {v}",
        "give {o} a {v} pattern",
        "change the pattern of {o} to {v}",
        "turn the material of {o} to {v}",
        "{o} should be {v}",
        "redraw {o} as {v}",
        "let {o} have a {v} pattern",
    ),
    "background": (
        "change the background to {v}",
        "make the background {v}",
        "use a {v} background",
        "put everything on {v}",
        "set the background to {v}",
        "replace the background with {v}",
        "i want {v} behind the objects",
    ),
    "move": (
        "move {o} {p}",
        "shift {o} {p}",
        "bring {o} {p}",
        "put {o} {p}",
        "send {o} {p}",
        "{o} should go {p}",
    ),
}
JOINS = ("{a} and {b}", "{a} , then {b}", "{a} , and also {b}", "first {a} , then {b}", "{a} ; {b}", "both {a} and {b}")
PLACES = {
    ("add", "cell"): ("in the {c} cell", "at {c}", "to the {c}", "into the {c} cell"),
    ("move", "cell"): ("to the {c} cell", "to the {c}", "into the {c} cell"),
    ("add", "line"): ("somewhere in the {c}", "in the {c}"),
    ("move", "line"): ("somewhere into the {c}", "to the {c}"),
    ("add", "any"): ("somewhere", "anywhere", "in any empty cell", "in a free cell"),
    ("move", "any"): ("somewhere else", "to another cell", "to any empty cell", "to a free cell"),
}
BY_PLACE = ("the object in the {c} cell", "the object at {c}", "what is in the {c} cell", "the {s} in the {c} cell")


def refer(gen: np.random.Generator, scene: Scene, cell: int) -> str:
    """A phrase for the object of a cell that fits no other object of the scene: by attributes, in full, or by place."""
    obj = scene.objects[cell]
    form = gen.random()
    if form < 0.3:
        return choice(gen, BY_PLACE).format(c=CELLS[cell], s=obj.shape)
    if form < 0.45:
        return f"the {obj}"
    others = [o for o in scene.objects if o is not None and o is not obj]
    subsets = [s for k in (1, 2, 3) for s in itertools.combinations(ATTRIBUTES, k)]
    unique = [s for s in subsets if all(any(getattr(o, a) != getattr(obj, a) for a in s) for o in others)]
    if not unique:
        return f"the {obj}"
    shortest = len(unique[0])
    subset = choice(gen, [s for s in unique if len(s) <= shortest + (gen.random() < 0.4)])
    words = [getattr(obj, a) for a in subset]
    return "the " + " ".join(words if "shape" in subset else [*words, "object"])


def _one(gen: np.random.Generator, source: Scene, op) -> str:
    kind = "any" if not op.place else "cell" if op.place in CELLS else "line"
    fill = {"v": op.value, "n": op.obj}
    if op.cell is not None:
        fill["o"] = refer(gen, source, op.cell)
    if op.task in ("add", "move"):
        fill["p"] = choice(gen, PLACES[op.task, kind]).format(c=op.place)
    return choice(gen, TEMPLATES[op.task]).format(**fill)


def instruction(gen: np.random.Generator, source: Scene, ops: tuple) -> str:
    """The instruction for one or two changes of a scene, in varied words."""
    said = [_one(gen, source, op) for op in ops]
    text = said[0] if len(said) == 1 else choice(gen, JOINS).format(a=said[0], b=said[1])
    return f"please {text}" if gen.random() < 0.1 else text


@dataclasses.dataclass(frozen=True)
class Grammar:
    """How a comparison is written.

    Attributes:
      cells: "occupied" (in either picture) or "all".
      repeat_same: write the second picture's content even where it equals the first's.
      verdicts: "attributes" (same, new, gone, or what changed), "words" (same, new, gone, changed), "none".
      asked: where the request is restated: "end", "start" or "none".
    """

    cells: str = "occupied"
    repeat_same: bool = True
    verdicts: str = "attributes"
    asked: str = "end"


GRAMMAR = Grammar()


def content(obj: Obj | None) -> str:
    """`big red striped circle`, or `none`."""
    return "none" if obj is None else str(obj)


def describe(scene: Scene, grammar: Grammar = GRAMMAR) -> str:
    """One picture, cell by cell, then its background."""
    cells = [i for i in range(9) if grammar.cells == "all" or scene.objects[i] is not None]
    parts = [f"{CELLS[i]} {content(scene.objects[i])} ." for i in cells]
    return " ".join([*parts, f"background {scene.background} ."])


def verdict(a: Obj | None, b: Obj | None, grammar: Grammar = GRAMMAR) -> str:
    """What became of a cell: same, new, gone, or what changed."""
    if (a is None) != (b is None):
        return "new" if a is None else "gone"
    changed = () if a is None or b is None else a.differs(b)
    if not changed:
        return "same"
    return " ".join(changed) if grammar.verdicts == "attributes" else "changed"


def _clause(name: str, a: str, b: str, word: str, grammar: Grammar) -> str:
    second = [] if a == b and not grammar.repeat_same else [",", b]
    return " ".join([name, a, *second, *([] if grammar.verdicts == "none" and second else [word]), "."])


def compare_cell(source: Scene, edited: Scene, cell: int, grammar: Grammar = GRAMMAR) -> str:
    """The clause of one cell."""
    a, b = source.objects[cell], edited.objects[cell]
    return _clause(CELLS[cell], content(a), content(b), verdict(a, b, grammar), grammar)


def compare(source: Scene, edited: Scene, grammar: Grammar = GRAMMAR) -> str:
    """Two pictures, cell by cell, then their backgrounds."""
    pairs = zip(source.objects, edited.objects)
    cells = [i for i, (a, b) in enumerate(pairs) if grammar.cells == "all" or a is not None or b is not None]
    word = "same" if source.background == edited.background else "changed"
    last = _clause("background", source.background, edited.background, word, grammar)
    return " ".join([*(compare_cell(source, edited, i, grammar) for i in cells), last])


def request(source: Scene, op) -> str:
    """A change with its reference resolved: `asked north big red plain star to big blue plain star`."""
    if op.task == "background":
        return f"asked background {source.background} to {op.value}"
    place = op.place or "any"
    if op.task == "add":
        return f"asked {place} none to {op.obj}"
    old = source.objects[op.cell]
    new = {"move": place, "remove": "none", "replace": content(op.obj)}.get(op.task)
    if new is None:
        new = str(dataclasses.replace(old, **{op.task: op.value}))
    return f"asked {CELLS[op.cell]} {old} to {new}"


def done_word(fraction: float) -> str:
    """A word of DONE for how far a change was made (0-1)."""
    return DONE[
        0 if fraction <= 0.02 else 1 if fraction < 0.3 else 2 if fraction < 0.55 else 3 if fraction < 0.98 else 4
    ]


def sc_reasoning(source: Scene, edited: Scene, ops, fractions, extra: int, grammar: Grammar = GRAMMAR) -> str:
    """Reason for the two scores of semantic consistency; `fractions[k]`: how far the k-th change was made."""
    asks = [request(source, op) for op in ops]
    done = [f"done {done_word(f)} ." for f in fractions]
    parts = [compare(source, edited, grammar)]
    if grammar.asked == "start":
        parts = [*(f"{a} ." for a in asks), *parts, *done]
    elif grammar.asked == "end":
        parts += [f"{a} {d}" for a, d in zip(asks, done)]
    else:
        parts += done
    return " ".join([*parts, f"extra {min(extra, 4)} ."])


def level(severity: float) -> str:
    """A word of LEVELS for a damage's severity (0-1)."""
    return LEVELS[0 if severity < 0.04 else min(4, 1 + int(severity * 4))]


def pq_reasoning(severities: dict[str, float]) -> str:
    """Reason for the two scores of perceptual quality: every kind of damage in a fixed order."""
    return " ".join(f"{k} {level(severities.get(k, 0.0))} ." for k in ("noise", "blur", "blocks", "cast"))
