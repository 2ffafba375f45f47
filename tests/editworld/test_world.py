"""Scenes, renderer, edits and candidates: deterministic, split by scene and by combination, at any resolution."""

import collections
import dataclasses
import hashlib
import subprocess
import sys

import numpy as np
import pytest

from edit_rl_jax.editworld import edits, language, oracle, render
from edit_rl_jax.editworld.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    CELLS,
    HELD_OUT,
    SPLITS,
    VALUES,
    Obj,
    Scene,
    allowed,
    held_out,
    random_scene,
    rng,
)


def test_nothing_depends_on_what_was_drawn_before():
    """The same key gives the same scene, pixels and edit; a golden digest holds across machines and versions."""
    scenes = [random_scene(rng("golden", i), "train") for i in range(8)]
    again = [random_scene(rng("golden", i), "train") for i in reversed(range(8))][::-1]
    assert scenes == again
    names = "|".join(str(s.slots) for s in scenes)
    assert hashlib.sha256(names.encode()).hexdigest()[:12] == GOLDEN
    assert (render.render(scenes[0]) == render.render(again[0])).all()


GOLDEN = "ade8419239cd"


@pytest.mark.parametrize("split", SPLITS)
def test_splits_keep_their_combinations(split):
    """No picture of a split shows another split's combinations; outside train every edit concerns one of its own."""
    gen, own = rng("splits", split), 0
    for k in range(240):
        edit = edits.random_edit(gen, split)
        kind = edits.KINDS[k % len(edits.KINDS)]
        made = edits.candidate(gen, edit, kind, float(gen.uniform(0, 1)), split)
        shown = [edit.source, *(t.scene for t in edit.targets)] + ([made.scene] if made else [])
        for scene in shown:
            assert all(allowed(o, split) for o in scene.objects if o)
        own += any(held_out(o, split) for scene in shown for o in scene.objects if o)
    assert own == (0 if split == "train" else 240)


def test_held_out_combinations_are_disjoint_and_their_parts_known():
    """Held out are combinations, never values: train shows every colour, shape and material."""
    assert not HELD_OUT["validation"] & HELD_OUT["test"]
    gen = rng("values")
    seen = {v for _ in range(300) for o in random_scene(gen, "train").objects if o for v in o.look}
    assert seen == {v for values in VALUES.values() for v in values}


def test_resolutions_agree():
    """A scene drawn large and averaged down is the scene drawn small, up to anti-aliasing."""
    for k in range(6):
        scene = random_scene(rng("size", k), "train")
        small = render.paint(scene, 84)
        large = render.paint(scene, 252).reshape(84, 3, 84, 3, 3).mean((1, 3))
        assert np.abs(small - large).mean() < 1.6
    assert render.render(scene, 85).shape == (85, 85, 3)


def test_looks_differ_to_the_eye():
    """Any two looks, and any two backgrounds, differ by several grey levels over a cell at 28 pixels."""
    gen = rng("look")
    empty = Scene((None,) * 9, "slate")
    for _ in range(200):
        a = edits.random_object(gen, "train", jitter=False)
        attribute = str(gen.choice(["size", "colour", "material", "shape"]))
        value = str(gen.choice([v for v in VALUES[attribute] if v != getattr(a, attribute)]))
        images = [render.paint(empty.put(4, o))[28:56, 28:56] for o in (a, edits.change(a, attribute, value), None)]
        assert np.sqrt(((images[0] - images[1]) ** 2).mean()) > 9, (a, attribute, value)
        assert np.sqrt(((images[0] - images[2]) ** 2).mean()) > 15, a
    flat = [render.background(b, 84) for b in BACKGROUNDS]
    assert min(np.abs(a - b).mean() for i, a in enumerate(flat) for b in flat[:i]) > 15


def test_targets_of_an_open_place_are_all_empty_cells():
    """Every acceptable result differs from the source in the concerned slots alone."""
    gen, open_places = rng("targets"), 0
    for _ in range(600):
        edit = edits.random_edit(gen, "train")
        for target in edit.targets:
            changed = {i for i in range(10) if target.scene.slots[i] != edit.source.slots[i]}
            assert changed == {s for group in target.slots for s in group}
        open_places += len(edit.targets) > 1
    assert 40 < open_places < 120


@pytest.mark.parametrize("kind", edits.KINDS[1:])
def test_no_error_is_secretly_right(kind):
    """A candidate with an error differs from every acceptable result, or is damaged."""
    gen = rng("wrong", kind)
    for task in edits.TASKS:
        edit = edits.random_edit(gen, "train", task)
        made = edits.candidate(gen, edit, kind, 0.9, "train")
        if made is not None:
            assert made.damages or all(made.scene.slots != t.scene.slots for t in edit.targets)


def test_instructions_vary_and_refer_to_one_object():
    """At least six templates a task; a phrase by attributes fits exactly one object."""
    assert all(len(t) >= 6 for t in language.TEMPLATES.values())
    gen = rng("refer")
    for _ in range(200):
        scene = random_scene(gen, "train")
        cell = scene.occupied[0]
        phrase, words = language.refer(gen, scene, cell)
        place, *said = words.split()
        assert place in ("any", CELLS[cell]) and len(said) == len(ATTRIBUTES)
        if place == "any":
            assert {w for w in said if w != "any"} == set(phrase.split()) & {v for vs in VALUES.values() for v in vs}
            fits = [all(w in ("any", v) for w, v in zip(said, scene.objects[i].look)) for i in scene.occupied]
            assert [i for i, f in zip(scene.occupied, fits) if f] == [cell]


def test_reasons_compare_close_by():
    """The grammar of the reasons: the request, what stands in each cell before and after, the sum."""
    a, b = Obj("big", "red", "striped", "circle"), Obj("small", "blue", "plain", "star")
    source = Scene((None, a, None, None, None, None, None, b, None), "sky")
    op = edits.Op("colour", 1, value="green")
    text, said = "make the striped object green", (language.words_of(material="striped"),)
    edit = edits.Edit("colour", source, (op,), text, said, edits.targets(source, (op,)))
    right = edits.change(a, "colour", "green")
    edited = dataclasses.replace(source.put(1, right).put(7, None), background="sand")
    assert language.sc_reasoning(edit, edited, (1.0,), 2, (25, 8)) == (
        "asked any any any striped any to any green any any . "
        "north big red striped circle north big red striped circle asked big green striped circle , "
        "big green striped circle same yes . south small blue striped star south small blue plain star , "
        "none gone extra 1 . background sky , sand changed extra 2 . "
        "done yes 25 . extra 2 8 ."
    )
    assert language.expect(edit) == (
        f"north {a} north {a} asked {right} . south small blue striped star south {b} . background sky ."
    )
    assert language.pq_reasoning({"blur": 0.6}) == "noise none . blur strong . blocks none . cast none ."
    scored = language.pq_reasoning({"blur": 0.6, "cast": 1.0}, lambda severity: 25 - 23 * severity)
    assert scored == "noise none 25 . blur strong 11 . blocks none 25 . cast severe 2 ."


SMALL_RING = Obj("small", "red", "dotted", "ring")


@pytest.mark.parametrize(
    "op, got, said",
    [
        (edits.Op("colour", 0, value="green"), Obj("big", "red", "striped", "circle"), "colour no"),
        (edits.Op("colour", 0, value="green"), Obj("big", "cyan", "striped", "circle"), "colour half"),
        (edits.Op("remove", 0), Obj("big", "red", "striped", "circle"), "new no"),
        (edits.Op("remove", 0), Obj("big", "red", "plain", "circle"), "new hardly"),
        (edits.Op("remove", 0), None, "same yes"),
        (edits.Op("replace", 0, obj=Obj("big", "red", "dotted", "star")), None, "gone no"),
        (
            edits.Op("replace", 0, obj=Obj("big", "red", "dotted", "star")),
            Obj("big", "red", "plain", "star"),
            "material mostly",
        ),
    ],
)
def test_what_came_of_a_change(op, got, said):
    """A slot that was to change: how it differs from what was wanted, and how far that is done."""
    source = Scene((Obj("big", "red", "striped", "circle"), *(None,) * 8), "sky")
    edit = edits.Edit(op.task, source, (op,), "", ("none",), ())
    clause = language.compare(source, source.put(0, got), edit, judge=True).split(" . ")[0]
    assert clause.endswith(f", {language.content(got)} {said}")


@pytest.mark.parametrize(("places", "place"), [((5,), "east"), (tuple(range(2, 9)), "")])
@pytest.mark.parametrize(
    ("there", "said"),
    [
        (Obj("big", "red", "striped", "circle"), "same yes"),
        (Obj("big", "red", "dotted", "circle"), "material no"),
        (Obj("small", "blue", "plain", "star"), "size colour material shape no"),
    ],
)
def test_only_what_was_moved_is_where_it_was_asked_for(places, place, there, said):
    """Another object at the asked place, named or open, is not the one that was to be moved."""
    source = Scene((Obj("big", "red", "striped", "circle"), there, *(None,) * 7), "sky")
    edit = edits.Edit("move", source, (edits.Op("move", 0, places=places, place=place),), "", ("none",), ())
    edited = source.put(0, None).put(5, there)
    assert f" . east none asked new , {there} {said} . " in language.compare(source, edited, edit, judge=True)


def test_reasons_agree_with_the_scores_of_moves():
    """The asked place of a move is right in the reason where what was moved stands there, else not; the move is made
    where both of its cells are right."""
    seen = collections.Counter()
    for i in range(600):
        gen = rng("moves", i)
        edit = edits.random_edit(gen, "train", "move")
        kind = ("wrong_object", "half", "correct", "untouched")[i % 4]
        made = edits.candidate(gen, edit, kind, gen.random(), "train")
        if made is None:
            continue
        text = language.compare(edit.source, made.scene, edit, judge=True)
        asked = [clause for clause in text.split(" . ") if " asked " in clause]
        right = [clause.endswith(" same yes") for clause in asked]
        moved = edit.source.objects[edit.ops[0].cell]
        there = [f" asked new , {moved} " in c for c in asked if " asked new " in c]
        assert there == [r for c, r in zip(asked, right) if " asked new " in c], text
        assert (len(asked) == 2 and all(right)) == (oracle.judge(made.scene, edit)[0] == (1.0,)), text
        seen[made.kind] += 1
        seen["another there"] += False in there and "asked new , none" not in text
    assert len(seen) == 5 and min(seen.values()) > 10


def test_what_was_asked_for_stands_where_it_belongs():
    """A place that is left open is the one where something new is; a named one is itself, filled or not."""
    a, b = Obj("big", "red", "striped", "circle"), Obj("small", "blue", "plain", "star")
    source = Scene((a, *(None,) * 8), "sky")
    things = lambda edited, op: {slot: w.thing for slot, w in language.wants(source, edited, (op,)).items()}
    open_add = edits.Op("add", obj=b, places=tuple(range(1, 9)))
    assert things(source, open_add) == {}
    assert things(source.put(4, a).put(6, b), open_add) == {6: b}
    assert things(source.put(4, a), open_add) == {4: b}
    assert things(source, edits.Op("move", 0, places=(5,), place="east")) == {0: None, 5: language.MOVED}
    assert things(source, edits.Op("background", value="sand")) == {9: "sand"}


def test_wrong_names_are_errors():
    """Unknown damages, kinds and backgrounds are named."""
    gen = rng("names")
    with pytest.raises(ValueError, match="smear"):
        render.damage(np.zeros((84, 84, 3)), "smear", 0.5, gen)
    with pytest.raises(ValueError, match="odd"):
        edits.candidate(gen, edits.random_edit(gen, "train"), "odd", 0.5, "train")
    with pytest.raises(ValueError, match="sea"):
        render.background("sea", 84)


def test_the_world_needs_no_jax():
    """Data workers import the world: it stays free of JAX."""
    code = (
        "import sys, edit_rl_jax.editworld.dataset, edit_rl_jax.editworld.preferences; sys.exit('jax' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
