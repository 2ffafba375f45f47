"""EditWorld for a verifier: principles say what a right edit shows, and the oracle's verdicts follow the pixels."""

import numpy as np
import pytest

from edit_rl_jax.data import principles
from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.edits import TASKS, candidate, random_edit
from edit_rl_jax.editworld.preferences import Preferences
from edit_rl_jax.editworld.scene import CELLS, rng
from edit_rl_jax.editworld.verifier import VerifierRecords, principles_of, verdicts_of


def made(task: str, kind: str, severity: float = 0.9, tries: int = 40):
    """(edit, verdicts by question) of candidates of one kind."""
    for i in range(tries):
        gen = rng("verifier test", task, kind, i)
        edit = random_edit(gen, "train", task)
        found = candidate(gen, edit, kind, severity, "train")
        if found is not None:
            verdict = oracle.score(found.render(), edit)
            yield edit, dict(zip(principles_of(edit), verdicts_of(edit, verdict), strict=True))


def answers(verdicts: dict, category: str) -> list[int]:
    return [v for p, v in verdicts.items() if p.category == category]


@pytest.mark.parametrize("task", TASKS)
def test_a_right_edit_fulfils_every_principle(task):
    for edit, verdicts in made(task, "correct", tries=8):
        principles.check("here", verdicts)  # well formed, no question twice
        assert set(verdicts.values()) == {1}, edit.instruction
        assert len(answers(verdicts, "Follow")) == len(edit.ops)


@pytest.mark.parametrize(
    "kind, follow, keep, quality",
    [
        ("untouched", {0}, {1}, {1}),
        ("half", {0}, None, {1}),
        ("over_edited", {1}, {0}, {1}),
        ("noise", {1}, {1}, {0}),
        ("cast", {1}, {1}, {0}),
    ],
)
def test_each_error_fails_its_own_principles(kind, follow, keep, quality):
    for task in ("colour", "add"):
        for edit, verdicts in made(task, kind, tries=8):
            assert set(answers(verdicts, "Follow")) == follow, edit.instruction
            assert keep is None or min(answers(verdicts, "Keep")) == min(keep), edit.instruction
            assert min(answers(verdicts, "Quality")) == min(quality), edit.instruction


def test_a_changed_background_is_kept_or_asked_for():
    for edit, verdicts in made("background", "untouched", tries=4):
        (asked,) = (p for p in verdicts if p.category == "Follow")
        assert asked.question == f"background {edit.ops[0].value}" and verdicts[asked] == 0
        assert [p.question for p in verdicts if p.category == "Keep"] == ["extra none"]


def test_questions_name_the_place_and_what_is_there():
    for edit, verdicts in made("remove", "correct", tries=3):
        assert next(iter(verdicts)).question == f"{CELLS[edit.ops[0].cell]} none"
    for edit, verdicts in made("move", "correct", tries=3):
        op = edit.ops[0]
        assert (
            next(iter(verdicts)).question == f"{CELLS[op.cell]} to {op.place or 'any'} {edit.source.objects[op.cell]}"
        )


def test_records():
    source = VerifierRecords("train", 12, seed=3)
    records = [source[i] for i in range(12)]
    assert [VerifierRecords("train", 10**9, seed=3)[i] for i in (5, 2)] == [records[5], records[2]]
    for record in records:
        assert principles.check_verifier(record) is record and record.meta["reasoning"]
        assert record.score == pytest.approx(record.meta["overall"] * 0.4, abs=0.051)
        assert (record.score == 0) <= (0 in record.verdicts)
    assert np.std([r.score for r in records]) > 1


def test_preferences_have_principles_and_verdicts():
    record = Preferences("train", 4, seed=1)[0]
    asked = principles.from_json(record.key, record.meta["principles"])
    assert [len(v) for v in record.meta["verdicts"]] == [len(asked)] * 2
    assert record.meta["verdicts"][0] != record.meta["verdicts"][1] or record.prefers == 0
