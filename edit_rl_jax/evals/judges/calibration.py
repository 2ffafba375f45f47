"""Asks whether a judge's spreads say how likely it is to be wrong, on pairs of which people prefer one.

The predicted probability that A is preferred comes from both scores as independent Gaussians, in two readings:
`gaussian` is the probability that A's is the greater, Phi(mu / sigma), with mu the difference of the means and sigma^2
the sum of the squared spreads; `logistic_normal` is E[sigmoid(mu + sigma eps)], eps standard normal, the probability
that EditReward's losses are made of, which wants scores on a logistic scale. Pairs alone do not fix mean and variance:
scaling every mean and spread leaves `gaussian` as it is, so a spread has a meaning only beside the judge's own means.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from edit_rl_jax.evals.judges.ratings import interval_of, known
from edit_rl_jax.evals.statistics import interval, spearman
from edit_rl_jax.training.report import Curve

BINS = 10  # of the confidence, from 0.5 to 1
KEPT = tuple(range(10, 101, 10))  # percent
MODELS = ("gaussian", "logistic_normal")
DRAWS = 1000  # of an interval, of which there are fifty
NODES = 200  # of the Gauss-Hermite quadrature


def gaussian(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Returns Phi(mean / spread), float [n]; with no spread 1, 0 or 0.5."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.where(spread > 0, mean / spread, np.sign(mean) * math.inf)
    z = np.where(np.isnan(z), 0.0, z)
    return np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])


def logistic_normal(mean: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Returns E[sigmoid(mean + spread * eps)], float [n], by quadrature."""
    x, weights = np.polynomial.hermite.hermgauss(NODES)
    z = mean[:, None] + spread[:, None] * x * math.sqrt(2)
    return (0.5 + 0.5 * np.tanh(z / 2)) @ weights / math.sqrt(math.pi)


def calibration_error(confidence: np.ndarray, right: np.ndarray) -> float:
    """Expected calibration error: |accuracy - mean confidence| of BINS equal bins, weighted by their pairs."""
    which = bins(confidence)
    gaps = np.bincount(which, right - confidence, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right)) if len(right) else math.nan


def bins(confidence: np.ndarray) -> np.ndarray:
    """Numbers the bin of each confidence on [0.5, 1], int [n]."""
    return np.clip(((confidence - 0.5) * 2 * BINS).astype(np.int64), 0, BINS - 1)


def calibration(
    labels: np.ndarray, scores: np.ndarray, spreads: np.ndarray, groups: Sequence[Hashable], seed: int = 0
) -> dict[str, Any] | None:
    """The content of eval.json's `calibration`; None where no pair has a spread above 0.

    labels: float [n], 1, -1 or 0 for a tie; scores, spreads: float [n, 2]; NaN: not there. Ties of people have no
    right order and are left out, as are pairs without a label, scores or spreads; all are counted. A pair of equal
    scores counts as half right here, for its probability is 0.5.
    """
    keep = ~np.isnan(labels) & ~np.isnan(scores).any(1) & ~np.isnan(spreads).any(1)
    ties, n = int((keep & (labels == 0)).sum()), len(labels)
    keep &= labels != 0
    mean, spread = (scores[keep, 0] - scores[keep, 1]), np.sqrt((spreads[keep] ** 2).sum(1))
    if not (spread > 0).any():
        return None
    own = [g for g, k in zip(groups, keep) if k]
    right = np.where(mean == 0, 0.5, (np.sign(mean) == labels[keep]).astype(np.float64))
    size = np.abs(mean)  # the probability of the predicted order, whichever edit is shown first
    confidence = {"gaussian": gaussian(size, spread), "logistic_normal": np.clip(logistic_normal(size, spread), 0.5, 1)}
    figures: dict[str, Any] = {}
    for name, c in confidence.items():
        figures[name] = {
            "expected_calibration_error": calibration_error(c, right),
            "expected_calibration_error_ci95": interval_of(lambda i, c=c: calibration_error(c[i], right[i]), own, seed),
            "mean_confidence": float(c.mean()),
            "accuracy": float(right.mean()),
            "brier": float(np.mean((c - right) ** 2)),
        }
    error = 1 - right
    orders = {"probability": confidence["logistic_normal"], "spread": -spread, "difference": size}
    return {
        "pairs": len(right),
        "ties_left_out": ties,
        "without_spread_or_label": n - ties - len(right),
        **figures,
        "spread_and_error_spearman": known(spearman(spread, error)),
        "spread_and_error_spearman_ci95": interval_of(lambda i: spearman(spread[i], error[i]), own, seed),
        "by_spread": by_spread(spread, mean, right, own),
        "reliability": {name: reliability(c, right, own) for name, c in confidence.items()},
        "kept": kept(orders, right, own),
    }


def _accuracy(right: np.ndarray, groups: Sequence[Hashable], at: np.ndarray) -> dict[str, Any]:
    own = [groups[i] for i in at]
    return {
        "accuracy": float(right[at].mean()),
        "accuracy_ci95": list(interval(right[at], own, draws=DRAWS)),
        "n": len(at),
    }


def by_spread(spread: np.ndarray, mean: np.ndarray, right: np.ndarray, groups: Sequence[Hashable]) -> dict[str, Any]:
    """Accuracy of the quarters of pairs by spread, the least first."""
    parts = np.array_split(np.argsort(spread, kind="stable"), 4)
    row = lambda at: {"mean_spread": float(spread[at].mean()), "mean_difference": float(np.abs(mean[at]).mean())}
    return {f"quarter {n}": _accuracy(right, groups, at) | row(at) for n, at in enumerate(parts, 1) if len(at)}


def reliability(confidence: np.ndarray, right: np.ndarray, groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """Accuracy beside confidence in each bin that holds pairs."""
    out = []
    for number in np.unique(bins(confidence)):
        at = np.flatnonzero(bins(confidence) == number)
        low = 0.5 + number / (2 * BINS)
        about = {"from": float(low), "to": float(low + 1 / (2 * BINS)), "confidence": float(confidence[at].mean())}
        out.append(about | _accuracy(right, groups, at))
    return out


def kept(orders: dict[str, np.ndarray], right: np.ndarray, groups: Sequence[Hashable]) -> list[dict[str, Any]]:
    """Accuracy of the most certain 10, 20, ..., 100% of the pairs, by each measure of certainty (float [n])."""
    out = []
    for percent in KEPT:
        row: dict[str, Any] = {"pairs kept (%)": percent, "n": max(1, math.ceil(percent * len(right) / 100))}
        for name, certain in orders.items():
            found = _accuracy(right, groups, np.argsort(-certain, kind="stable")[: row["n"]])
            row |= {name: found["accuracy"], f"{name}_ci95": found["accuracy_ci95"]}
        out.append(row)
    return out


def curves(found: dict[str, Any] | None) -> list[Curve]:
    """The figures of report.html: reliability, and accuracy against the share of pairs that is kept."""
    if not found:
        return []
    charts: list[Curve] = []
    for name in MODELS:
        points = [
            {
                "predicted probability (%)": 100 * row["confidence"],
                "accuracy": row["accuracy"],
                "accuracy_ci95": row["accuracy_ci95"],
                "perfect": row["confidence"],
            }
            for row in found["reliability"][name]
        ]
        title = f"Reliability, {name.replace('_', '-')} (accuracy)"
        charts.append((title, {"accuracy": "accuracy", "perfect": "perfect"}, points))
    quarters = [{"quarter of spreads": i} | row for i, row in enumerate(found["by_spread"].values(), 1)]
    charts.append(("Accuracy from the least to the greatest spread (accuracy)", {"accuracy": "accuracy"}, quarters))
    names = {"probability": "by probability", "spread": "by spread", "difference": "by difference"}
    charts.append(("Accuracy without the least certain (accuracy)", names, found["kept"]))
    return charts
