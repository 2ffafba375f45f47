"""Pair accuracy counts what it should; a judge that knows the truth is right, one that fails is wrong."""

import dataclasses
import math

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.judges import pairs as P
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement
from edit_rl_jax.rewards.editscore.aggregate import judge, replies
from edit_rl_jax.rewards.editscore.parsing import Reply


@dataclasses.dataclass(frozen=True)
class Pair:
    better: EditRecord
    worse: EditRecord
    task: str
    kind: str


def record(key, sc, pq, level, scene):
    png = encode_png(np.full((28, 28, 3), level, np.uint8))
    meta = {"overall": (min(sc) * min(pq)) ** 0.5}
    source = encode_png(np.zeros((28, 28, 3), np.uint8))
    return EditRecord(key, source, png, f"do {scene}", "colour", sc, pq, group=str(scene), meta=meta)


PAIRS = [
    Pair(record("a", (25, 24), (25, 25), 10, 0), record("b", (5, 25), (25, 25), 90, 0), "colour", "half"),
    Pair(record("c", (25, 24), (24, 25), 20, 1), record("d", (25, 25), (8, 3), 30, 1), "move", "blur"),
    Pair(record("e", (20, 22), (20, 25), 50, 2), record("f", (9, 25), (22, 25), 40, 2), "move", "half"),
]


def said(sc, pq):
    return judge([Reply(tuple(map(float, sc)), "", "")], [Reply(tuple(map(float, pq)), "", "")])


def truth(r):
    return said(r.sc, r.pq)


def test_the_truth_is_always_right_and_its_reverse_never():
    right = P.accuracies(PAIRS, [(truth(p.better), truth(p.worse)) for p in PAIRS])
    assert [right[k].accuracy for k in ("overall", "sc", "pq")] == [1.0, 1.0, 1.0]
    assert [len(right[k].right) for k in ("overall", "sc", "pq")] == [3, 2, 1]  # by the gap in that dimension
    wrong = P.accuracies(PAIRS, [(truth(p.worse), truth(p.better)) for p in PAIRS])
    assert [wrong[k].accuracy for k in ("overall", "sc", "pq")] == [0.0, 0.0, 0.0]


def test_ties_and_invalid_replies_are_wrong_and_counted():
    same, none = said((10, 10), (10, 10)), Judgement(problem="no JSON object")
    out = P.accuracies(PAIRS, [(same, same), (truth(PAIRS[1].better), none), (truth(PAIRS[2].better), same)])["overall"]
    assert out.row() | {"ci95": 0} == {"accuracy": pytest.approx(1 / 3), "ci95": 0, "n": 3, "ties": 1, "invalid": 1}
    assert {k: v["accuracy"] for k, v in out.by(out.tasks).items()} == {"colour": 0.0, "move": 0.5}
    assert {k: v["n"] for k, v in out.by(out.kinds).items()} == {"blur": 1, "half": 2}


def test_more_passes_break_ties():
    """Two passes of each: the first ties everywhere, the mean of both is right in two of three pairs."""
    reply = lambda *s: Reply(tuple(map(float, s)), "", "")
    of = lambda *sc: judge([reply(s, s) for s in sc], [reply(25, 25)] * len(sc))
    judged = [(of(20, 25), of(20, 10)), (of(20, 20), of(20, 15)), (of(20, 5), of(20, 25))]
    first = lambda j, k: judge(*replies(j, k)) if j.valid else j
    table = P.by_passes(PAIRS, judged, 2, first)
    assert [(k, row["accuracy"], row["ties"]) for k, row in table.items()] == [
        ("Avg@1", 0.0, 3),
        ("Avg@2", pytest.approx(2 / 3), 0),
    ]
    assert table["Avg@2"]["gain"] == pytest.approx(2 / 3) and table["Avg@2"]["gain_ci95"][1] == 1.0
    none = Judgement(problem="no image")
    assert P.by_passes(PAIRS[:1], [(none, judged[0][1])], 2, first)["Avg@2"]["invalid"] == 1


def test_controls_change_what_they_say():
    r = PAIRS[0].better
    assert (decode_image(P.blanked(r).edited) == 128).all() and P.blanked(r).instruction == r.instruction
    other = P.shuffled_instructions(PAIRS)
    assert all(o != p.better.instruction for o, p in zip(other, PAIRS)) and set(other) <= {"do 0", "do 1", "do 2"}
    assert P.pixel_distance(PAIRS[0].better) == 10.0


def test_a_pair_without_an_order_is_an_error():
    with pytest.raises(ValueError, match="order"):
        P.compare(PAIRS[:1], [(1.0, 2.0)], [0.0])


def heads(following, quality, spread=0.5):
    dims = {"instruction_following": (following, spread), "visual_quality": (quality, spread)}
    return Judgement({k: Dimension(*v) for k, v in dims.items()}, Dimension((following + quality) / 2, spread))


@dataclasses.dataclass
class Heads(Judge):
    """Says the same of both edits where it is not shown the record's own instruction."""

    def dimensions(self):
        return "instruction_following", "visual_quality"

    def score(self, edits, *, only=None, progress=True):
        assert only in (None, ("instruction_following",))
        level = lambda e: float(decode_image(e.edited)[0, 0, 0]) / 100
        return [heads(-level(e), level(e)) for e in edits]


def test_dimensions_of_another_judge_are_measured_against_the_truth_they_stand_for():
    """Instruction following against SC, which tells the first and third pair apart, quality against PQ: the second."""
    figures, judged = P.evaluate(Heads(), PAIRS)
    # levels 10 < 90, 20 < 30, 50 > 40, of which following is the negative: right in the first, not in the third pair
    assert figures["instruction_following_n_pairs"] == 2 and figures["instruction_following_pair_accuracy"] == 0.5
    assert figures["visual_quality_n_pairs"] == 1 and figures["visual_quality_pair_accuracy"] == 0.0
    assert "sc_pair_accuracy" not in figures and "prompt_following_pair_accuracy" not in figures
    assert figures["pair_accuracy"] == 0.0 and figures["ties"] == 3  # the mean of both is 0
    assert "instruction shuffled (instruction_following)" in figures["controls"]
    assert figures["calibration"]["pairs"] == 3 and figures["calibration"]["gaussian"]["accuracy"] == 0.5
    assert figures["calibration_by_dimension"]["instruction_following"]["pairs"] == 2
    assert "instruction_following 0.500, visual_quality 0.000" in P.summary(figures)
    assert P.samples(PAIRS, judged)[0].truth["instruction_following"] in (5.0, 24.0, 25.0, 9.0, 20.0)


def test_spreads_of_passes_are_calibrated_too():
    """Two passes of each edit: the better one's overall 20 +- 2 against 15 +- 1 everywhere."""
    reply = lambda s: Reply((float(s), float(s)), "", "")
    of = lambda *scores: judge([reply(s) for s in scores], [reply(s) for s in scores])
    found = P.calibrations(PAIRS, [(of(18, 22), of(14, 16))] * 3, ("sc", "pq"))
    assert list(found) == ["overall", "sc", "pq"] and [f["pairs"] for f in found.values()] == [3, 2, 1]
    z = 5 / math.sqrt(2**2 + 1**2)
    assert found["overall"]["gaussian"]["mean_confidence"] == pytest.approx((1 + math.erf(z / math.sqrt(2))) / 2)
    assert P.calibrations(PAIRS, [(of(18), of(14))] * 3, ("sc", "pq")) == {}  # one pass has no spread


def test_the_figures_of_editscore_keep_their_names():
    figures, _ = P.evaluate(Truth(), PAIRS, controls=False)
    names = ("sc", "pq")
    kept = [f"{n}_{k}" for n in names for k in ("pair_accuracy", "pair_accuracy_ci95", "n_pairs")]
    first = ["pair_accuracy", "pair_accuracy_ci95", "n_pairs"]
    assert list(figures) == [*first, *kept, "ties", "invalid_pairs", "invalid_answers", "by_task", "by_kind"]
    assert figures["sc_pair_accuracy"] == figures["pq_pair_accuracy"] == 1.0


@dataclasses.dataclass
class Truth(Judge):
    """Knows the records' scores, by their pictures."""

    def dimensions(self):
        return tuple(d for members in P.GROUPS.values() for d in members)

    def score(self, edits, *, only=None, progress=True):
        known = {r.edited: truth(r) for p in PAIRS for r in (p.better, p.worse)}
        return [known[e.edited] for e in edits]
