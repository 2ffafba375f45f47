"""Compares results of a judged benchmark on the same items: editors in pairs, judges side by side, a judge with itself.

Only items that both sides have a judgement of are compared; `n_left_out` says how many are not.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax import json_files
from edit_rl_jax.evals.editors import figures, recorded
from edit_rl_jax.evals.editors.cases import Item, Judged
from edit_rl_jax.evals.editors.judged import BENCHMARKS, benchmark
from edit_rl_jax.evals.judges.cases import Problems
from edit_rl_jax.evals.statistics import bootstrap, macro_draws, percentiles, spearman


@dataclasses.dataclass(frozen=True, eq=False)
class Results:
    """One editor as one judge sees it: a folder that `judged.run` wrote, or several of different items."""

    folder: Path
    about: Mapping[str, Any]  # eval.json
    items: Mapping[str, Item]
    judged: Mapping[str, Judged]
    elsewhere: Mapping[str, Path] = dataclasses.field(default_factory=dict)  # folders of the items that `joined` added

    @property
    def official(self) -> str:
        """The figure that editors are ordered by."""
        return self.about["official_figure"]

    def value(self, name: str) -> float:
        """The official figure of an item; NaN where there is none."""
        return self.judged[name].figures.get(self.official, math.nan)

    @functools.cached_property
    def sets(self) -> dict[str, list[str]]:
        """Names of items by set."""
        found = figures.sets(benchmark(self.about["benchmark"]), list(self.items.values()))
        return {name: [i.id for i in own] for name, own in found.items()}

    def figure(self, which: str) -> float | None:
        """Returns the official figure of a set, macro over groups."""
        names = self.sets.get(which, ())
        bench = benchmark(self.about["benchmark"])
        decimals = bench.DECIMALS if self.official == bench.OFFICIAL else None
        return figures.macro([self.value(n) for n in names], [self.items[n].group for n in names], decimals)

    def folder_of(self, name: str) -> Path:
        """Returns the folder that an item was read from."""
        return self.elsewhere.get(name, self.folder)

    def joined(self, other: "Results") -> "Results":
        """Adds those parts of another folder of the same editor and judge that have no item which is here already."""
        repeated = {i.part for n, i in other.items.items() if n in self.items}
        new = {n: i for n, i in other.items.items() if i.part not in repeated}
        judged = {**self.judged, **{n: other.judged[n] for n in new}}
        about = {**self.about, "official_figure": figures.figure_of(benchmark(self.about["benchmark"]), judged)}
        elsewhere = {**self.elsewhere, **dict.fromkeys(new, other.folder)}
        return Results(self.folder, about, {**self.items, **new}, judged, elsewhere)


def load(folder: str | Path) -> Results:
    """Reads a folder of results. Raises OSError, ValueError."""
    folder = Path(folder)
    about = json_files.read_object(folder / "eval.json")
    wanted = ("benchmark", "editor", "judge", "official_figure", "by_set")
    if about.get("benchmark") not in BENCHMARKS or any(k not in about for k in wanted):
        raise ValueError(f"{folder / 'eval.json'}: these are no results of a judged benchmark of editors")
    problems = Problems()
    found = recorded.read(benchmark(about["benchmark"]), folder / "judgements.jsonl", "all", problems)
    if problems.found:
        raise ValueError(f"{folder / 'judgements.jsonl'}: {', '.join(problems.found)}")
    return Results(folder, about, {n: i for n, (i, _) in found.items()}, {n: j for n, (_, j) in found.items()})


def shared(a: Results, b: Results, which: str) -> list[str]:
    """Names the items of a set that both have. Raises ValueError for items that are not the same."""
    other = set(b.sets.get(which, ()))
    names = [n for n in a.sets.get(which, ()) if n in other]
    for name in names:
        if a.items[name] != b.items[name]:
            raise ValueError(f"{a.folder_of(name)} and {b.folder_of(name)}: {name} is not the same item")
    return names


def paired(a: Results, b: Results, which: str, seed: int = 0) -> dict[str, Any] | None:
    """The difference a - b of two editors as one judge sees them, macro over groups, with its paired interval.

    None where they share no judged item.
    """
    names = shared(a, b, which)
    differences = np.array([a.value(n) - b.value(n) for n in names])
    strata = [a.items[n].group for n in names]
    found = figures.macro(differences, strata)
    if found is None:
        return None
    kept = differences[~np.isnan(differences)]
    ends = percentiles(macro_draws(differences[:, None], strata, seed=seed)[:, 0])
    wins = {"share_a_better": float(np.mean(kept > 0)), "share_b_better": float(np.mean(kept < 0))}
    out = {"difference": found, "difference_ci95": ends and list(ends), **wins}
    return out | {"n": len(kept), "n_left_out": _absent(a, b, which) + len(names) - len(kept)}


def _absent(a: Results, b: Results, which: str) -> int:
    """Items of a set that only one side has."""
    return len(set(a.sets.get(which, ())) ^ set(b.sets.get(which, ())))


def drift(old: Results, new: Results, which: str, seed: int = 0) -> dict[str, Any] | None:
    """What a judge says again of the same edits: agreement and mean shift (new - old), macro over groups."""
    found = paired(new, old, which, seed)
    if found is None:
        return None
    names = shared(old, new, which)
    x, y = (np.array([r.value(n) for n in names]) for r in (old, new))
    both = ~np.isnan(x) & ~np.isnan(y)
    rank = spearman(x[both], y[both]) if both.sum() > 1 else math.nan
    return {
        "mean_shift": found["difference"],
        "mean_shift_ci95": found["difference_ci95"],
        "share_the_same": float(np.mean(x[both] == y[both])),
        "mean_absolute_shift": float(np.mean(np.abs(x - y)[both])),
        "spearman": None if math.isnan(rank) else rank,
        "n": found["n"],
        "n_left_out": found["n_left_out"],
    }


def agreement(pairs: Sequence[tuple[Results, Results]], which: str, seed: int = 0) -> dict[str, Any] | None:
    """Rank correlation of two judges over the items of the same editors, those resampled together; pairs: an editor's
    results by either. Beside it, over the editors' own figures, how often both order two editors alike."""
    groups, x, y, left = [], [], [], 0
    for a, b in pairs:
        left += _absent(a, b, which)
        for name in shared(a, b, which):
            one, other = a.value(name), b.value(name)
            if math.isnan(one) or math.isnan(other):
                left += 1
                continue
            groups.append(name)
            x.append(one)
            y.append(other)
    if len(x) < 2:
        return None
    one, other = np.array(x), np.array(y)
    ends = bootstrap(lambda at: spearman(one[at], other[at]), groups, draws=400, seed=seed)
    rank, means = spearman(one, other), []
    for a, b in pairs:
        both = [r.figure(which) for r in (a, b)]
        means += [both] if None not in both else []
    ordered = [(p[0] - q[0]) * (p[1] - q[1]) > 0 for p, q in itertools.combinations(means, 2)]
    out = {"spearman": None if math.isnan(rank) else rank, "spearman_ci95": ends and list(ends)}
    return out | {
        "n": len(x),
        "n_left_out": left,
        "editors": len(means),
        "editor_pairs_ordered_alike": f"{sum(ordered)} of {len(ordered)}",
    }


def _agree(one: Any, other: Any) -> bool:
    """Whether two settings are the same; of mappings, as prompts' hashes by file, what both have."""
    if isinstance(one, Mapping) and isinstance(other, Mapping):
        return all(_agree(one[k], other[k]) for k in one.keys() & other.keys())
    return one == other


def _same_names(results: Sequence[Results]) -> None:
    """What decides a judge's answers, or an editor's edits, is the same wherever its name is, as far as it was told."""
    for what in ("judge", "editor"):
        told: dict[str, Results] = {}
        for r in results:
            settings = r.about.get("about", {}).get(what)
            if not settings:
                continue
            first = told.setdefault(r.about[what], r)
            other = first.about["about"][what]
            both = (other.keys() & settings.keys()) - {"endpoint"}  # the same judge elsewhere
            if differ := sorted(k for k in both if not _agree(settings[k], other[k])):
                said = f"are of different {what}s, both called {r.about[what]!r} ({', '.join(differ)})"
                raise ValueError(f"{first.folder} and {r.folder} {said}: judge them again with another name")


def tables(results: Sequence[Results], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Compares all results of one benchmark: `editors` in pairs by judge, `judges` in pairs over their editors, and
    `drift`, where one editor was judged by one judge twice (the first given is the old one). An editor's parts, judged
    into folders of their own, stand together. Raises ValueError where two judges, or editors, have one name."""
    _same_names(results)
    out: dict[str, list[dict[str, Any]]] = {"editors": [], "judges": [], "drift": []}
    by_judge: dict[str, dict[str, Results]] = {}
    for r in results:
        held = by_judge.setdefault(r.about["judge"], {})
        if old := held.get(r.about["editor"]):
            about = {"editor": r.about["editor"], "judge": r.about["judge"]}
            out["drift"] += [{**about, "set": s, **d} for s in r.sets if (d := drift(old, r, s, seed))]
        held[r.about["editor"]] = old.joined(r) if old else r
    for judge, held in by_judge.items():
        for a, b in itertools.combinations(held.values(), 2):
            about = {"judge": judge, "a": a.about["editor"], "b": b.about["editor"]}
            out["editors"] += [{**about, "set": s, **d} for s in a.sets if (d := paired(a, b, s, seed))]
    for (one, held), (two, others) in itertools.combinations(by_judge.items(), 2):
        pairs = [(held[e], others[e]) for e in held if e in others]
        sets = dict.fromkeys(s for a, _ in pairs for s in a.sets)
        about = {"a": one, "b": two}
        out["judges"] += [{**about, "set": s, **d} for s in sets if (d := agreement(pairs, s, seed))]
    return out
