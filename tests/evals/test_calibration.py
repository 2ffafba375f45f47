"""Calibration of spreads: closed forms, small tables by hand, and judges whose spreads do or do not tell."""

import inspect
import math

import numpy as np
import pytest
from scipy.stats import norm

from edit_rl_jax.evals import statistics
from edit_rl_jax.evals.judges import calibration as C
from edit_rl_jax.evals.statistics import bootstrap, spearman


@pytest.fixture(autouse=True)
def few_draws(monkeypatch):
    """Intervals of fewer draws than 1,000."""
    monkeypatch.setattr(C, "DRAWS", 50)
    monkeypatch.setitem(inspect.unwrap(statistics.bootstrap).__kwdefaults__, "draws", 400)


def test_probabilities_in_both_readings():
    mean, spread = (
        np.array([0.0, 0.0, 1.0, 1.0, -1.0, 2.0, -2.0, 1.0]),
        np.array([0.5, 2**0.5, 0.5] + [2**0.5] * 3 + [3, 3]),
    )
    paper = [0.693147, 0.693147, 0.327698, 0.392959, 1.124105, 0.203267, 1.263808, 0.488987]  # -log E[sigmoid]
    assert -np.log(C.logistic_normal(mean, spread)) == pytest.approx(paper, abs=1e-5)
    assert C.gaussian(mean, spread) == pytest.approx(norm.cdf(mean / spread))
    none = np.zeros(3)
    assert C.gaussian(np.array([2.0, -2.0, 0.0]), none).tolist() == [1.0, 0.0, 0.5]
    assert C.logistic_normal(np.array([2.0]), none[:1]) == pytest.approx(1 / (1 + math.exp(-2)))
    assert np.isfinite(C.logistic_normal(np.array([-90.0, 0.0]), np.array([40.0, 1e3]))).all()


def test_expected_calibration_error_by_hand():
    """Bins of 0.05 from 0.5: two pairs at 0.52 of which one is right, |1/2 - 0.52| * 2/5; three at 0.98, two right."""
    confidence, right = np.array([0.52, 0.52, 0.98, 0.98, 0.98]), np.array([1.0, 0.0, 1.0, 1.0, 0.0])
    wanted = 2 / 5 * 0.02 + 3 / 5 * (0.98 - 2 / 3)
    assert C.calibration_error(confidence, right) == pytest.approx(wanted)
    assert C.bins(np.array([0.5, 0.549, 0.55, 1.0])).tolist() == [0, 0, 1, 9]
    rows = C.reliability(confidence, right, list("abcde"))
    assert [(r["from"], r["n"], r["confidence"]) for r in rows] == [(0.5, 2, 0.52), (0.95, 3, pytest.approx(0.98))]
    assert [r["accuracy"] for r in rows] == pytest.approx([1 / 2, 2 / 3])


def test_kept_pairs_by_hand():
    """Ten pairs, the less certain ones wrong: of the first 60% all are right, of all 6 in 10."""
    certain, right = np.arange(10, 0, -1).astype(float), np.array([1.0] * 6 + [0.0] * 4)
    rows = C.kept({"probability": certain, "spread": -certain}, right, list(range(10)))
    assert [r["n"] for r in rows] == list(range(1, 11))
    assert [r["probability"] for r in rows] == pytest.approx([1] * 6 + [6 / 7, 6 / 8, 6 / 9, 6 / 10])
    assert [r["spread"] for r in rows] == pytest.approx([0] * 4 + [1 / 5, 2 / 6, 3 / 7, 4 / 8, 5 / 9, 6 / 10])
    assert rows[0]["pairs kept (%)"] == 10 and rows[0]["probability_ci95"] == [1.0, 1.0]


def drawn(n=1500, seed=0):
    """Pairs of a judge whose means are off by its spread, and which of both is truly better."""
    rng = np.random.default_rng(seed)
    spreads = rng.uniform(0.3, 2.0, (n, 2))
    scores = rng.normal(0, 1.5, (n, 2))
    truth = scores + spreads * rng.normal(size=(n, 2))
    return np.sign(truth[:, 0] - truth[:, 1]), scores, spreads, list(range(n))


def test_a_judge_whose_spread_is_its_error_is_calibrated():
    found = C.calibration(*drawn())
    assert found["pairs"] == 1500
    assert found["gaussian"]["expected_calibration_error"] < 0.025
    assert found["logistic_normal"]["expected_calibration_error"] > 0.03  # it has a logistic error besides
    low, high = found["gaussian"]["expected_calibration_error_ci95"]
    assert 0 < low < high < 0.05
    by = [row["accuracy"] for row in found["by_spread"].values()]
    assert by == sorted(by, reverse=True) and by[0] - by[3] > 0.1
    assert found["spread_and_error_spearman"] > 0.1 and found["spread_and_error_spearman_ci95"][0] > 0.05
    kept = {row["pairs kept (%)"]: row for row in found["kept"]}
    assert kept[20]["probability"] > 0.97 and kept[100]["probability"] == found["gaussian"]["accuracy"]
    assert kept[20]["probability"] > kept[20]["difference"] > kept[20]["spread"] > kept[100]["spread"]


def test_spreads_that_are_too_small_are_seen_and_scaling_all_changes_nothing_in_the_gaussian():
    labels, scores, spreads, groups = drawn(400)
    honest, bold = C.calibration(labels, scores, spreads, groups), C.calibration(labels, scores, spreads / 5, groups)
    assert bold["gaussian"]["expected_calibration_error"] > honest["gaussian"]["expected_calibration_error"] + 0.1
    scaled = C.calibration(labels, 10 * scores, 10 * spreads, groups)
    pick = lambda found: {k: v for k, v in found["gaussian"].items() if not k.endswith("ci95")}
    assert pick(scaled) == pytest.approx(pick(honest))  # pairs do not fix the scale
    assert scaled["logistic_normal"]["brier"] != pytest.approx(honest["logistic_normal"]["brier"], abs=1e-3)


def test_what_is_left_out_is_counted():
    nan = math.nan
    labels = np.array([1.0, -1.0, 0.0, nan, 1.0, 1.0])
    scores = np.array([[1, 0], [1, 0], [1, 0], [1, 0], [nan, 0], [2, 2.0]])
    spreads = np.array([[1, 1], [1, 1], [1, 1], [1, 1], [1, 1], [1, 1.0]])
    found = C.calibration(labels, scores, spreads, list("abcdef"))
    assert (found["pairs"], found["ties_left_out"], found["without_spread_or_label"]) == (3, 1, 2)
    assert found["gaussian"]["accuracy"] == pytest.approx((1 + 0 + 0.5) / 3)  # equal scores: a coin
    assert C.calibration(labels, scores, np.zeros((6, 2)), list("abcdef")) is None
    assert C.calibration(labels, scores, np.full((6, 2), nan), list("abcdef")) is None
    one = C.calibration(labels[:1], scores[:1], spreads[:1], ["a"])
    assert one["pairs"] == 1 and one["spread_and_error_spearman"] is None


def test_the_order_in_which_pairs_are_shown_does_not_matter():
    labels, scores, spreads, groups = drawn(200)
    turned = C.calibration(-labels, scores[:, ::-1], spreads[:, ::-1], groups)
    assert turned == C.calibration(labels, scores, spreads, groups)


def test_rank_correlation_and_its_bootstrap():
    assert spearman([1, 2, 3], [10, 20, 30]) == pytest.approx(1.0) and spearman([1, 2, 3], [3, 1, 2]) == pytest.approx(
        -0.5
    )
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(math.sqrt(3) / 2)  # ranks 1.5, 1.5, 3
    assert math.isnan(spearman([1, 1], [1, 2]))
    rng = np.random.default_rng(0)
    x = rng.normal(size=300)
    y = x + rng.normal(size=300)
    low, high = bootstrap(lambda i: spearman(x[i], y[i]), list(range(300)))
    assert low < spearman(x, y) < high and 0.1 < high - low < 0.25
    first, last = bootstrap(lambda i: float(x[i].mean()), list(range(300)))
    assert (last - first) / 2 == pytest.approx(1.96 * x.std() / math.sqrt(300), rel=0.15)
    assert bootstrap(lambda i: math.nan, ["a", "b"]) is None and bootstrap(lambda i: 1.0, []) is None
    whole = bootstrap(lambda i: float(len(set(i.tolist()) & {0, 1})), ["a", "a", "b"])
    assert whole == (0.0, 2.0)  # both items of a group, or none
