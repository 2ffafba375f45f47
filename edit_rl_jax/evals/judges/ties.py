"""Chooses which differences of scores count as ties, and compares pairs with people's labels.

A pair is a tie where its scores differ by at most a threshold: the one that makes most predictions right (arXiv
2305.14324). Chosen on the pairs that it then judges ("oracle", as the released code of EditReward does) it flatters;
by default it is chosen on other pairs: the groups are dealt into folds by a seed, and the pairs of a fold are judged
with the threshold of the other folds ("held-out": cross-fitting, so that every pair counts).
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import numpy as np

from edit_rl_jax.evals.judges.cases import Cases
from edit_rl_jax.evals.judges.pairs import Outcome
from edit_rl_jax.evals.statistics import bootstrap

FOLDS = 5


@dataclasses.dataclass(frozen=True)
class Ties:
    """Says how thresholds come about.

    Attributes:
      how: "held-out", "oracle", or a number.
      upstream: whether figures by the released code's own rules are wanted, too.
    """

    how: str | float = "held-out"
    seed: int = 0
    upstream: bool = False


@dataclasses.dataclass(frozen=True)
class Threshold:
    """Thresholds of n pairs (`each`, float [n]; NaN where none is needed), and what eval.json says of them."""

    each: np.ndarray
    about: dict[str, Any]


def best_threshold(labels: np.ndarray, differences: np.ndarray) -> float:
    """Returns the smallest of 0 and the |differences| that makes most of the pairs right.

    labels, differences: float [n], without NaN. Equal |differences| are ties together or not at all. 0.0 for no pair.
    """
    size = np.abs(differences)
    order = np.argsort(size, kind="stable")
    size, tied = size[order], (labels == 0)[order]
    right = ((labels * differences > 0) & (labels != 0))[order]
    score = np.concatenate([[right.sum()], np.cumsum(tied) + right.sum() - np.cumsum(right)])  # the first k are ties
    candidates = np.unique(np.concatenate([[0.0], size]))
    counts = np.searchsorted(size, candidates, side="right")
    return float(candidates[np.argmax(score[counts])])


def folds_of(groups: list[str], seed: int) -> np.ndarray:
    """Deals whole groups into at most FOLDS folds, int [n]; the same ones whatever the items' order."""
    names = sorted(set(groups))
    order = np.random.default_rng(seed).permutation(len(names))
    fold = {names[n]: i % FOLDS for i, n in enumerate(order)}
    return np.array([fold[g] for g in groups], np.int64)


def cross_fit(fit: Callable[[np.ndarray], float], usable: np.ndarray, groups: list[str], seed: int) -> np.ndarray:
    """Returns for each item what `fit` (of the bool [n] that it may look at) finds on the usable ones of other folds,
    float [n]."""
    folds, out = folds_of(groups, seed), np.full(len(groups), math.nan)
    for fold in np.unique(folds):
        out[folds == fold] = fit(usable & (folds != fold))
    return out


def threshold(cases: Cases, ties: Ties) -> Threshold:
    """Chooses the thresholds of pairs; recorded verdicts need none."""
    scored = cases.usable & np.isnan(cases.said)
    fit = lambda keep: best_threshold(cases.labels[keep], cases.differences[keep])
    return chosen(fit, scored, cases.groups, ties)


def chosen(
    fit: Callable[[np.ndarray], float],
    usable: np.ndarray,
    groups: list[str],
    ties: Ties,
    name: str = "tie_threshold",
    alone: float = 0.0,
) -> Threshold:
    """Chooses by `fit` (see `cross_fit`) as `ties` says; `about` has `name`, where it came from, and of folds each.

    alone: what is taken where there is a single group, so that nothing can be held out.
    """
    n, told = len(groups), len({g for g, u in zip(groups, usable) if u})
    if not told:
        value, source = None, "not needed: there are no scores"
    elif isinstance(ties.how, float):
        value, source = ties.how, "given"
    elif ties.how == "oracle":
        value, source = fit(usable), "oracle: chosen on the very pairs that it judges (upstream's, arXiv 2305.14324)"
    elif told == 1:
        value, source = alone, "not chosen: a single group leaves nothing to hold out"
    else:
        each = cross_fit(fit, usable, groups, ties.seed)
        folds = folds_of(groups, ties.seed)
        found = [float(each[folds == f][0]) for f in np.unique(folds)]
        source = f"held-out: cross-fitting over groups, {len(found)} folds, seed {ties.seed}; the folds' median"
        middle = sorted(found)[(len(found) - 1) // 2]
        return Threshold(each, {name: plain(middle), f"{name}_from": source, f"{name}_folds": [*map(plain, found)]})
    return Threshold(np.full(n, math.nan if value is None else value), {name: plain(value), f"{name}_from": source})


def plain(value: float | None) -> float | None:
    """Returns a number as JSON can hold it: None for infinity."""
    return None if value is None or not math.isfinite(value) else value


def order(cases: Cases, at: np.ndarray | float = 0.0) -> np.ndarray:
    """Returns the predicted order of pairs, float [n]: 1, -1, or 0 where scores differ by at most `at`; a verdict's
    own; NaN where there is none."""
    differences = cases.differences
    predicted = np.where(np.abs(differences) <= at, 0.0, np.sign(differences))
    return np.where(np.isnan(cases.said), predicted, cases.said)


def outcome(cases: Cases, right: np.ndarray, at: np.ndarray | float = 0.0) -> Outcome:
    """Returns the outcome of cases that are `right` (bool [n])."""
    tied = (order(cases, at) == 0) & cases.usable
    names = tuple(i.task for i in cases.items), tuple(i.axis for i in cases.items)
    return Outcome((right & cases.usable).astype(np.float64), tied, ~cases.usable, tuple(cases.groups), *names)


def with_ties(cases: Cases, at: np.ndarray | float) -> Outcome:
    """Three ways: a tie of people is right where a tie is predicted."""
    return outcome(cases, order(cases, at) == cases.labels, at)


def without_ties(cases: Cases) -> Outcome:
    """The pairs that people did not call a tie, by order alone: equal scores and verdicts of a tie are wrong. A pair
    whose label is unknown is among them, and wrong."""
    kept = cases.where(cases.labels != 0)
    return outcome(kept, order(kept) == kept.labels)


def by_order(cases: Cases, at: np.ndarray | float) -> np.ndarray:
    """The rule of strict accuracy, bool [n]: a tie of people is right where a tie is predicted, any other pair by order
    alone, even where its scores differ by less than the threshold."""
    tie = cases.labels == 0
    return np.where(tie, order(cases, at) == 0, order(cases) == cases.labels) & cases.usable


def swept(labels: np.ndarray, differences: np.ndarray) -> float | None:
    """Returns upstream's accuracy with ties (`calc_accuracy_with_ties`): the best over all k >= 1 of calling the k
    pairs of the smallest |difference| ties, on the test set itself; of equal |differences| some may be ties. None for
    no pair."""
    if not len(labels):
        return None
    at = np.argsort(np.abs(differences), kind="stable")
    tied, right = (labels == 0)[at], (labels * differences > 0)[at]
    return float((np.cumsum(tied) + right.sum() - np.cumsum(right)).max() / len(labels))


def table(prefix: str, found: Outcome) -> dict[str, Any]:
    """A figure with its interval, as keys of eval.json."""
    return {prefix: found.accuracy, f"{prefix}_ci95": found.ci95}


def pair_figures(cases: Cases, ties: Ties, at: Threshold | None = None) -> dict[str, Any]:
    """The figures that all benchmarks of pairs have; the official one is with ties, until a benchmark knows better."""
    at = at or threshold(cases, ties)
    three, two = with_ties(cases, at.each), without_ties(cases)
    said, usable = order(cases, at.each), cases.usable
    tie, same = cases.labels == 0, said == cases.labels
    counts = {
        "concordant": usable & ~tie & same,
        "discordant": usable & ~tie & (said != 0) & ~same,
        "tie_of_the_judge_only": usable & ~tie & (said == 0),
        "tie_of_people_only": usable & tie & ~same,
        "tie_of_both": usable & tie & same,
    }
    return {
        **table("official_accuracy", three),
        **table("accuracy_with_ties", three),
        **table("accuracy_without_ties", two),
        "n": len(cases.items),
        "n_without_ties": len(two.right),
        "n_invalid": int((~usable).sum()),
        **at.about,
        "counts": {name: int(found.sum()) for name, found in counts.items()},
    }


def upstream_pairs(cases: Cases) -> dict[str, Any]:
    """Upstream's figures of pairs with scores, on which it would run: the others are left out here, and counted."""
    keep = cases.usable & np.isnan(cases.said)
    labels, differences = cases.labels[keep], cases.differences[keep]
    groups = [g for g, k in zip(cases.groups, keep) if k]
    alone = lambda at: mean((labels * differences > 0)[at][labels[at] != 0])
    best = lambda at: math.nan if (found := swept(labels[at], differences[at])) is None else found
    return {
        "note": "oracle threshold, chosen on the test set; of equal differences some may count as ties",
        **statistic("accuracy_with_ties", best, groups),
        **statistic("accuracy_without_ties", alone, groups),
        "n": int(keep.sum()),
    }


def mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else math.nan


def statistic(name: str, of: Callable[[np.ndarray], float], groups: list[str]) -> dict[str, Any]:
    """A statistic of indexes with its interval, as keys of eval.json."""
    ends = bootstrap(of, groups)
    return {name: plain(of(np.arange(len(groups)))), f"{name}_ci95": ends and list(ends)}
