"""Intervals by the bootstrap over groups (scenes): items of one group are not independent. Rank correlation."""

import functools
from collections.abc import Callable, Hashable, Sequence

import numpy as np
from jaxtyping import Float, Float32


def interval(
    values: Sequence[int | float] | np.ndarray,
    groups: Sequence[Hashable] | np.ndarray | None = None,
    *,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the mean of `values`, resampling whole groups (each value its own group without them).

    For a paired comparison give the differences. Raises ValueError without values or when the lengths differ.
    """
    x = np.asarray(values, np.float64)
    if not len(x) or (groups is not None and len(groups) != len(x)):
        raise ValueError(f"{len(x)} values, {None if groups is None else len(groups)} groups")
    return _percentiles(_means(x, groups, draws, np.random.default_rng(seed)), level)


def macro_interval(
    values: Sequence[int | float] | np.ndarray,
    strata: Sequence[Hashable],
    groups: Sequence[Hashable] | None = None,
    *,
    level: float = 0.95,
    draws: int = 4000,
    seed: int = 0,
) -> tuple[float, float]:
    """Percentile interval of the unweighted mean of the strata's means; whole groups are resampled inside each stratum.

    Raises ValueError without values or when the lengths differ.
    """
    x, rng = np.asarray(values, np.float64), np.random.default_rng(seed)
    if not len(x) or len(strata) != len(x) or (groups is not None and len(groups) != len(x)):
        raise ValueError(f"{len(x)} values, {len(strata)} strata, {None if groups is None else len(groups)} groups")
    members = {s: [i for i, t in enumerate(strata) if t == s] for s in dict.fromkeys(strata)}
    pick = lambda at: None if groups is None else [groups[i] for i in at]
    return _percentiles(np.mean([_means(x[at], pick(at), draws, rng) for at in members.values()], axis=0), level)


def macro_draws(
    values: Float[np.ndarray, "n k"], strata: Sequence[Hashable], *, draws: int = 4000, seed: int = 0
) -> Float[np.ndarray, "draws k"]:
    """Bootstrap draws of the unweighted mean of the strata's means, of k figures of the same items at once.

    Items are resampled inside each stratum, with what they lack: NaN is left out of a mean, and a stratum that has
    nothing out of the mean over strata. NaN where no stratum has anything, and of draws without any value of a stratum
    that has some. float64.
    """
    totals, counts = 0.0, 0
    names = {s: i for i, s in enumerate(dict.fromkeys(strata))}
    member, known = np.array([names[s] for s in strata], np.int64), ~np.isnan(values)
    filled = np.where(known, values, 0.0)
    for stratum in names.values():
        at = np.flatnonzero(member == stratum)
        drawn = _drawn(len(at), draws, seed, stratum).astype(np.float64)
        weight = drawn @ known[at]
        empty = np.where(known[at].any(0), np.nan, 0.0) * np.ones_like(weight)
        totals = totals + np.divide(drawn @ filled[at], weight, out=empty, where=weight > 0)
        counts = counts + known[at].any(0)
    totals = np.zeros((draws, values.shape[1])) + totals
    return np.divide(totals, counts, out=np.full(totals.shape, np.nan), where=np.broadcast_to(counts, totals.shape) > 0)


@functools.lru_cache(maxsize=24)
def _drawn(n: int, draws: int, seed: int, stratum: int) -> Float32[np.ndarray, "draws n"]:
    """How often each of n items is drawn; remembered, for tables compare many editors on the same items."""
    rng = np.random.default_rng((seed, stratum))
    return rng.multinomial(n, np.full(n, 1 / n), draws).astype(np.float32)


def percentiles(draws: Float[np.ndarray, "draws"], level: float = 0.95) -> tuple[float, float] | None:
    """Percentile interval of draws; those that are NaN are left out, None where that are more than half of them."""
    good = draws[~np.isnan(draws)]
    return _percentiles(good, level) if len(good) and 2 * len(good) > len(draws) else None


def bootstrap(
    statistic: Callable[[np.ndarray], float],
    groups: Sequence[Hashable] | np.ndarray,
    *,
    level: float = 0.95,
    draws: int = 1000,
    seed: int = 0,
) -> tuple[float, float] | None:
    """Percentile interval of any statistic of the items' indexes (int [m], with repeats), resampling whole groups.

    Draws in which it is NaN are left out; None where that are more than half of them, or there is no item.
    """
    names: dict[Hashable, int] = {}
    member = np.array([names.setdefault(g, len(names)) for g in groups], np.int64)
    rng, n, found = np.random.default_rng(seed), len(names), []
    for _ in range(draws if n else 0):
        times = np.bincount(rng.integers(n, size=n), minlength=n)
        found.append(statistic(np.repeat(np.arange(len(member)), times[member])))
    good = np.array(found)[~np.isnan(found)] if found else np.empty(0)
    return _percentiles(good, level) if 2 * len(good) > len(found) else None


def spearman(a: Sequence[float] | np.ndarray, b: Sequence[float] | np.ndarray) -> float:
    """Rank correlation; equal values share the mean of their ranks. NaN where one of both does not vary."""
    from scipy.stats import rankdata

    x, y = (rankdata(v) - (len(v) + 1) / 2 for v in (a, b))
    scale = np.sqrt((x @ x) * (y @ y))
    return float(x @ y / scale) if scale > 0 else float("nan")


def _means(x: np.ndarray, groups: Sequence[Hashable] | np.ndarray | None, draws: int, rng: np.random.Generator):
    """Means [draws] of resampled groups."""
    names: dict[Hashable, int] = {}
    member = [names.setdefault(g, len(names)) for g in (range(len(x)) if groups is None else list(groups))]
    totals, counts = np.bincount(member, x), np.bincount(member)
    n, means = len(names), []
    for start in range(0, draws, 500):  # a few million entries at a time
        drawn = rng.multinomial(n, np.full(n, 1 / n), min(500, draws - start))
        means.append(drawn @ totals / (drawn @ counts))
    return np.concatenate(means)


def _percentiles(means: np.ndarray, level: float) -> tuple[float, float]:
    tail = (1 - level) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)
