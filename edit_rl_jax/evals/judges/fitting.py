"""Fits a verifier's reward to people's pairs: how much its final score and the verdicts of each category weigh.

Which edit is preferred is taken as logistic in what the figures of the better one have more (Bradley-Terry), with
weights that are not negative and a weak prior; they are then scaled to sum to 1, as the reward "categories" takes them.
Accuracies are cross-fitted: pairs of a fold are judged with the weights of the other folds, which share no source.
"""

import itertools
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from edit_rl_jax.data.records import EditRecord, PreferenceRecord, Record, expect
from edit_rl_jax.evals.judges.dimensions import figure
from edit_rl_jax.evals.judges.ties import folds_of
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.edit_rrm.aggregate import DIMENSIONS

FIGURES = tuple(name for name in DIMENSIONS if name != "verdicts")  # which is a mean of the others
PRIOR = 10.0  # standard deviation of a weight before it is scaled
CHUNK = 256  # pairs judged between two writes of the cache


def preferred(records: Sequence[Record]) -> Iterator[tuple[Edit, Edit, str]]:
    """Yields (better, worse, group) of each PreferenceRecord that is no tie. Raises RecordError for another kind."""
    for record in records:
        record = expect(record, PreferenceRecord)
        if record.prefers and not record.meta.get("tie"):
            about = dict(source=record.source, instruction=record.instruction, meta=record.meta)
            first, second = (Edit.of_record(EditRecord(key=record.key, edited=x, **about)) for x in record.edited)
            pair = (first, second) if record.prefers > 0 else (second, first)
            yield *pair, str(record.group or record.key)


def differences(judged: Sequence[tuple[Judgement, Judgement]]) -> Float64[np.ndarray, "n k"]:
    """Gives what the better edit has more of each of FIGURES, as shares of its scale; a figure that a judgement lacks
    is 0, NaN where one of the two is not valid."""

    def shares(judgement: Judgement) -> list[float]:
        known = judgement.dimensions
        return [known[name].share if name in known else 0.0 for name in FIGURES]

    out = np.full((len(judged), len(FIGURES)), np.nan)
    for row, (better, worse) in zip(out, judged):
        if better.valid and worse.valid:
            row[:] = np.subtract(shares(better), shares(worse))
    return out


def fit(differences: Float64[np.ndarray, "n k"], prior: float = PRIOR) -> Float64[np.ndarray, " k"]:
    """Returns the weights that maximise the likelihood of the preferences and the prior, none of them negative."""
    from scipy.optimize import minimize

    def loss(w):
        margin = differences @ w
        share = -np.exp(-np.logaddexp(0, margin))  # derivative of log(1 + exp(-margin))
        value = np.logaddexp(0, -margin).sum() + (w @ w) / (2 * prior**2)
        return value, share @ differences + w / prior**2

    start = np.ones(differences.shape[1])
    return minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None)] * len(start)).x


def figures(judged: Sequence[tuple[Judgement, Judgement]], groups: Sequence[str], seed: int = 0) -> dict[str, Any]:
    """Fits the weights, and compares the fit with the final score and the mean verdict on the same pairs.

    A tie and a pair that is not valid are wrong. Gains are over the final score, paired, with 95% intervals that
    resample groups. Raises ValueError where no figure tells the pairs apart, and for fewer than two groups.
    """
    found = differences(judged)
    usable, folds = ~np.isnan(found).any(1), folds_of(list(groups), seed)
    if len(set(groups)) < 2:
        raise ValueError(f"{len(judged)} pairs of {len(set(groups))} source: at least two are wanted")
    weights = fit(found[usable])
    if not (weights.sum() > 1e-6):
        raise ValueError("no figure of this judge tells the pairs apart: there is nothing to weigh")
    margins = np.full(len(judged), np.nan)
    for fold in np.unique(folds):
        margins[folds == fold] = found[folds == fold] @ fit(found[usable & (folds != fold)])
    more = lambda name: np.array([_more(figure(a, name), figure(b, name)) for a, b in judged])
    each = {"score": more("score"), "verdicts": more("verdicts"), "fit": margins}
    right = {name: (np.nan_to_num(x) > 0).astype(np.float64) for name, x in each.items()}
    table = {}
    for name, correct in right.items():
        row = {"accuracy": float(correct.mean()), "ci95": list(interval(correct, groups))}
        table[name] = row | {"ties": int((each[name] == 0).sum())}
        if name != "score":
            gain = correct - right["score"]
            table[name] |= {"gain": float(gain.mean()), "gain_ci95": list(interval(gain, groups))}
    scaled = {name: round(float(w), 4) for name, w in zip(FIGURES, weights / weights.sum())}
    counts = {"n_pairs": len(judged), "invalid_pairs": int((~usable).sum())}
    return {"weights": scaled, "slope": float(weights.sum()), **counts, "pairs": table}


def _more(better: float | None, worse: float | None) -> float:
    return np.nan if better is None or worse is None else better - worse


def flags(weights: Mapping[str, float]) -> str:
    """Writes weights as a judge's flags."""
    return " ".join(["--reward categories", *(f"--weight-{name} {w:g}" for name, w in weights.items())])


def run(
    judge: Judge, pairs: Iterable[tuple[Edit, Edit, str]], output: str | Path, about: Mapping[str, Any], seed: int = 0
) -> dict[str, Any]:
    """Judges pairs (better, worse, group), CHUNK in memory at a time, fits, and returns what it wrote to
    `output`/fit.json.

    Raises ValueError for a judge without the verifier's figures, and as `figures`.
    """
    if not set(FIGURES) <= set(judge.dimensions()):
        raise ValueError(f"a fit wants a judge of {', '.join(FIGURES)}; this one has {', '.join(judge.dimensions())}")
    judged: list[tuple[Judgement, Judgement]] = []
    groups: list[str] = []
    left = iter(pairs)
    while part := list(itertools.islice(left, CHUNK)):
        flat = judge.score([edit for better, worse, _ in part for edit in (better, worse)])
        judged += zip(flat[::2], flat[1::2])
        groups += [group for *_, group in part]
    found = figures(judged, groups, seed)
    found = {**about, **found, "flags": flags(found["weights"])}
    (Path(output) / "fit.json").write_text(json.dumps(found, indent=2) + "\n")
    return found


def summary(found: Mapping[str, Any]) -> str:
    """Says in lines what a fit found."""
    lines = [f"{found['n_pairs']} pairs, {found['invalid_pairs']} not valid"]
    for name, row in found["pairs"].items():
        low, high = row["ci95"]
        line = f"{name:9} {row['accuracy']:.3f} ({low:.3f} to {high:.3f}), {row['ties']} ties"
        if "gain" in row:
            line += "; over the score {:+.3f} ({:+.3f} to {:+.3f})".format(row["gain"], *row["gain_ci95"])
        lines.append(line)
    return "\n".join([*lines, found["flags"]])
