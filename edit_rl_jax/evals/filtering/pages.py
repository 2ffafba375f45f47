"""What a filtered dataset looks like: figures, histogram, and the pictures that were kept and dropped."""

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from edit_rl_jax.data.images import ImageError, decode_image
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.filtering.ranking import LOW, REST, Table
from edit_rl_jax.evals.pictures import montage
from edit_rl_jax.training.report import DRAWING, write_report

SHOWN, BINS = 8, 40


def write(
    folder: Path,
    table: Table,
    rank: Int64[np.ndarray, "n"],
    keep: Bool[np.ndarray, "n"],
    about: Mapping[str, Any],
    source: Sequence[EditRecord] | None = None,
) -> dict[str, Any]:
    """Writes eval.json, histogram.png and report.html, and where there are images montage_kept.png and
    montage_dropped.png; returns what eval.json holds. about: facts for it."""
    left = (rank > 0) & ~keep
    low = 0 if (least := about["choice"]["min_score"]) is None else int((table.score < least).sum())
    figures = {
        "job": "filter_data",
        "n": len(rank),
        "n_kept": int(keep.sum()),
        "dropped": {REST: int(left.sum()) - low, LOW: low, "no score": int((rank == 0).sum())},
        "no_score": dict(table.problems.most_common(20)),
        "no_score_first": [f"{key}: {problem}" for key, problem in table.unscored],
        "scores": {"kept": _spread(table.score[keep]), "dropped": _spread(table.score[left])},
        **about,
    }
    (folder / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    pictures = {"How many edits have which score": histogram(table.score[keep], table.score[left])}
    (folder / "histogram.png").write_bytes(pictures["How many edits have which score"])
    for name, which in (("kept", keep), ("dropped", left)):
        page = examples(source, table.score, rank, which) if source is not None else None
        (folder / f"montage_{name}.png").unlink(missing_ok=True)  # of a run that was killed, by another choice
        if page:
            (folder / f"montage_{name}.png").write_bytes(page)
            pictures[f"What was {name}, from the best to the last: source, edit"] = page
    write_report(folder, pictures=pictures)
    return figures


def _spread(scores: Float64[np.ndarray, "m"]) -> dict[str, float | None]:
    names, shares = ("lowest", "quarter", "median", "three_quarters", "highest"), (0, 0.25, 0.5, 0.75, 1)
    if not len(scores):
        return dict.fromkeys(("mean", *names))
    return {"mean": float(scores.mean())} | dict(zip(names, np.quantile(scores, shares).tolist()))


def histogram(kept: Float64[np.ndarray, "k"], dropped: Float64[np.ndarray, "d"]) -> bytes:
    """Draws how many kept and dropped edits have which score, as a PNG."""
    import matplotlib.style
    from matplotlib.figure import Figure

    with DRAWING, matplotlib.style.context("default"):
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        counted = {"kept": kept, "dropped": dropped}
        both = [x for x in counted.values() if len(x)]
        if both:
            edges = np.histogram_bin_edges(np.concatenate(both), BINS)
            counts = [np.histogram(x, edges)[0] for x in counted.values()]
            axes.bar(edges[:-1], counts[0], np.diff(edges), align="edge", label=f"kept ({len(kept):,})")
            label = f"dropped ({len(dropped):,})"
            axes.bar(edges[:-1], counts[1], np.diff(edges), counts[0], align="edge", label=label)
            axes.legend(frameon=False)
        axes.set(xlabel="score", ylabel="edits")
        file = io.BytesIO()
        figure.savefig(file, format="png", dpi=120, metadata={"Software": None})
    return file.getvalue()


def examples(
    source: Sequence[EditRecord],
    score: Float64[np.ndarray, "n"],
    rank: Int64[np.ndarray, "n"],
    which: Bool[np.ndarray, "n"],
) -> bytes | None:
    """Draws edits, evenly spread from the best to the last by score, as a PNG: source and edit, the score below."""
    found = np.flatnonzero(which)
    found = found[np.lexsort((rank[found], -score[found]))]
    rows = []
    for i in found[np.unique(np.linspace(0, len(found) - 1, min(SHOWN, len(found))).astype(int))].tolist():
        record = source[i]
        try:
            cells = [(decode_image(record.source), record.key[-26:])]
            cells += [(decode_image(record.edited), f"{score[i]:.4g}, rank {rank[i]}")]
        except ImageError:  # a judge that looks at none may have scored it
            continue
        rows.append((record.instruction, cells))
    return montage(rows) if rows else None


def summary(figures: Mapping[str, Any]) -> str:
    """The figures in a few lines."""
    dropped = ", ".join(f"{n} {why}" for why, n in figures["dropped"].items() if n)
    lines = [f"{figures['n']} edits: {figures['n_kept']} kept" + (f"; dropped: {dropped}" if dropped else "")]
    first = figures["no_score_first"]
    lines += [f"  no score: {x}" for x in first[:3]]
    if len(first) > 3:
        lines.append(f"  and {figures['dropped']['no score'] - 3} more; manifest.jsonl names all")
    return "\n".join(lines)
