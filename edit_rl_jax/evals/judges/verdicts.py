"""Asks whether a verifier's verdicts are right, by category of principle, and what its probabilities are worth.

Gold verdicts stand in `meta["verdicts"]` of a record, beside `meta["principles"]`; a judge's in the detail `principles`
of its judgements: `{"question", "category", "verdict"}`, the verdict being 1, 0, or between them a mean over passes or
a probability of yes. Right is what lies on gold's side of 0.5. A verdict that is not there, and one of exactly 0.5,
counts as wrong; both are counted. Intervals resample scenes.
"""

import math
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from edit_rl_jax.data import principles
from edit_rl_jax.data.records import CATEGORIES, EditRecord
from edit_rl_jax.evals.statistics import bootstrap, interval
from edit_rl_jax.rewards.base import Judgement

BINS = 10  # of the probability of yes, from 0 to 1


def told(judged: Judgement) -> dict[str, float]:
    """Gives the verdicts of a judgement by question; none where it is not valid or has none."""
    stored = judged.details.get("principles", []) if judged.valid else []
    return {p["question"]: float(p["verdict"]) for p in stored if p.get("verdict") is not None}


def figures(records: Sequence[EditRecord], judged: Sequence[Judgement], seed: int = 0) -> dict[str, Any] | None:
    """Returns the content of eval.json's `verdicts`: all, and by category; None where the judge gives no verdicts or no
    record has gold ones. Raises ValueError where the lengths differ, RecordError for malformed principles."""
    said, gold, category, groups = [], [], [], []
    for record, judgement in zip(records, judged, strict=True):
        if "verdicts" not in record.meta:
            continue
        asked, given = principles.from_json(record.key, record.meta["principles"]), told(judgement)
        for principle, verdict in zip(asked, record.meta["verdicts"], strict=True):
            said.append(given.get(principle.question, math.nan))
            gold.append(verdict)
            category.append(principle.category)
            groups.append(record.group or record.source)
    p, truth = np.array(said, np.float64), np.array(gold, np.int64)
    if np.isnan(p).all():
        return None
    at = {name: [i for i, c in enumerate(category) if c == name] for name in CATEGORIES}
    pick = lambda rows: table(p[rows], truth[rows], [groups[i] for i in rows], seed)
    return pick(list(range(len(p)))) | {"by_category": {name: pick(rows) for name, rows in at.items() if rows}}


def table(
    p: Float[np.ndarray, "n"], gold: Int[np.ndarray, "n"], groups: Sequence[Hashable], seed: int = 0
) -> dict[str, Any]:
    """Returns the figures of verdicts p (NaN: not there) beside gold ones, 0 or 1.

    `balanced_accuracy` is the mean of those on gold's yes and no, `majority` the accuracy of always saying the more
    frequent one; `calibration` is there where a verdict lies between 0 and 1, over those that are there.
    """
    right = ((p > 0.5) & (gold == 1)) | ((p < 0.5) & (gold == 0))
    balanced = lambda i: float(np.mean([_mean(right[i][gold[i] == v]) for v in (0, 1)]))
    known, both = ~np.isnan(p), balanced(np.arange(len(p)))
    out = {
        "n": len(p),
        "accuracy": float(right.mean()),
        "accuracy_ci95": list(interval(right.astype(np.float64), groups, seed=seed)),
        "balanced_accuracy": None if math.isnan(both) else both,
        "balanced_accuracy_ci95": list(bootstrap(balanced, groups, seed=seed) or ()) or None,
        "majority": float(max(gold.mean(), 1 - gold.mean())),
        "false_yes": int((known & (p > 0.5) & (gold == 0)).sum()),
        "false_no": int((known & (p < 0.5) & (gold == 1)).sum()),
        "undecided": int((p == 0.5).sum()),
        "missing": int((~known).sum()),
    }
    if np.isin(p[known], (0.0, 1.0)).all():
        return out
    return out | {"calibration": calibration(p[known], gold[known], [g for g, k in zip(groups, known) if k], seed)}


def calibration(
    p: Float[np.ndarray, "n"], gold: Int[np.ndarray, "n"], groups: Sequence[Hashable], seed: int = 0
) -> dict[str, Any]:
    """Returns what probabilities of yes are worth: expected calibration error (|share of yes - mean probability| of
    BINS equal bins, weighted by their verdicts) with its interval, Brier score, both means, and the bins."""
    which = np.minimum((p * BINS).astype(np.int64), BINS - 1)
    error = lambda i: float(np.abs(np.bincount(which[i], gold[i] - p[i], BINS)).sum() / len(i))
    row = lambda at: {"probability": float(p[at].mean()), "yes": float(gold[at].mean()), "n": len(at)}
    rows = [(b, np.flatnonzero(which == b)) for b in range(BINS)]
    return {
        "expected_calibration_error": error(np.arange(len(p))),
        "expected_calibration_error_ci95": list(bootstrap(error, groups, seed=seed) or ()) or None,
        "brier": float(np.mean((p - gold) ** 2)),
        "mean_probability": float(p.mean()),
        "yes": float(gold.mean()),
        "reliability": [{"from": b / BINS, "to": (b + 1) / BINS} | row(at) for b, at in rows if len(at)],
    }


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan
