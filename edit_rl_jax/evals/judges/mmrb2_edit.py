"""MMRB2, editing: pairs of answers to a prompt with one or more source images, judged both ways round.

Rows are the `pairs` of `edit.json` (`id`, `prompt_content` and `response_a.response_content` as lists of ["image",
path] and ["text", words], `chosen`), or the hub's (`pair_id`, `prompt_text`, `prompt_images`, `response_a_images`,
`response_b_images`, `chosen`). Each order counts once: a score of an edit does not know the order, so both agree; of
recorded verdicts the second is `verdict_reverse`, said where B was shown first. There is no tie among the labels.
Facts: facebookresearch/MMRB2, `compute_accuracy.py`, whose denominator leaves out what is missing; here it is wrong.
"""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.judges.cases import ORDER, Cases, Entry, edits, group_of, item, label_of, name_of, verdict
from edit_rl_jax.evals.judges.pairs import Outcome
from edit_rl_jax.evals.judges.ties import Ties, mean, order, outcome, pair_figures, statistic, table

AXES = ("overall",)
FILES = (("/edit.json", "/edit/"),)  # of the four tasks


def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    """Yields the pair of a row."""
    if "prompt_content" in row:
        sources, asked = _parts(row["prompt_content"])
        answers = [_parts(row[f"response_{side}"]["response_content"])[0] for side in "ab"]
    else:
        sources, asked = row["prompt_images"] or [], re.sub(r"\s*<image_\d+>\s*", " ", row["prompt_text"]).strip()
        answers = [row[f"response_{side}_images"] or [] for side in "ab"]
    source = str(row.get("prompt_source") or "")
    made = item(
        lambda: _label(where, row.get("chosen")), id=name_of(row, number), group=group_of(sources, asked), task=source
    )
    if not sources or any(len(a) != 1 for a in answers):
        yield made, _absent(where, sources, answers)
    else:
        yield made, edits(where, folder, sources, [a[0] for a in answers], asked)


def _label(where: str, chosen: Any) -> dict[str, Any]:
    label = label_of(where, {"a": "A", "b": "B"}.get(chosen, chosen) if isinstance(chosen, str) else chosen)
    if label["label"] == 0:
        raise RecordError(where, "unknown label", f"{chosen!r:.40}: there are no ties")
    return label


def _parts(content: Any) -> tuple[list[Any], str]:
    """Images and text of a list of ["image", path] and ["text", words]."""
    return [v for kind, v in content if kind == "image"], " ".join(v for kind, v in content if kind == "text")


def _absent(where: str, sources: Any, answers: Any) -> Any:
    def load() -> Any:
        counts = ", ".join(str(len(a)) for a in answers)
        raise RecordError(where, "missing image", f"{len(sources)} sources, answers of {counts} images")

    return load


def figures(cases: Cases, ties: Ties) -> dict[str, Any]:
    """Accuracy over both orders (the official one), over each, and how often both agree."""
    forward = order(cases)
    said = [verdict(p.reverse) for p in cases.predictions]
    back = np.array([np.nan if s is None else -ORDER[s] for s in said], np.float64)  # in terms of A and B
    scored = np.isnan(cases.said) & ~np.isnan(cases.differences)
    back = np.where(scored, forward, back)
    given = bool(scored.any()) or any(p.reverse is not None for p in cases.predictions)
    one, two = outcome(cases, forward == cases.labels), _both(cases, back)
    both = one
    if given:
        joined = lambda name: np.concatenate([getattr(one, name), getattr(two, name)])
        arrays = (joined("right"), joined("tied"), joined("invalid"))
        both = Outcome(*arrays, one.groups * 2, one.tasks * 2, one.kinds * 2)
    which = np.flatnonzero(~np.isnan(forward) & ~np.isnan(back))
    own = [cases.groups[i] for i in which]
    found = pair_figures(cases, ties)
    return {
        **found,
        **table("official_accuracy", both),
        "orders": "both" if given else "the given one only: no verdict_reverse is recorded",
        "n_judgements": len(both.right),
        "n_judgements_invalid": int(both.invalid.sum()),
        "forward": one.row(),
        **({"reverse": two.row()} if given else {}),
        **statistic("orders_agree", lambda at: mean((forward == back)[which][at].astype(np.float64)), own),
        "by_source": both.by(both.tasks) if any(both.tasks) else {},
    }


def _both(cases: Cases, back: np.ndarray) -> Outcome:
    """The outcome of the reverse order; `back` is A's order as it was said there, float [n]."""
    valid = ~np.isnan(back) & ~np.isnan(cases.labels)
    tasks = tuple(i.task for i in cases.items)
    right = (back == cases.labels).astype(np.float64)
    return Outcome(right, (back == 0) & valid, ~valid, tuple(cases.groups), tasks, tasks)
