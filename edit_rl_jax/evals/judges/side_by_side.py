"""Several evaluations of the same pairs side by side: modes of one verifier, or a judge before and after training.

Each folder is what `editworld.run` left: eval.json, and pairs.jsonl with a line a pair.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax import json_files
from edit_rl_jax.evals.judges.pairs import Outcome, Pair
from edit_rl_jax.evals.statistics import interval


def lines(pairs: Sequence[Pair], outcome: Outcome) -> list[dict[str, Any]]:
    """Gives a line of pairs.jsonl for each pair: its name, its group, and 1 or 0 for right, tied, invalid."""
    name = lambda p: f"{p.better.key}|{p.worse.key}"
    flags = zip(outcome.right, outcome.tied, outcome.invalid)
    return [
        {"pair": name(p), "group": str(p.better.group or name(p)), "right": int(r), "tied": int(t), "invalid": int(i)}
        for p, (r, t, i) in zip(pairs, flags, strict=True)
    ]


def read(folder: Path) -> tuple[dict[str, Any], dict[str, dict[str, Any]]]:
    """Reads (eval.json, the lines by pair). Raises OSError, or ValueError naming the file."""
    file, rows = folder / "pairs.jsonl", {}
    with open(file, "rb") as f:
        for where, line in json_files.numbered(f, str(file)):
            row = json_files.loads(line, where)
            if not isinstance(row, dict) or not {"pair", "group", "right"} <= row.keys() or row["right"] not in (0, 1):
                raise ValueError(f"{where}: no line of pairs.jsonl")
            rows[row["pair"]] = row
    return json_files.read_object(folder / "eval.json"), rows


def table(folders: Sequence[str | Path]) -> list[dict[str, Any]]:
    """Makes a row for each folder: its figures, and the gain over the first folder with a paired 95% interval by group.

    Raises OSError, or ValueError where a folder's pairs are not those of the first.
    """
    read_ = [(str(folder), *read(Path(folder))) for folder in folders]
    _, _, first = read_[0]
    out = []
    for name, figures, rows in read_:
        if rows.keys() != first.keys() or not rows:
            raise ValueError(f"{name}: its {len(rows)} pairs are not the {len(first)} of {read_[0][0]}")
        gains = np.array([rows[pair]["right"] - first[pair]["right"] for pair in first], np.float64)
        said = figures.get("verdicts", {})
        row = {"folder": name, "model": figures.get("model"), "mode": figures.get("settings", {}).get("mode")}
        row |= {k: figures[k] for k in ("pair_accuracy", "pair_accuracy_ci95", "n_pairs", "ties", "invalid_pairs")}
        row |= {f"verdict_{k}": said[k] for k in ("accuracy", "accuracy_ci95", "balanced_accuracy") if k in said}
        if out:
            groups = [first[pair]["group"] for pair in first]
            row |= {"gain": float(gains.mean()), "gain_ci95": list(interval(gains, groups))}
        out.append(row)
    return out


def text(rows: Sequence[dict[str, Any]]) -> str:
    """Writes the table as Markdown."""

    def show(row: dict[str, Any], key: str, form: str = "{:.3f}") -> str:
        if row.get(key) is None:
            return "–"
        return f"{form} ({form} to {form})".format(row[key], *row[f"{key}_ci95"])

    out = ["| folder | mode | pair accuracy | gain over the first | verdicts right | ties | unread |"]
    out.append("|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row["folder"], row["mode"] or "–", show(row, "pair_accuracy"), show(row, "gain", "{:+.3f}")]
        cells += [show(row, "verdict_accuracy"), str(row["ties"]), str(row["invalid_pairs"])]
        out.append(f"| {' | '.join(cells)} |")
    return "\n".join(out)
