"""GenAI-Bench, image editing: votes for the left or the right edit, both good, both bad.

Rows as on the hub (`source_image`, `left_output_image`, `right_output_image`, `instruct_prompt`, `vote_type`), or
EditReward's (`aurora_bench`). The official figure is the released code's: the verdict matches the vote, one of four;
a verdict A=B, which does not say how good, matches both kinds of tie. A judge of scores says "good" where the mean of
both is above a level that is chosen like the threshold of ties. Merging both kinds of tie gives the figures with ties,
which are EditReward's. Facts: TIGER-AI-Lab/GenAI-Bench, `inference.py`.
"""

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.evals.judges import aurora_bench
from edit_rl_jax.evals.judges.cases import BAD, GOOD, TIE, Cases, Entry, edits, group_of, item, label_of, name_of
from edit_rl_jax.evals.judges.ties import Ties, chosen, order, outcome, pair_figures, table, threshold, upstream_pairs

AXES = ("overall",)
FILES = (("/image_edition/",), ("/test_v1",))  # of the hub's, which has other tasks and an older split
SIDES = ("left_output_image", "right_output_image")


def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    """Yields the pair of a row; the name is the row's `idx`, as in the results that the benchmark publishes, else its
    number."""
    if "path1" in row:
        yield from aurora_bench.parse(where, number, row, folder)
        return
    source, asked = row["source_image"], row["instruct_prompt"]
    about = dict(id=name_of(row, number), group=group_of(source, asked))
    shown = [row[s] for s in SIDES]
    load = edits(where, folder, source, shown, asked)
    yield item(lambda: label_of(where, row.get("vote_type")), same=shown[0] == shown[1], **about), load


def words(cases: Cases, at: np.ndarray, good: np.ndarray) -> list[str]:
    """Returns one of the four verdicts for each pair: what was said, or by scores and thresholds (float [n])."""
    level = cases.scores.mean(1)
    names = {1: "A>B", -1: "B>A"}
    found = zip(cases.words, order(cases, at), level > good)
    return [said or names.get(o, GOOD if g else BAD) for said, o, g in found]


def matches(said: str, label: str) -> bool:
    """The released code's rule; where the label does not say how good a tie is, any tie matches it."""
    return said == label or (TIE in (said, label) and said in (TIE, GOOD, BAD) and label in (TIE, GOOD, BAD))


def best_level(level: np.ndarray, good: np.ndarray) -> float:
    """Returns the level above which most ties are rightly called good (bool [n]); infinity where none should be."""
    candidates = np.concatenate([[math.inf], np.unique(level)[::-1], [-math.inf]])
    right = [np.sum((level > c) == good) for c in candidates]
    return float(candidates[int(np.argmax(right))])


def figures(cases: Cases, ties: Ties) -> dict[str, Any]:
    """The figures of pairs, the official one by four verdicts."""
    at, level = threshold(cases, ties), cases.scores.mean(1)
    text = [i.text for i in cases.items]
    kind = np.array([t in (GOOD, BAD) for t in text], bool) & cases.usable & np.isnan(cases.said)
    fit = lambda keep: best_level(level[keep], np.array([t == GOOD for t in text], bool)[keep])
    how = Ties("held-out", ties.seed) if isinstance(ties.how, float) else ties
    good = chosen(fit, kind, cases.groups, how, "good_threshold", math.inf)
    said = words(cases, at.each, good.each)
    four = outcome(cases, np.array([matches(*both) for both in zip(said, text)], bool), at.each)
    exact = outcome(cases, np.array([a == b for a, b in zip(said, text)], bool), at.each)
    labels = ("A>B", "B>A", GOOD, BAD, TIE)
    return {
        **pair_figures(cases, ties, at),
        **table("official_accuracy", four),
        **table("accuracy_of_equal_words", exact),
        **good.about,
        "verdicts_without_kind": sum(w == TIE for w in cases.words),
        "votes": {label: text.count(label) for label in labels if label in text},
        "by_vote": {k: four.where(np.array([t == k for t in text], bool)).row() for k in labels if k in text},
        **({"upstream": upstream_pairs(cases)} if ties.upstream else {}),
    }
