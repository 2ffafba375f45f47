"""AURORA-Bench: people's preferences of pairs, and their ratings of single edits of several editors.

Rows of pairs are EditReward's (`prompt`, `path_src`, `path1`, `path2`, and `model1_dim1_score` and `model2_dim1_score`,
whose order is the label), of ratings its `prompt`, `input`, `gen`, `score`, `model`. Pairs are judged with and without
ties; ratings by the rank correlation within each editor, and its mean. Facts: TIGER-AI-Lab/EditReward, `eval_bench.py`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.evals.judges.cases import Cases, Entry, edits, group_of, item, label_of, name_of, rating_of
from edit_rl_jax.evals.judges.ratings import rating_figures
from edit_rl_jax.evals.judges.ties import Ties, pair_figures, upstream_pairs

AXES = ("overall",)
RATED = True


def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    """Yields the pair or the rated edit of a row."""
    asked, name = row["prompt"], name_of(row, number)
    if "path1" not in row:
        about = dict(id=name, group=group_of(row["input"], asked), task=str(row.get("model", "unknown")))
        load = edits(where, folder, row["input"], [row["gen"]], asked)
        yield item(lambda: rating_of(where, row.get("score")), text="rating", **about), load
        return
    about = dict(id=name, group=group_of(row["path_src"], asked))
    load = edits(where, folder, row["path_src"], [row["path1"], row["path2"]], asked)
    yield item(lambda: _label(where, row), same=row["path1"] == row["path2"], **about), load


def _label(where: str, row: Mapping[str, Any]) -> dict[str, Any]:
    first, second = (rating_of(where, row.get(f"model{i}_dim1_score"))["label"] for i in (1, 2))
    return label_of(where, "A>B" if first > second else "B>A" if first < second else "A=B")


def figures(cases: Cases, ties: Ties) -> dict[str, Any]:
    """The figures of pairs, and of ratings under `pointwise`, where there are such."""
    rated = np.array([i.text == "rating" for i in cases.items], bool)
    found = {} if rated.all() and len(rated) else pair_figures(cases.where(~rated), ties)
    if ties.upstream and found:
        found["upstream"] = upstream_pairs(cases.where(~rated))
    if not rated.any():
        return found
    pointwise = rating_figures(cases.where(rated), ties.seed)
    by_model = pointwise.pop("by_model")
    counts = {} if found else {"n": pointwise["n"], "n_invalid": pointwise["n_invalid"]}
    flat = {f"pointwise_{name}": value for name, value in pointwise.items()}
    return {**found, **counts, **flat, "pointwise_by_model": by_model}
