"""Words of EditWorld: instructions, and the reasons that a judge writes.

A reason restates what was asked for, attribute by attribute, and transcribes both pictures cell by cell before it
concludes. Whatever has to be compared stands close by: what would be there if it were what is asked about, what was
there, then what was asked for there (if it was), then what is there now. Changes that nobody asked for are numbered.

    asked any any any striped any to any green any any .
    north big red striped circle north big red striped circle asked big green striped circle , big green striped circle
    same yes . south small blue striped star south small blue plain star , none gone extra 1 .
    background sky , sky same . done yes 25 . extra 1 14 .

Every word is one token of the world's tokenizer, and always has a space before it.
"""

import dataclasses
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from edit_rl_jax.editworld.scene import ATTRIBUTES, BACKGROUND_SLOT, CELLS, Obj, Scene, choice

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


def words_of(cell: str | None = None, **attributes: str) -> str:
    """The five words that name an object: cell and ATTRIBUTES, `any` where nothing is said."""
    return " ".join([cell or "any", *(attributes.get(a, "any") for a in ATTRIBUTES)])


def phrase(attributes: dict[str, str]) -> str:
    """`the striped circle`, `the big red object`."""
    words = [attributes[a] for a in ATTRIBUTES if a in attributes]
    return " ".join(["the", *words, *([] if "shape" in attributes else ["object"])])


def refer(gen: np.random.Generator, scene: Scene, cell: int) -> tuple[str, str]:
    """A phrase for the object of a cell that fits no other object of the scene (by attributes, in full, or by place),
    and what it says as `words_of`."""
    obj = scene.objects[cell]
    full, form = {a: getattr(obj, a) for a in ATTRIBUTES}, gen.random()
    if form < 0.3:
        template = choice(gen, BY_PLACE)
        said = {"shape": obj.shape} if "{s}" in template else {}
        return template.format(c=CELLS[cell], s=obj.shape), words_of(CELLS[cell], **said)
    others = [o for o in scene.objects if o is not None and o is not obj]
    subsets = [s for k in (1, 2, 3) for s in itertools.combinations(ATTRIBUTES, k)]
    unique = [s for s in subsets if all(any(getattr(o, a) != getattr(obj, a) for a in s) for o in others)]
    if form >= 0.45 and unique:
        shortest = len(unique[0])
        subset = choice(gen, [s for s in unique if len(s) <= shortest + (gen.random() < 0.4)])
        full = {a: full[a] for a in subset}
    return phrase(full), words_of(**full)


def _one(gen: np.random.Generator, source: Scene, op) -> tuple[str, str]:
    kind = "any" if not op.place else "cell" if op.place in CELLS else "line"
    fill, words = {"v": op.value, "n": op.obj}, "background" if op.task == "background" else "none"
    if op.cell is not None:
        fill["o"], words = refer(gen, source, op.cell)
    if op.task in ("add", "move"):
        fill["p"] = choice(gen, PLACES[op.task, kind]).format(c=op.place)
    return choice(gen, TEMPLATES[op.task]).format(**fill), words


def instruction(gen: np.random.Generator, source: Scene, ops: tuple) -> tuple[str, tuple[str, ...]]:
    """The instruction for one or two changes of a scene, in varied words, and what it says of each change's object."""
    said, references = zip(*(_one(gen, source, op) for op in ops))
    text = said[0] if len(said) == 1 else choice(gen, JOINS).format(a=said[0], b=said[1])
    return f"please {text}" if gen.random() < 0.1 else text, references


def terse(ops: tuple) -> str:
    """One or two changes in as few words as there are, objects by their cells: `colour south orange , add big red
    dotted ring middle row`. An editor learns these many times sooner than sentences, and after them sentences sooner.
    """

    def one(op) -> str:
        new = op.obj if op.task in ("add", "replace") else op.value
        place = [op.place or "anywhere"] if op.task in ("add", "move") else []
        cell = [] if op.cell is None else [CELLS[op.cell]]
        return " ".join([op.task, *cell, *([] if new is None else [str(new)]), *place])

    return " , ".join(map(one, ops))


ASKED = ("asked", "also")  # the first and the second change


def content(thing: Obj | str | None) -> str:
    """`big red striped circle`, a background's name, or `none`."""
    return "none" if thing is None else str(thing)


def describe(scene: Scene) -> str:
    """One picture, occupied cell by cell, then its background."""
    parts = [f"{CELLS[i]} {content(scene.objects[i])} ." for i in scene.occupied]
    return " ".join([*parts, f"background {scene.background} ."])


def request(op, reference: str, word: str = ASKED[0]) -> str:
    """What an instruction says of one change: `asked any any red any circle to any blue any any .`"""
    if op.task in ATTRIBUTES:
        new = words_of(**{op.task: op.value}).removeprefix("any ")
    else:
        new = {"move": "same", "remove": "none", "background": op.value}.get(op.task) or str(op.obj)
    place = ["at", op.place or "any"] if op.places else []
    return " ".join([word, reference, "to", new, *place, "."])


@dataclasses.dataclass(frozen=True)
class Want:
    """What the `number`-th change wants in a slot: an object, a background, nothing, or (MOVED) `moved`."""

    number: int
    op: Any
    thing: Obj | str | None
    moved: Obj | None = None

    @property
    def right(self) -> Obj | str | None:
        """What has to be in the slot."""
        return self.moved or self.thing


MOVED = "new"


def wants(source: Scene, edited: Scene, ops) -> dict[int, Want]:
    """What was asked for, by slot. Of a place left open: where the edited picture has something new, if anywhere."""
    found: dict[int, Want] = {}
    for k, op in enumerate(ops):
        old = None if op.cell is None else source.objects[op.cell]
        if op.task == "background":
            found[BACKGROUND_SLOT] = Want(k, op, op.value)
        elif op.cell is not None:
            new = {"move": None, "remove": None, "replace": op.obj}
            thing = new[op.task] if op.task in new else dataclasses.replace(old, **{op.task: op.value})
            found[op.cell] = Want(k, op, thing)
        if op.places:
            filled = [p for p in op.places if edited.objects[p] is not None]
            right = [p for p in filled if edited.objects[p].look == (op.obj or old).look]
            for place in op.places[:1] if op.place in CELLS else (right or filled)[:1]:
                found[place] = Want(k, op, op.obj or MOVED, None if op.obj else old)
    return found


def verdict(a: Obj | str | None, b: Obj | str | None) -> str:
    """What became of a slot: same, new, gone, changed (a background), or the attributes that changed."""
    if isinstance(a, Obj) and isinstance(b, Obj):
        return " ".join(a.differs(b)) or "same"
    return "same" if a == b else "new" if a is None else "gone" if b is None else "changed"


def progress(old: Obj | str | None, want: Want, got: Obj | str | None) -> str:
    """How far one slot is what was asked for, as a word of DONE."""
    if verdict(want.right, got) == "same":
        return "yes"
    if got is None or want.moved or verdict(old, got) == "same":
        return "no"
    if want.op.task == "remove":
        return "hardly"
    wrong = len(want.thing.differs(got)) if want.op.task in ("add", "replace") else 2
    return ("mostly", "half", "hardly", "hardly")[wrong - 1]


def mixed(obj: Obj, reference: str) -> Obj:
    """The object if it had every attribute that a reference (`words_of`) names."""
    said = zip(ATTRIBUTES, reference.split()[1:])
    return dataclasses.replace(obj, **{a: word for a, word in said if word != "any"})


def checked(slot: int, thing: Obj | str | None, reference: str | None) -> list[str]:
    """What is in a slot; of an object, after what would be there if it were the one that is asked about."""
    name = "background" if slot == BACKGROUND_SLOT else CELLS[slot]
    if reference is None or not isinstance(thing, Obj):
        return [name, content(thing)]
    place = reference.split()[0]
    return [name, content(mixed(thing, reference)), name if place == "any" else place, content(thing)]


def first_reference(references) -> str | None:
    """What the first change that names an object says of it, as `words_of`."""
    return next((r for r in references if len(r.split()) == 1 + len(ATTRIBUTES)), None)


def compare(source: Scene, edited: Scene, edit=None, *, judge: bool = False, count: str = "") -> str:
    """Two pictures, cell by cell, then their backgrounds, with what `edit` asks for in its place.

    `judge`: also say how far that was done. `count`: the word that numbers the other changes.
    """
    wanted, number, clauses = wants(source, edited, edit.ops if edit else ()), 0, []
    reference = first_reference(edit.references if edit else ())
    for slot in range(BACKGROUND_SLOT + 1):
        back = slot == BACKGROUND_SLOT
        a, b = (s.background if back else s.objects[slot] for s in (source, edited))
        if a is None and b is None and slot not in wanted:
            continue
        words = checked(slot, a, reference)
        if want := wanted.get(slot):
            words += [ASKED[want.number], content(want.thing), ",", content(b)]
            words += [verdict(want.right, b), progress(a, want, b)] if judge else []
        else:
            words += [",", content(b), verdict(a, b)]
            if count and words[-1] != "same":
                number += 1
                words += [count, str(min(number, 9))]
        clauses.append(" ".join([*words, "."]))
    return " ".join(clauses)


def requests(edit) -> str:
    """Every change that an instruction asks for."""
    return " ".join(map(request, edit.ops, edit.references, ASKED))


def expect(edit) -> str:
    """The source of an edit, with what was asked for in its place (a place left open is not said)."""
    wanted, parts = wants(edit.source, edit.source, edit.ops), []
    reference = first_reference(edit.references)
    for slot in range(BACKGROUND_SLOT + 1):
        back = slot == BACKGROUND_SLOT
        a = edit.source.background if back else edit.source.objects[slot]
        if a is None and slot not in wanted:
            continue
        asked = [ASKED[wanted[slot].number], content(wanted[slot].thing)] if slot in wanted else []
        parts.append(" ".join([*checked(slot, a, reference), *asked, "."]))
    return " ".join(parts)


def done_word(fraction: float) -> str:
    """A word of DONE for how far a change was made (0-1)."""
    return DONE[
        0 if fraction <= 0.02 else 1 if fraction < 0.3 else 2 if fraction < 0.55 else 3 if fraction < 0.98 else 4
    ]


def sc_reasoning(edit, edited: Scene, fractions, extra: int, scores: tuple[int, int]) -> str:
    """Reason for the two scores of semantic consistency; `fractions[k]`: how far the k-th change was made."""
    compared = compare(edit.source, edited, edit, judge=True, count="extra")
    done = done_word(sum(fractions) / len(fractions))
    return f"{requests(edit)} {compared} done {done} {scores[0]} . extra {min(extra, 4)} {scores[1]} ."


def level(severity: float) -> str:
    """A word of LEVELS for a damage's severity (0-1)."""
    return LEVELS[0 if severity < 0.04 else min(4, 1 + int(severity * 4))]


def pq_reasoning(severities: dict[str, float], score: Callable[[float], float] | None = None) -> str:
    """Every kind of damage in a fixed order; with `score`, the reason for the scores of perceptual quality: the score
    that each kind alone would leave."""
    found = {k: severities.get(k, 0.0) for k in ("noise", "blur", "blocks", "cast")}
    return " ".join(f"{k} {level(s)}{f' {round(score(s))}' if score else ''} ." for k, s in found.items())
