"""Pair accuracy counts what it should; a judge that knows the truth is right, one that fails is wrong."""

import dataclasses

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.judges import pairs as P
from edit_rl_jax.rewards.base import Judgement
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
