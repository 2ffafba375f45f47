"""Verdicts beside gold ones: hand-worked figures, and the benchmark of the built-in world."""

import json

import numpy as np
import pytest

from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.editworld import dataset
from edit_rl_jax.evals.judges import editworld, verdicts
from edit_rl_jax.rewards.base import Dimension, Judgement

ASKED = [("circle blue", "Follow"), ("square same", "Keep"), ("noise none", "Quality")]


def record(name: str, *gold: int) -> EditRecord:
    asked = [{"question": q, "category": c} for q, c in ASKED]
    return EditRecord(name, b"s", b"e", "i", group=name, meta={"principles": asked, "verdicts": list(gold)})


def judgement(*said: float | None, problem: str = "") -> Judgement:
    given = [{"question": q, "category": c, "verdict": v} for (q, c), v in zip(ASKED, said)]
    return Judgement({}, None if problem else Dimension(1.0), problem=problem, details={"principles": given[::-1]})


def test_hand_worked():
    records = [record("a", 1, 1, 0), record("b", 1, 0, 0), record("c", 0, 1, 1), record("d", 1, 1, 1)]
    judged = [judgement(1, 1, 0), judgement(0, 1, None), judgement(0, 0.5, 1), judgement(1, 1, 1, problem="cut")]
    found = verdicts.figures(records, judged)
    # right: 3 of a, 0 of b, 2 of c, 0 of d
    assert (found["n"], found["accuracy"], found["majority"]) == (12, pytest.approx(5 / 12), pytest.approx(8 / 12))
    assert (found["false_yes"], found["false_no"], found["undecided"], found["missing"]) == (1, 1, 1, 4)
    assert found["balanced_accuracy"] == pytest.approx((3 / 8 + 2 / 4) / 2)
    low, high = found["accuracy_ci95"]
    assert 0 <= low < found["accuracy"] < high <= 1
    by = {c: (row["n"], row["accuracy"]) for c, row in found["by_category"].items()}
    assert by == {"Follow": (4, 0.5), "Keep": (4, 0.25), "Quality": (4, 0.5)}
    assert ["calibration" in row for row in found["by_category"].values()] == [False, True, False]


def test_calibration():
    p, gold = np.array([0.1, 0.1, 0.9, 0.9, 1.0]), np.array([0, 1, 1, 1, 0])
    found = verdicts.calibration(p, gold, list("abcde"))
    # bin 0.1: 0.5 yes beside 0.1; bin 0.9 to 1: 2 of 3 beside 2.8 / 3
    assert found["expected_calibration_error"] == pytest.approx((2 * 0.4 + abs(2 - 2.8)) / 5)
    assert found["brier"] == pytest.approx((0.01 + 0.81 + 0.01 + 0.01 + 1) / 5)
    assert (found["mean_probability"], found["yes"]) == (pytest.approx(0.6), 0.6)
    rows = [(r["from"], r["n"], r["yes"]) for r in found["reliability"]]
    assert rows == [(0.1, 2, 0.5), (0.9, 3, pytest.approx(2 / 3))]


def test_none_without_verdicts_or_gold():
    assert verdicts.figures([record("a", 1, 1, 0)], [judgement(None, None, None)]) is None
    assert verdicts.figures([record("a", 1, 1, 0)], [Judgement({}, Dimension(1.0))]) is None
    assert verdicts.figures([EditRecord("a", b"s", b"e", "i")], [judgement(1, 1, 1)]) is None
    with pytest.raises(ValueError, match="shorter"):
        verdicts.figures([record("a", 1, 1, 0)], [])


class Knows:
    """A judge that gives the right verdicts of the records that it has, but never sees a fault of quality."""

    def __init__(self, records):
        self.known = {r.edited: r.meta for r in records}

    def score(self, edits, *, only=None, progress=True):
        return [self._judge(self.known[e.edited]) for e in edits]

    def _judge(self, meta):
        said = zip(meta["principles"], meta["verdicts"])
        asked = [p | {"verdict": 1 if p["category"] == "Quality" else v} for p, v in said]
        return Judgement({}, Dimension(meta["overall"], None, 25.0), details={"principles": asked})

    def dimensions(self):
        return ()

    def settings(self):
        return {}


def test_the_benchmark_tells_them(tmp_path, monkeypatch, few_draws):
    """On a few pairs instead of the strata, whose search takes most of a minute."""
    data = dataset.EditRecords("test", 40, 0, 36, group=2)
    records = [data[i] for i in range(40)]
    order = [sorted(records[i : i + 2], key=lambda r: -r.meta["overall"]) for i in range(0, 40, 2)]
    pairs = [dataset.Pair(a, b, a.task, b.meta["kind"], 0) for a, b in order if a.meta["overall"] > b.meta["overall"]]
    records = [r for p in pairs for r in (p.better, p.worse)]
    monkeypatch.setattr(dataset, "pairs", lambda split, n, seed, resolution: pairs)
    editworld.run(Knows(records), tmp_path, controls=False)
    found = json.loads((tmp_path / "eval.json").read_text())
    by = found["verdicts"]["by_category"]
    assert found["pair_accuracy"] == by["Follow"]["accuracy"] == by["Keep"]["accuracy"] == 1
    quality = [
        v for r in records for p, v in zip(r.meta["principles"], r.meta["verdicts"]) if p["category"] == "Quality"
    ]
    assert len(pairs) > 10
    assert by["Quality"]["accuracy"] == pytest.approx(np.mean(quality)) and np.mean(quality) < 1
    assert found["verdicts"]["false_yes"] == by["Quality"]["false_yes"] > 0 == found["verdicts"]["false_no"]
