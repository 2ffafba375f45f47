"""EditReward-Compass: pairs in three dimensions: instruction adherence (IA), visual consistency (VC), quality (VQ).

Rows: `dimension`, `source_image`, `prompt`, `winner`, `loser`, `label` (preference or tie). A preference counts where
the winner's score is strictly higher, a tie where both differ by less than 1e-5; the main figure is the mean of the
dimensions' accuracies. A judge is measured by its dimension that answers (`dimensions.AXES`). Facts:
bxhsort/Edit-Compass-and-EditReward-Compass, `EditReward-Compass/eval.py`.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.judges.cases import Cases, Entry, edits, group_of, item, label_of, name_of
from edit_rl_jax.evals.judges.ties import Ties, order, outcome, table, without_ties
from edit_rl_jax.evals.statistics import macro_interval

AXES = ("IA", "VC", "VQ")
NEAR = 1e-5


def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    """Yields the pair of a row, the winner first."""
    if row["dimension"] not in AXES:
        raise RecordError(where, "unknown dimension", f"{row['dimension']!r:.40}")
    source, asked = row["source_image"], row["prompt"]
    about = dict(id=name_of(row, number), group=group_of(source, asked), axis=row["dimension"], task=row["dimension"])
    load = edits(where, folder, source, [row["winner"], row["loser"]], asked)
    yield item(lambda: _label(where, row.get("label")), same=row["winner"] == row["loser"], **about), load


def _label(where: str, said: Any) -> dict[str, Any]:
    if said not in ("preference", "tie"):
        raise RecordError(where, "unknown label", f"{said!r:.40}")
    return label_of(where, said)


def figures(cases: Cases, ties: Ties) -> dict[str, Any]:
    """Each dimension's accuracy and their mean (the official one)."""
    near = np.where(np.isnan(cases.said), np.abs(cases.differences) < NEAR, cases.said == 0)
    right = np.where(cases.labels == 0, near, order(cases) == cases.labels)
    found = outcome(cases, right)
    axes = [i.axis for i in cases.items]
    known = np.array([axis in AXES for axis in axes], bool)  # a row of no dimension counts in the pooled figures
    part, names = found.where(known), [axis for axis in axes if axis in AXES]
    rows = part.by(names)
    means = [row["accuracy"] for row in rows.values()]
    alone = without_ties(cases)
    interval = list(macro_interval(part.right, names, part.groups)) if means else None
    return {
        "official_accuracy": float(np.mean(means)) if means else None,
        "official_accuracy_ci95": interval,
        **table("accuracy_with_ties", found),
        **table("accuracy_without_ties", alone),
        "n": len(axes),
        "n_without_ties": len(alone.right),
        "n_invalid": int(found.invalid.sum()),
        "tie_threshold": NEAR,
        "tie_threshold_from": "fixed by the benchmark",
        "by_dimension": {axis: rows[axis] for axis in AXES if axis in rows},
        "missing_dimensions": [axis for axis in AXES if axis not in rows],
    }
