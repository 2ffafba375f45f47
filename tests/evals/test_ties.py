"""Thresholds of ties and the figures of pairs, against tables worked by hand."""

import math

import numpy as np
import pytest

from edit_rl_jax.evals.judges import ties as T
from edit_rl_jax.evals.judges.cases import Cases, Item, Prediction

# label, score of the first minus that of the second
PAIRS = [(1, 3.0), (1, -1.0), (-1, -2.0), (0, 0.5), (0, 0.0), (0, 2.5), (1, 0.0), (-1, 0.5)]
LABELS, DIFFERENCES = (np.array(c, np.float64) for c in zip(*PAIRS))


def cases(rows, groups=None):
    """Cases of (label, difference or verdict or None)."""
    items = [Item(str(i), str(i if groups is None else groups[i]), label) for i, (label, _) in enumerate(rows)]
    made = {
        str: lambda v: Prediction(verdict=v),
        float: lambda v: Prediction((v, 0.0)),
        type(None): lambda v: Prediction(),
    }
    return Cases.of(items, [made[type(v)](v) for _, v in rows])


def test_the_threshold_that_makes_most_right():
    """By |difference|: 0 (tie, 1), 0.5 (tie, -1), 1, 2, 2.5 (tie), 3. Right without ties: 3.0 and -2.0, so at 0:
    2 + 1; at 0.5: 2 + 2; at 1: the same; at 2: -2.0 is lost, 3; at 2.5: 4 again; at 3: 3."""
    assert T.best_threshold(LABELS, DIFFERENCES) == 0.5
    assert T.best_threshold(np.array([1.0, 0.0]), np.array([1.0, 2.0])) == 0.0  # no threshold is better than none
    assert T.best_threshold(np.array([0.0, 0.0]), np.array([1.0, -2.0])) == 2.0
    assert T.best_threshold(np.empty(0), np.empty(0)) == 0.0
    # of equal differences all are ties or none: two of three would be right, one is
    assert T.best_threshold(np.array([1.0, 1.0, 0.0]), np.array([1.0, 1.0, 1.0])) == 0.0


def test_against_a_plain_count_over_all_thresholds():
    rng = np.random.default_rng(0)
    for _ in range(30):
        labels, differences = rng.integers(-1, 2, 25).astype(float), rng.integers(-4, 5, 25) / 2
        right = lambda e, labels=labels, differences=differences: np.sum(
            np.where(np.abs(differences) <= e, 0, np.sign(differences)) == labels
        )
        candidates = sorted({0.0, *np.abs(differences)})
        assert T.best_threshold(labels, differences) == max(candidates, key=right)


def test_upstreams_sweep_divides_equal_differences_and_always_has_a_tie():
    """Two of three equal differences are called ties in the first state that it tries: (tie, then 1, 1)."""
    assert T.swept(np.array([0.0, 1.0, 1.0]), np.ones(3)) == 1.0
    whole = T.with_ties(cases([(0, 1.0), (1, 1.0), (1, 1.0)]), 0.0).accuracy
    assert whole == pytest.approx(2 / 3)
    assert T.swept(np.array([1.0]), np.array([5.0])) == 0.0  # the only pair must be a tie
    assert T.swept(np.empty(0), np.empty(0)) is None


def sweep_as_published(h, m):
    """The states that the released code goes through, one pair after another, counted anew each time."""
    pairs = sorted(zip(h, m), key=lambda x: abs(x[1]))
    states = []
    for k in range(1, len(pairs) + 1):
        ties, rest = pairs[:k], pairs[k:]
        states.append((sum(a == 0 for a, _ in ties) + sum(a * b > 0 for a, b in rest)) / len(pairs))
    return max(states)


def test_upstreams_sweep_on_random_tables():
    rng = np.random.default_rng(1)
    for _ in range(30):
        h, m = rng.integers(-1, 2, 20).astype(float), rng.integers(-3, 4, 20).astype(float)
        assert T.swept(h, m) == pytest.approx(sweep_as_published(h, m))


def test_the_figures_of_pairs():
    found = T.pair_figures(cases(PAIRS), T.Ties(0.5))
    assert found["accuracy_with_ties"] == 4 / 8  # 3.0, -2.0 and the ties of 0.5 and 0
    assert found["accuracy_without_ties"] == 2 / 5  # of 3.0, -1.0, -2.0, 0.0, 0.5: the first and the third
    assert found["counts"] == {
        "concordant": 2,
        "discordant": 1,
        "tie_of_the_judge_only": 2,
        "tie_of_people_only": 1,
        "tie_of_both": 2,
    }
    assert (found["n"], found["n_without_ties"], found["n_invalid"]) == (8, 5, 0)
    assert (found["tie_threshold"], found["tie_threshold_from"]) == (0.5, "given")
    low, high = found["accuracy_with_ties_ci95"]
    assert 0 < low < 0.5 < high < 1


def test_what_has_no_prediction_or_label_stays_and_is_wrong():
    rows = [(1, 1.0), (1, None), (None, 1.0), (0, None), (0, 0.0)]
    found = T.pair_figures(cases(rows), T.Ties(0.0))
    assert found["accuracy_with_ties"] == 2 / 5 and found["n_invalid"] == 3
    assert found["accuracy_without_ties"] == 1 / 3 and found["n_without_ties"] == 3  # what is unknown is no tie


def test_verdicts_need_no_threshold():
    rows = [(1, "A>B"), (1, "A=B"), (0, "A=B=Bad"), (-1, "[[B>>A]]"), (0, "B>A"), (1, "nonsense")]
    found = T.pair_figures(cases(rows), T.Ties())
    assert found["accuracy_with_ties"] == 3 / 6 and found["accuracy_without_ties"] == 2 / 4
    assert found["tie_threshold"] is None and found["n_invalid"] == 1


def test_held_out_thresholds_do_not_see_what_they_judge():
    """Ten groups of one pair: a tie of difference i + 1. Any threshold from other folds leaves the greatest difference
    out; chosen on all of them, everything is a tie."""
    table = cases([(0, float(i + 1)) for i in range(10)])
    oracle = T.pair_figures(table, T.Ties("oracle"))
    assert oracle["accuracy_with_ties"] == 1.0 and oracle["tie_threshold"] == 10.0
    assert oracle["tie_threshold_from"].startswith("oracle: chosen on the very pairs")
    held = T.pair_figures(table, T.Ties())
    folds = T.folds_of(table.groups, 0)
    last = folds == folds[9]  # the fold of the greatest: judged with the greatest of the others
    limit = max(i + 1 for i in range(10) if not last[i])
    expected = sum(1.0 if not last[i] else float(i + 1 <= limit) for i in range(10)) / 10
    assert held["accuracy_with_ties"] == expected < 1.0
    assert held["tie_threshold_from"].startswith("held-out: cross-fitting over groups, 5 folds, seed 0")
    assert held["tie_threshold_folds"].count(10.0) == 4 and held["tie_threshold"] == 10.0 and held["n"] == 10


def test_folds_are_whole_groups_whatever_the_order():
    groups = [f"g{i // 3}" for i in range(36)]
    folds = T.folds_of(groups, 3)
    assert all(len(set(folds[i : i + 3])) == 1 for i in range(0, 36, 3)) and set(folds) == set(range(5))
    back = T.folds_of(groups[::-1], 3)[::-1]
    assert (folds == back).all() and (T.folds_of(groups, 4) != folds).any()


def test_one_group_leaves_nothing_to_hold_out():
    found = T.threshold(cases([(0, 1.0), (1, 2.0)], groups="aa"), T.Ties())
    assert found.about == {
        "tie_threshold": 0.0,
        "tie_threshold_from": "not chosen: a single group leaves nothing to hold out",
    }


def test_strict_accuracy_goes_by_order_alone_but_for_ties():
    table = cases([(0, 0.5), (0, 0.7), (1, 0.1), (-1, 0.1), (1, 0.0), (1, None)])
    assert T.by_order(table, 0.5).tolist() == [True, False, True, False, False, False]


def test_order_has_no_number_where_there_is_none():
    said = T.order(cases([(1, 2.0), (1, 0.2), (1, None), (1, "B>A")]), 0.5)
    assert said[0] == 1 and said[1] == 0 and math.isnan(said[2]) and said[3] == -1
