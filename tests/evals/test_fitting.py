"""A verifier's reward fitted to pairs: the weights that made them, gold by hand, and what cannot be fitted."""

import dataclasses
import json

import numpy as np
import pytest

from edit_rl_jax.data.records import EditRecord, PreferenceRecord, Principle, RecordError, group_id
from edit_rl_jax.evals.judges import fitting
from edit_rl_jax.rewards.base import Judgement
from edit_rl_jax.rewards.edit_rrm.aggregate import DIMENSIONS, Pass, judge
from edit_rl_jax.rewards.edit_rrm.options import Options
from edit_rl_jax.rewards.edit_rrm.replies import parse, reward, write

FOUR = tuple(Principle(f"q{i}", c) for i, c in enumerate(("Follow", "Follow", "Keep", "Quality")))


def judged(verdicts, score, weights=None):
    reply = parse(write("looked", FOUR, verdicts, score), FOUR)
    return judge([Pass(reply, None, reply.problem)], FOUR, *(("categories", weights) if weights else ()))


def figures(pairs, groups):
    """Of pairs of judgements."""
    known = np.array([[name in a.dimensions for name in DIMENSIONS] for a, _ in pairs])
    return fitting.figures(np.array([fitting.difference(*p) for p in pairs]), known, groups)


def drawn(count, weights, seed=0, groups=40):
    """Pairs of random judgements, the better drawn by the logistic model with these weights."""
    rng, pairs, names = np.random.default_rng(seed), [], []
    while len(pairs) < count:
        one, other = (judged(rng.integers(0, 2, 4).tolist(), int(rng.integers(0, 11))) for _ in range(2))
        margin = float(fitting.difference(one, other)[fitting.WEIGHED] @ weights)
        pairs.append((one, other) if rng.random() < 1 / (1 + np.exp(-margin)) else (other, one))
        names.append(f"g{len(pairs) % groups}")
    return pairs, names


def test_the_weights_that_made_the_pairs_are_found():
    true = np.array([2.0, 4.0, 0.0, 1.0])  # score, follow, keep, quality
    pairs, groups = drawn(4000, true)
    found = figures(pairs, groups)
    assert list(found["weights"]) == ["score", "follow", "keep", "quality"]
    assert list(found["weights"].values()) == pytest.approx((true / true.sum()).tolist(), abs=0.04)
    assert found["slope"] == pytest.approx(7, rel=0.15) and found["n_pairs"] == 4000 and not found["invalid_pairs"]
    table = found["pairs"]
    assert table["fit"]["gain_ci95"][0] > 0 and table["fit"]["accuracy"] < 0.95 and table["fit"]["ties"] < 200
    assert table["fit"]["accuracy"] - table["score"]["accuracy"] == pytest.approx(table["fit"]["gain"])
    assert table["score"]["ties"] > 300 and "gain" not in table["score"]


def test_the_fit_is_the_maximum_of_likelihood_and_prior():
    rng = np.random.default_rng(1)
    x = rng.normal(size=(200, 4)) + [0.5, 0.2, -0.3, 0.0]
    w = fitting.fit(x, prior=2.0)
    slope = (1 / (1 + np.exp(x @ w))) @ x - w / 4  # of the log-likelihood, and of the prior
    assert np.abs(slope[w > 0]).max() < 1e-3 and (slope[w == 0] <= 0).all() and (w >= 0).all()
    assert w[2] == 0 and w[0] > w[1] > 0  # keep speaks against the better one: it may weigh nothing, not less
    many = rng.normal(size=(5000, 4)) * [1, 1, 1, 0] + [0.3, 0.1, 0.2, 0]
    assert fitting.fit(many)[3] == 0 < fitting.fit(many)[:3].min()  # of a figure that no pair has
    assert not fitting.fit(many[:0]).any()
    apart = fitting.fit(np.abs(x))  # pairs that one figure alone would order: the prior bounds it
    assert np.isfinite(apart).all() and apart.max() < 100


def test_pairs_of_a_fold_are_judged_by_the_others():
    """Each source's pairs are ordered by a figure of their own: on other sources that figure says nothing."""
    rng, pairs, groups = np.random.default_rng(0), [], []
    for name, verdicts in (("a", (1, 1, 0, 0)), ("b", (0, 0, 1, 0)), ("c", (0, 0, 0, 1))):
        for _ in range(30):
            score = int(rng.integers(0, 11))
            pairs.append((judged(verdicts, score), judged((0, 0, 0, 0), score)))
            groups.append(name)
    found = figures(pairs, groups)
    assert all(found["weights"][c] > 0.2 for c in ("follow", "keep", "quality"))
    assert found["pairs"]["fit"]["accuracy"] == 0 and found["pairs"]["fit"]["ties"] == 90  # 1 if it saw them
    assert found["pairs"]["verdicts"]["accuracy"] == 1


def test_what_cannot_be_read_is_wrong_and_teaches_nothing():
    pairs, groups = drawn(300, np.array([0.0, 3.0, 3.0, 0.0]))
    clean = figures(pairs, groups)
    bad = Judgement(problem="no verdict")
    found = figures([*pairs, (bad, pairs[0][1]), (pairs[0][0], bad)], [*groups, "x", "y"])
    assert found["invalid_pairs"] == 2 and list(found["weights"].values()) == pytest.approx(
        list(clean["weights"].values()), abs=1e-3
    )
    alone = figures([*pairs[:9], *[(bad, bad)] * 9], [*"abc" * 3, *"x" * 9])
    assert alone["invalid_pairs"] == 9 and alone["pairs"]["fit"]["accuracy"] <= 0.5
    wanted = {k: row["accuracy"] * 300 / 302 for k, row in clean["pairs"].items() if k != "fit"}  # folds are dealt anew
    assert {k: row["accuracy"] for k, row in found["pairs"].items() if k != "fit"} == pytest.approx(wanted)


def test_what_cannot_be_fitted_is_refused():
    same = judged((1, 1, 1, 1), 7)
    with pytest.raises(ValueError, match="nothing to weigh"):
        figures([(same, same)] * 8, list("aabbccdd"))
    with pytest.raises(ValueError, match="8 valid pairs of 1 groups"):
        figures([(same, same)] * 8, ["a"] * 8)
    bad = Judgement(problem="cut short")
    with pytest.raises(ValueError, match="8 valid pairs of 1 groups"):
        figures([*[(same, same)] * 8, (bad, bad)], [*"aaaaaaaab"])


def test_pairs_without_a_figure_that_weighs_are_counted():
    """With weights on Keep alone an edit whose principles are all of Follow has no reward."""
    follow = FOUR[:1]
    one = lambda v: judge([Pass(*(lambda r: (r, None, r.problem))(parse(write("x", follow, (v,), 5), follow)))], follow)
    pairs = [(judged((1, 0, 1, 0), 5), judged((1, 0, 0, 0), 5))] * 8 + [(one(1), one(1))] * 3
    found = figures(pairs, [*"aabbccdd", *"efg"])
    assert found["weights"] == {"score": 0, "follow": 0, "keep": 1, "quality": 0} and found["unweighed_pairs"] == 3
    assert found["n_pairs"] == 11 and not found["invalid_pairs"]
    said = fitting.summary(found | {"flags": ""})
    assert "3 without a figure that weighs" in said
    weights = Options(weight_follow=0, weight_keep=1, weight_quality=0).weights
    reply = parse(write("x", follow, (1,), 5), follow)
    assert not judge([Pass(reply, None, reply.problem)], follow, "categories", weights).valid


class Verifier:
    """Tells what the edited image's bytes name."""

    def __init__(self):
        self.asked = []

    def dimensions(self):
        return ("score", "verdicts", "follow", "keep", "quality")

    def settings(self):
        return {}

    def score(self, edits, *, only=None, progress=True):
        self.asked.append(len(edits))
        return [judged([int(c) for c in e.edited.decode()], 5) for e in edits]


def test_pairs_of_a_dataset_become_flags_that_make_the_reward(tmp_path, monkeypatch):
    about = dict(source=b"s", instruction="x", meta={"principles": [{"question": "q", "category": "Keep"}]})
    record = lambda i, a, b, prefers, **meta: PreferenceRecord(
        f"k{i}", edited=(a, b), prefers=prefers, group=f"g{i % 7}", **about | ({"meta": meta} if meta else {})
    )
    records = [record(i, b"1010", b"1000", 1) if i % 2 else record(i, b"0001", b"0011", -1) for i in range(20)]
    pairs = list(fitting.preferred([*records, record(20, b"1111", b"0000", 0), record(21, b"1", b"0", 1, tie=True)]))
    assert len(pairs) == 20 and [p[0].edited for p in pairs[:2]] == [b"0011", b"1010"] and pairs[8][2] == "g1"
    assert pairs[0][0].extras == {"principles": about["meta"]["principles"]}
    with pytest.raises(RecordError, match="PreferenceRecord wanted"):
        list(fitting.preferred([EditRecord("k", b"s", b"e", "x")]))
    monkeypatch.setattr(fitting, "CHUNK", 8)
    verifier = Verifier()
    found = fitting.run(verifier, iter(pairs), tmp_path, {"data": "here"})
    assert verifier.asked == [16, 16, 8] and json.loads((tmp_path / "fit.json").read_text()) == found
    assert found["weights"] == {"score": 0, "follow": 0, "keep": 1, "quality": 0} and found["data"] == "here"
    assert found["flags"] == (
        "--reward categories --weight-score 0 --weight-follow 0 --weight-keep 1 --weight-quality 0"
    )
    assert found["pairs"]["fit"]["gain"] == 1 and "20 pairs, 0 not valid" in fitting.summary(found)
    one = type("Other", (Verifier,), {"dimensions": lambda self: ("overall",)})()
    with pytest.raises(ValueError, match="this judge has no score, verdicts, follow, keep, quality"):
        fitting.run(one, pairs, tmp_path, {})
    broken = type("Broken", (Verifier,), {"score": lambda self, edits: [Judgement(problem="cut short")] * len(edits)})()
    with pytest.raises(ValueError, match="none of 20 pairs is valid, the first: cut short"):
        fitting.run(broken, pairs, tmp_path, {})
    own = next(fitting.preferred([dataclasses.replace(records[1], group="")]))
    assert own[2] == group_id(b"s", "x")  # pairs of one source and instruction stay together


def test_the_score_has_its_share_where_it_has_a_weight():
    weights = Options(weight_score=2.0, weight_follow=1.0, weight_keep=1.0, weight_quality=0.0).weights
    assert judged((1, 0, 1, 1), 8, weights).overall.value == pytest.approx((2 * 0.8 + 0.5 + 1) / 4)
    reply = parse(write("looked", FOUR, (1, 0, 1, 1), 8), FOUR)
    assert reward(reply, FOUR, "categories", weights) == pytest.approx((2 * 0.8 + 0.5 + 1) / 4)
    assert "score" not in Options().weights and judged((1, 0, 1, 1), 8, Options().weights).overall.value == (
        pytest.approx(0.5 * 0.5 + 0.3 + 0.2)
    )
