"""Makes the figures of a judged benchmark: means of groups and their unweighted mean, intervals by item, failures.

What has no judgement is never averaged in silently: `n_failed` stands beside each figure, and the official one stands
twice, over what was judged (as upstream's scripts give it), and with each failure as the lowest score of the scale.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edit_rl_jax.evals.editors.cases import Benchmark, Item, Judged
from edit_rl_jax.evals.judges.cases import Problems
from edit_rl_jax.evals.statistics import macro_draws, percentiles

FAILED, OWN = "with_failures", "overall"  # of a judge without the protocol's scores, on its own scale


def figure_of(bench: Benchmark, judged: Mapping[str, Judged]) -> str:
    """Names the figure that editors are ordered by: the protocol's, or the overall one of a judge with another."""
    valid = [j for j in judged.values() if j.valid]
    return bench.OFFICIAL if not valid or any(bench.OFFICIAL in j.figures for j in valid) else OWN


def sets(bench: Benchmark, items: Sequence[Item]) -> dict[str, list[Item]]:
    """Names what is evaluated by itself: each part, and of a part with a list of them its intersection."""
    found = {}
    for part in bench.PARTS:
        if own := [i for i in items if i.part == part]:
            found[part] = own
            if any(i.intersection is not None for i in own):
                found[f"{part} intersection"] = [i for i in own if i.intersection]
    return {name: own for name, own in found.items() if own}


def evaluate(bench: Benchmark, items: Sequence[Item], judged: Mapping[str, Judged], seed: int = 0) -> dict[str, Any]:
    """Returns the content of eval.json that the judgements decide; every item has one."""
    problems, official = Problems(), figure_of(bench, judged)
    for item in items:
        if not (one := judged[item.id]).valid:
            problems.add(one.problem, item.id, one.detail)
        elif official not in one.figures:
            problems.add("no official figure", item.id, f"{official} is wanted, there are {', '.join(one.figures)}")
    by_set, groups = {}, {}
    for name, own in sets(bench, items).items():
        by_set[name], groups[f"by_group_{name.replace(' ', '_')}"] = _tables(bench, own, judged, official, seed)
    first = next(iter(by_set.values()))
    top = {"official_figure": official, "official_set": next(iter(by_set)), "official": first[official]}
    top["official_ci95"] = first[f"{official}_ci95"]
    if f"{official}_{FAILED}" in first:
        top[f"official_{FAILED}"] = first[f"{official}_{FAILED}"]
        top[f"official_{FAILED}_ci95"] = first[f"{official}_{FAILED}_ci95"]
    counts = {"n": len(items), "n_failed": sum(official not in judged[i.id].figures for i in items)}
    counts["n_published"] = {p: n for p, n in bench.COUNTS.items() if any(i.part == p for i in items)}
    absent = {
        p: missing
        for p in counts["n_published"]
        if (missing := [g for g in bench.GROUPS[p] if g not in {i.group for i in items if i.part == p}])
    }
    failures = {r: e["n"] for r, e in problems.found.items()}
    return {**top, **counts, "groups_absent": absent, "failures": failures, "by_set": by_set, **groups} | {
        "failed_items": problems.found
    }


def _tables(
    bench: Benchmark, items: Sequence[Item], judged: Mapping[str, Judged], official: str, seed: int
) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """(a row of figures of all groups, rows of figures by group)."""
    names = list(dict.fromkeys([official, *(k for i in items for k in judged[i.id].figures)]))
    values = np.array([[judged[i.id].figures.get(n, math.nan) for n in names] for i in items], np.float64)
    columns = list(names)
    if official != OWN:  # an unbounded scale has no lowest score
        values = np.c_[values, np.nan_to_num(values[:, 0], nan=bench.SCALE[0])]
        columns.append(f"{official}_{FAILED}")
    strata = [i.group for i in items]
    own = official == bench.OFFICIAL  # a benchmark's rounding is of its own figure
    decimals = {name: bench.DECIMALS for name in (official, f"{official}_{FAILED}") if own}
    rows = {}
    for group in sorted(set(strata), key=bench.GROUPS[items[0].part].index):
        at = np.array([s == group for s in strata])
        rows[group] = _row(columns, values[at], [group] * int(at.sum()), decimals, seed)
    whole = _row(columns, values, strata, decimals, seed)
    pooled = values[~np.isnan(values[:, 0]), 0]
    whole[f"{official}_pooled"] = float(pooled.mean()) if len(pooled) else None
    empty = [g for g, row in rows.items() if row[official] is None]
    return whole | {"groups": len(rows), "groups_without_judgement": len(empty)}, rows


def macro(values: Sequence[float] | np.ndarray, strata: Sequence[str], decimals: int | None = None) -> float | None:
    """The unweighted mean of the groups' means, those first rounded to `decimals`; NaN are left out, None without any
    value."""
    x, means = np.asarray(values, np.float64), []
    for stratum in dict.fromkeys(strata):
        own = x[np.array([s == stratum for s in strata])]
        if len(own := own[~np.isnan(own)]):
            means.append(float(own.mean()) if decimals is None else round(float(own.mean()), decimals))
    return float(np.mean(means)) if means else None


def _row(
    names: Sequence[str], values: np.ndarray, strata: Sequence[str], decimals: Mapping[str, int | None], seed: int
):
    draws, row = macro_draws(values, strata, seed=seed), {}
    for k, name in enumerate(names):
        row[name] = macro(values[:, k], strata, decimals.get(name))
        ends = percentiles(draws[:, k])
        row[f"{name}_ci95"] = ends and list(ends)
    return row | {"n": len(values), "n_failed": int(np.isnan(values[:, 0]).sum())}


def summary(figures: Mapping[str, Any]) -> str:
    """Says the main figures in a few lines, and what was wrong."""
    name, lines = figures["official_figure"], []
    for which, row in figures["by_set"].items():
        more = [f"{k} {v:.3f}" for k, v in row.items() if k in ("SC", "PQ", "rule_broken", "success")]
        if (low := row.get(f"{name}_{FAILED}")) is not None and row["n_failed"]:
            more.append(f"with failures as the lowest score {low:.3f}")
        ends = row[f"{name}_ci95"]
        between = f" ({ends[0]:.3f} to {ends[1]:.3f})" if ends else ""
        value = "no figure" if row[name] is None else f"{row[name]:.3f}{between}"
        left = f", {row['groups_without_judgement']} without a judgement" if row["groups_without_judgement"] else ""
        lines.append(
            f"{which}: {name} {value}{''.join(f', {m}' for m in more)}; {row['n']} items, {row['n_failed']} failed, "
            f"{row['groups']} groups{left}"
        )
    lines += [f"  {reason}: {n}" for reason, n in figures["failures"].items()]
    for part, absent in figures["groups_absent"].items():
        lines.append(f"  no item of {part}: {', '.join(absent)}")
    for part, published in figures["n_published"].items():
        if figures["by_set"][part]["n"] != published:
            lines.append(f"  {part} has {published} items as published, here are {figures['by_set'][part]['n']}")
    lines += [f"  {reason}: {e['n']} ({', '.join(e['ids'][:3])})" for reason, e in figures.get("problems", {}).items()]
    if spent := figures.get("asking"):
        cost = "" if spent["cost_usd"] is None else f", {spent['cost_usd']:.2f} US dollars"
        lines.append(
            f"  {spent['questions_asked']} questions asked, {spent['questions_remembered']} remembered; "
            f"{spent['tokens_read']} tokens read, {spent['tokens_written']} written{cost}"
        )
        lines += [f"  tries that failed, {k}: {n}" for k, n in spent["tries_that_failed"].items()]
    return "\n".join(lines)
