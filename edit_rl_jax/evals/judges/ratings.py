"""Compares scores of single edits with people's ratings: rank correlations within each editor."""

import math
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import numpy as np

from edit_rl_jax.evals.judges.cases import Cases
from edit_rl_jax.evals.statistics import bootstrap, spearman


def known(value: float) -> float | None:
    """Returns a number as JSON can hold it: None for NaN."""
    return None if math.isnan(value) else float(value)


def within(scores: np.ndarray, ratings: np.ndarray, parts: np.ndarray) -> dict[int, float]:
    """Rank correlation within each part (int [n]); NaN where it has less than two edits or one of both is constant."""
    members = {int(p): parts == p for p in np.unique(parts)}
    return {p: spearman(scores[m], ratings[m]) if m.sum() > 1 else math.nan for p, m in members.items()}


def mean_within(scores: np.ndarray, ratings: np.ndarray, parts: np.ndarray) -> float:
    """Unweighted mean of `within` over the parts that have one; NaN where none has."""
    found = [r for r in within(scores, ratings, parts).values() if not math.isnan(r)]
    return float(np.mean(found)) if found else math.nan


def standardised(scores: np.ndarray, parts: np.ndarray) -> np.ndarray:
    """Scores less their part's mean, by its standard deviation; 0 where that is at most 1e-6, as in upstream's code.
    Rounded to 1e-9, so that rounding errors do not rank what is equal, which upstream lets them do."""
    out = np.zeros(len(scores))
    for part in np.unique(parts):
        at = parts == part
        if (spread := scores[at].std()) > 1e-6:
            out[at] = np.round((scores[at] - scores[at].mean()) / spread, 9)
    return out


def numbered(names: list[str]) -> np.ndarray:
    """Numbers names in the order in which they first come, int [n]."""
    seen: dict[str, int] = {}
    return np.array([seen.setdefault(n, len(seen)) for n in names], np.int64)


def rated(cases: Cases) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Which cases have both numbers, bool [n], and what picks those of an array."""
    keep = ~np.isnan(cases.labels) & ~np.isnan(cases.scores[:, 0])
    return keep, lambda values: values[keep]


def rating_figures(cases: Cases, seed: int = 0) -> dict[str, Any]:
    """Mean over the editors of the rank correlation of score and rating, each editor's, and counts.

    An edit without a score or a rating has no rank: it is counted in `n` and `n_invalid`, by editor too. Intervals
    resample (source, instruction) with all editors' edits of it.
    """
    keep, pick = rated(cases)
    editors = [i.task or "unknown" for i in cases.items]
    parts, names = pick(numbered(editors)), list(dict.fromkeys(editors))
    scores, ratings = pick(cases.scores[:, 0]), pick(cases.labels)
    groups = [g for g, k in zip(cases.groups, keep) if k]
    ci = lambda of: interval_of(of, groups, seed)
    mean = mean_within(scores, ratings, parts)
    each, by_model = within(scores, ratings, parts), {}
    for number, name in enumerate(names):
        at = np.flatnonzero(parts == number)
        own = [groups[i] for i in at]
        of = lambda pick, at=at: spearman(scores[at[pick]], ratings[at[pick]])
        row = {"spearman": known(each.get(number, math.nan)), "spearman_ci95": interval_of(of, own, seed)}
        n = editors.count(name)
        by_model[name] = row | {"n": n, "invalid": n - len(at)}
    return {
        "spearman": known(mean),
        "spearman_ci95": ci(lambda i: mean_within(scores[i], ratings[i], parts[i])),
        "n": len(cases.items),
        "n_invalid": int((~keep).sum()),
        "models": len(names),
        "models_without_correlation": sum(row["spearman"] is None for row in by_model.values()),
        "by_model": by_model,
    }


def interval_of(of: Callable[[np.ndarray], float], groups: Sequence[Hashable], seed: int) -> list[float] | None:
    """The 95% interval of a statistic of indexes, over groups."""
    found = bootstrap(of, groups, seed=seed)
    return None if found is None else list(found)
