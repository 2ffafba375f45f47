"""ImagenHub: people's ratings of single edits of several editors.

Rows: `instruction`, `input_path`, `output_path`, `score`, `model`. The figure is the rank correlation within each
editor, averaged. The released code of EditReward averages raw correlations and then takes the tanh, as if they had been
Fisher's z: that is the published figure, and stands here as `official_spearman`; `spearman` is without. Its second form
correlates within each instruction, and all edits after standardising the scores of each instruction.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.evals.judges.cases import Cases, Entry, edits, group_of, item, name_of, rating_of
from edit_rl_jax.evals.judges.ratings import (
    interval_of,
    known,
    mean_within,
    numbered,
    rated,
    rating_figures,
    standardised,
    within,
)
from edit_rl_jax.evals.judges.ties import Ties
from edit_rl_jax.evals.statistics import spearman

AXES = ("overall",)
RATED = True


def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    """Yields the rated edit of a row."""
    source, asked = row["input_path"], row["instruction"]
    editor = str(row.get("model", "unknown"))
    about = dict(id=name_of(row, number), group=group_of("", asked), task=editor, text="rating")
    load = edits(where, folder, source, [row["output_path"]], asked)
    yield item(lambda: rating_of(where, row.get("score")), **about), load


def second_form(cases: Cases, seed: int = 0) -> dict[str, Any]:
    """Upstream's second form: the mean correlation within instructions that have at least two edits and vary, and the
    correlation of all edits of such with at least two, scores standardised within each."""
    keep, pick = rated(cases)
    groups = [g for g, k in zip(cases.groups, keep) if k]
    parts, scores, ratings = numbered(groups), pick(cases.scores[:, 0]), pick(cases.labels)
    several = np.bincount(parts, minlength=1)[parts] > 1 if len(parts) else np.zeros(0, bool)
    own = [g for g, s in zip(groups, several) if s]
    parts, scores, ratings = parts[several], scores[several], ratings[several]
    even = standardised(scores, parts)
    whole = lambda i: spearman(even[i], ratings[i]) if len(i) > 1 else math.nan
    each = within(scores, ratings, parts)
    means = np.array([each[int(p)] for p in parts])  # of an edit's instruction
    lead = np.isin(np.arange(len(parts)), np.unique(parts, return_index=True)[1])  # the first edit of each
    averaged = lambda i: _mean(means[i][lead[i]])  # an instruction that is drawn twice counts twice
    return {
        "spearman_within_instruction": known(mean_within(scores, ratings, parts)),
        "spearman_within_instruction_ci95": interval_of(averaged, own, seed),
        "spearman_standardised": known(whole(np.arange(len(parts)))),
        "spearman_standardised_ci95": interval_of(whole, own, seed),
        "instructions": len(set(cases.groups)),
        "instructions_counted": int(np.sum(~np.isnan(means[lead]))) if len(parts) else 0,
    }


def _mean(values: np.ndarray) -> float:
    good = values[~np.isnan(values)]
    return float(good.mean()) if len(good) else math.nan


def figures(cases: Cases, ties: Ties) -> dict[str, Any]:
    """Correlations, the official one with upstream's tanh, and the second form."""
    found = rating_figures(cases, ties.seed)
    by_model, bent = found.pop("by_model"), lambda v: None if v is None else math.tanh(v)
    ends = found["spearman_ci95"]
    return {
        "official_spearman": bent(found["spearman"]),
        "official_spearman_ci95": ends and [math.tanh(v) for v in ends],
        "official_spearman_is": "tanh of the mean of the editors' correlations (upstream's)",
        **found,
        "second_form": second_form(cases, ties.seed),
        "by_model": by_model,
    }
