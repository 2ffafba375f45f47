"""Fits a verifier's reward to people's pairs: how much its final score and the verdicts of each category weigh.

Which edit is preferred is taken as logistic in what the figures of the better one have more (Bradley-Terry), with
weights that are not negative and a weak prior; they are then scaled to sum to 1, as the reward "categories" takes them.
Accuracies are cross-fitted: pairs of a fold are judged with the weights of the other folds, which share no group (a
source and an instruction).
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64

from edit_rl_jax.data.records import Record
from edit_rl_jax.evals.judges import preferences
from edit_rl_jax.evals.judges.ties import folds_of
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.edit_rrm.aggregate import DIMENSIONS

WEIGHED = [i for i, name in enumerate(DIMENSIONS) if name != "verdicts"]  # which is a mean of the others
PRIOR = 10.0  # standard deviation of a weight before it is scaled
CHUNK = 256  # pairs judged between two writes of the cache


def preferred(records: Sequence[Record]) -> Iterator[tuple[Edit, Edit, str]]:
    """Yields (better, worse, group) of each PreferenceRecord that is no tie. Raises RecordError for another kind."""
    for better, worse in preferences.preferred(records):
        yield Edit.of_record(better), Edit.of_record(worse), better.group


def difference(better: Judgement, worse: Judgement) -> Float64[np.ndarray, " k"]:
    """Gives what the better edit has more of each of DIMENSIONS, as a share of its scale: 0 of one that both lack, NaN
    where one of the two is not valid."""
    if not (better.valid and worse.valid):
        return np.full(len(DIMENSIONS), np.nan)
    share = lambda j, name: j.dimensions[name].share if name in j.dimensions else 0.0
    return np.array([share(better, name) - share(worse, name) for name in DIMENSIONS], np.float64)


def fit(differences: Float64[np.ndarray, "n k"], prior: float = PRIOR) -> Float64[np.ndarray, " k"]:
    """Returns the weights that maximise the likelihood of the preferences and the prior, none of them negative."""
    from scipy.optimize import minimize

    def loss(w):
        margin = differences @ w
        slope = -np.exp(-np.logaddexp(0, margin)) @ differences
        return np.logaddexp(0, -margin).sum() + w @ w / (2 * prior**2), slope + w / prior**2

    start = np.zeros(differences.shape[1])  # where a figure that tells nothing stays, exactly
    how = dict(jac=True, method="L-BFGS-B", options={"ftol": 1e-13, "gtol": 1e-8})
    return minimize(loss, start, bounds=[(0, None)] * len(start), **how).x


def figures(
    differences: Float64[np.ndarray, "n k"], known: Bool[np.ndarray, "n k"], groups: Sequence[str], seed: int = 0
) -> dict[str, Any]:
    """Fits the weights, and compares the fit with the final score and the mean verdict on the same pairs.

    differences: as `difference`, of DIMENSIONS. known: which of them the pairs have. A tie and a pair that is not valid
    are wrong. Gains are over the final score, paired, with 95% intervals that resample groups. `unweighed_pairs`: valid
    ones without a figure that has a weight; with these weights no edit of theirs has a reward. Raises ValueError where
    no figure tells the pairs apart, and for valid pairs of fewer than two groups.
    """
    usable, folds, each = ~np.isnan(differences).any(1), folds_of(list(groups), seed), differences[:, WEIGHED]
    if len(several := {g for g, u in zip(groups, usable) if u}) < 2:
        raise ValueError(f"{usable.sum()} valid pairs of {len(several)} groups: at least two groups are wanted")
    weights = fit(each[usable])
    if not weights.any():
        raise ValueError("no figure of this judge tells the pairs apart: there is nothing to weigh")
    margins = np.full(len(each), np.nan)
    for fold in np.unique(folds):
        margins[folds == fold] = each[folds == fold] @ fit(each[usable & (folds != fold)])
    column = lambda name: differences[:, DIMENSIONS.index(name)]
    margin = {"score": column("score"), "verdicts": column("verdicts"), "fit": margins}
    right = {name: (np.nan_to_num(x) > 0).astype(np.float64) for name, x in margin.items()}
    table = {}
    for name, correct in right.items():
        row = {"accuracy": float(correct.mean()), "ci95": list(interval(correct, groups))}
        table[name] = row | {"ties": int((margin[name] == 0).sum())}
        if name != "score":
            gain = correct - right["score"]
            table[name] |= {"gain": float(gain.mean()), "gain_ci95": list(interval(gain, groups))}
    scaled = np.round(weights / weights.sum(), 4)
    counts = {"n_pairs": len(each), "invalid_pairs": int((~usable).sum())}
    counts["unweighed_pairs"] = int((usable & ~known[:, WEIGHED][:, scaled > 0].any(1)).sum())
    named = {DIMENSIONS[i]: float(w) for i, w in zip(WEIGHED, scaled)}
    return {"weights": named, "slope": float(weights.sum()), **counts, "pairs": table}


def flags(weights: Mapping[str, float]) -> str:
    """Writes weights as a judge's flags."""
    return " ".join(["--reward categories", *(f"--weight-{name} {w:g}" for name, w in weights.items())])


def run(
    judge: Judge, pairs: Iterable[tuple[Edit, Edit, str]], output: str | Path, about: Mapping[str, Any], seed: int = 0
) -> dict[str, Any]:
    """Judges pairs (better, worse, group), CHUNK in memory at a time, fits, and returns what it wrote to
    `output`/fit.json.

    Raises ValueError for a judge without the verifier's figures, where no pair is valid, and as `figures`.
    """
    if missing := [name for name in DIMENSIONS if name not in judge.dimensions()]:
        raise ValueError(f"a fit wants a verifier with verdicts: this judge has no {', '.join(missing)}")
    rows, known, groups, problem = [], [], [], ""
    left = iter(pairs)
    while part := list(itertools.islice(left, CHUNK)):
        flat = judge.score([edit for better, worse, _ in part for edit in (better, worse)])
        rows += map(difference, flat[::2], flat[1::2])
        known += [[name in j.dimensions for name in DIMENSIONS] for j in flat[::2]]
        groups += [group for *_, group in part]
        problem = problem or next((j.problem for j in flat if not j.valid), "")
    if not rows or np.isnan(rows).any(1).all():
        raise ValueError(f"none of {len(rows)} pairs is valid" + (f", the first: {problem}" if problem else ""))
    found = figures(np.array(rows), np.array(known), groups, seed)
    found = {**about, **found, "flags": flags(found["weights"])}
    (Path(output) / "fit.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def summary(found: Mapping[str, Any]) -> str:
    """Says in lines what a fit found."""
    lines = [f"{found['n_pairs']} pairs, {found['invalid_pairs']} not valid"]
    if found["unweighed_pairs"]:
        lines.append(f"{found['unweighed_pairs']} without a figure that weighs: with these flags they are not valid")
    for name, row in found["pairs"].items():
        low, high = row["ci95"]
        line = f"{name:9} {row['accuracy']:.3f} ({low:.3f} to {high:.3f}), {row['ties']} ties"
        if "gain" in row:
            line += "; over the score {:+.3f} ({:+.3f} to {:+.3f})".format(row["gain"], *row["gain_ci95"])
        lines.append(line)
    return "\n".join([*lines, found["flags"]])
