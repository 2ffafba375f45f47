"""EditReward-Bench of TIGER-AI-Lab: two, three or four edits of one input, ordered by people.

Rows are pairs as on the hub (`id`, `instruction`, `source_image`, `candidate_1`, `candidate_2`, `ranking`,
`comparison_type`, `num_candidates`; a group is what stands before the `_` of the id), or groups as the released code
reads them (`prompt`, `path_src`, `paths_generated`, `human_vote.ranking`). A group is strictly right where all its
pairs are: of a tie, the scores must differ by at most the threshold that is chosen on the pairs of K = 2; any other
pair goes by order alone, even within that threshold (so strict K = 2 is at least its accuracy with ties), and equal
scores are no order. By pairs: with ties for K = 2 and for all together, without for K = 3 and 4. Facts:
TIGER-AI-Lab/EditReward, `eval_bench.py`, `inference_3pair_hf.py`.
"""

import functools
import itertools
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.judges import ties as T
from edit_rl_jax.evals.judges.cases import TIE, Cases, Entry, edits, item, label_of, name_of
from edit_rl_jax.evals.judges.pairs import Outcome

AXES = ("overall",)
SIZES = (2, 3, 4)


def parse(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    """Yields the pairs of a row."""
    if "paths_generated" in row:
        yield from _of_group(where, number, row, folder)
        return
    name = name_of(row, number)
    kind = re.fullmatch(r"([A-D])vs([A-D])", str(row.get("comparison_type") or "AvsB"))
    if not kind:
        raise RecordError(where, "unknown comparison", f"{row['comparison_type']!r:.40}")
    size = _size(row) or 2
    letters, asked = kind[1] + kind[2], row["instruction"]
    task, group = f"K={size}", f"{size}pair {name.partition('_')[0]}"
    shown = [row["candidate_1"], row["candidate_2"]]
    about = dict(id=name, group=group, task=task, letters=letters, same=shown[0] == shown[1])
    load = edits(where, folder, row["source_image"], shown, asked)
    yield item(lambda: _label(where, row.get("ranking"), letters), **about), load


def _size(row: Mapping[str, Any]) -> int:
    """K of a row: of "3pair", else the number of candidates; 0 where it says neither."""
    told = re.match(r"([234])pair", str(row.get("dataset") or ""))
    return int(told[1]) if told else int(row.get("num_candidates") or 0)


def _label(where: str, ranking: Any, letters: str) -> dict[str, Any]:
    """The label of a row, which must be in its own letters."""
    if isinstance(ranking, str) and "=" not in ranking and set(ranking) & set("ABCD") != set(letters):
        raise RecordError(where, "unknown label", f"{ranking!r:.60} for {' and '.join(letters)}")
    return label_of(where, ranking, letters)


def labelled(name: str, row: Mapping[str, Any]) -> dict[str, Any]:
    """Reads off the id of a recorded label what a row of the data says: group, letters, K where it is written."""
    kind = re.search(r"(?:^|_)([A-D])vs([A-D])$", str(row.get("comparison_type") or name))
    size = _size(row)
    return {
        "group": str(row.get("group") or name.partition("_")[0]),
        "task": f"K={size}" if size else "",
        "letters": kind[1] + kind[2] if kind else "AB",
    }


def _of_group(where: str, number: int, row: Mapping[str, Any], folder: Path) -> Iterable[Entry]:
    paths, ranking = row["paths_generated"], row["human_vote"]["ranking"]
    name, size, asked = name_of(row, number), len(paths), row["prompt"]
    if size not in SIZES:
        raise RecordError(where, "malformed row", f"{size} edits")
    name = name if "id" in row else f"{size}pair-{name}"
    ranks = _ranks(str(ranking), size)

    def label(i: int, j: int) -> dict[str, Any]:
        if ranks is None:
            raise RecordError(where, "unknown label", f"{ranking!r:.60}")
        order = float(np.sign(ranks[j] - ranks[i]))
        return {"label": order, "text": {1.0: "A>B", -1.0: "B>A"}.get(order, ranking if size == 2 else TIE)}

    for i, j in itertools.combinations(range(size), 2):
        letters = "ABCD"[i] + "ABCD"[j]
        about = dict(id=f"{name}_{letters[0]}vs{letters[1]}", group=f"{size}pair {name}", task=f"K={size}")
        load = edits(where, folder, row["path_src"], [paths[i], paths[j]], asked)
        yield item(functools.partial(label, i, j), letters=letters, same=paths[i] == paths[j], **about), load


def _ranks(ranking: str, size: int) -> list[int] | None:
    """Places by candidate, 0 for the best, from "B>A=C"; None where it is no order of all candidates."""
    ranking = re.sub(r"=(Good|Bad)$", "", "".join(ranking.split()))
    ranking = ">".join(reversed(ranking.split("<"))) if "<" in ranking and ">" not in ranking else ranking
    places = [part.split("=") for part in ranking.split(">")]
    if sorted(c for part in places for c in part) != list("ABCD"[:size]):
        return None
    where = {c: n for n, part in enumerate(places) for c in part}
    return [where[c] for c in "ABCD"[:size]]


def sizes(cases: Cases) -> list[str]:
    """Names "K=2", ... for each pair; of labels that do not say, by the pairs of its group."""
    groups = cases.groups
    count = {g: n for g, n in zip(*np.unique(groups, return_counts=True))} if groups else {}
    by_pairs = {1: "K=2", 3: "K=3", 6: "K=4"}
    known = lambda i: not i.problem or i.group != i.id  # a malformed row knows nothing of its group
    return [i.task or (by_pairs.get(int(count[i.group]), "?") if known(i) else "?") for i in cases.items]


def strict(cases: Cases, right: np.ndarray, task: list[str]) -> tuple[Outcome, list[str]]:
    """The outcome of whole groups, and those that lack pairs, which are wrong; `right` is of pairs, bool [n]."""
    members: dict[str, list[int]] = {}
    for i, group in enumerate(cases.groups):
        members.setdefault(group, []).append(i)
    wanted = {f"K={k}": math.comb(k, 2) for k in SIZES}
    whole = {g: len(at) == wanted.get(task[at[0]]) for g, at in members.items()}
    good = [float(whole[g] and right[at].all()) for g, at in members.items()]
    invalid = np.array([not (whole[g] and cases.usable[at].all()) for g, at in members.items()], bool)
    kinds = tuple(task[at[0]] for at in members.values())
    none = np.zeros(len(good), bool)
    return Outcome(np.array(good), none, invalid, tuple(members), kinds, kinds), [g for g, w in whole.items() if not w]


def figures(cases: Cases, ties: T.Ties) -> dict[str, Any]:
    """Strict accuracy over all groups (the official one) and for each K, and the table of pairs."""
    task = sizes(cases)
    is_size = {k: np.array([t == k for t in task], bool) for k in dict.fromkeys(task)}
    two = is_size.get("K=2", np.zeros(len(task), bool))
    of_two = T.threshold(cases.where(two), ties)
    at = np.zeros(len(task))
    at[two] = of_two.each
    # a tie of K >= 3, which the published data has not: by the threshold of K = 2
    at[~two] = of_two.about["tie_threshold"] or 0.0
    groups, broken = strict(cases, T.by_order(cases, at), task)
    by_pairs = {}
    for k, keep in is_size.items():
        part = cases.where(keep)
        by_pairs[k] = (T.with_ties(part, at[keep]) if k == "K=2" else T.without_ties(part)).row()
    of_all = T.threshold(cases, ties)
    by_pairs["all"] = T.with_ties(cases, of_all.each).row()
    return {
        **T.pair_figures(cases, ties, of_all),
        **T.table("official_accuracy", groups),
        "n_groups": len(groups.right),
        "n_groups_right": int(groups.right.sum()),
        "n_groups_invalid": int(groups.invalid.sum()),
        "tie_threshold_of_2": of_two.about["tie_threshold"],
        "strict": groups.by(groups.tasks) | {"all": groups.row()},
        "pairwise": by_pairs,
        "incomplete_groups": {"n": len(broken), "ids": broken[:20]},
        **({"upstream": upstream(cases, task)} if ties.upstream else {}),
    }


def upstream(cases: Cases, task: list[str]) -> dict[str, Any]:
    """The released code's figures, of pairs with scores: thresholds chosen on the test set; of equal scores the later
    candidate is first; the label A=B is taken for A>B by pairs, and is always wrong strictly."""
    scored = cases.usable & np.isnan(cases.said)
    misread = np.array([i.text == TIE and k == "K=2" for i, k in zip(cases.items, task)], bool)
    labels, differences = np.where(misread, 1.0, cases.labels), cases.differences
    size = lambda k: np.array([t == k for t in task], bool) & scored
    epsilon = T.best_threshold(labels[size("K=2")], differences[size("K=2")])
    later = np.where(differences == 0, -1.0, np.sign(differences))
    right = np.where(labels == 0, np.abs(differences) <= epsilon, later == labels) & scored & ~misread
    groups, _ = strict(cases, right, task)
    calibrated = lambda at: _calibrated(labels[at], differences[at])
    alone = lambda at: T.mean((labels * differences > 0)[at][labels[at] != 0])
    by_pairs = {}
    for k, of in (("K=2", calibrated), ("K=3", alone), ("K=4", alone), ("all", calibrated)):
        which = np.flatnonzero(scored if k == "all" else size(k))
        own = [cases.groups[i] for i in which]
        by_pairs[k] = T.statistic("accuracy", lambda i, of=of, which=which: of(which[i]), own) | {"n": len(which)}
    note = "the released code's rules: threshold chosen on the test set, later first of equal scores, A=B taken for A>B"
    pick = lambda row: {k: row[k] for k in ("accuracy", "ci95", "n")}
    rows = groups.by(groups.tasks) | {"all": groups.row()}
    strictly = {k: pick(row) for k, row in rows.items()}
    return {"note": note, "tie_threshold_of_2": epsilon, "pairwise": by_pairs, "strict": strictly}


def _calibrated(labels: np.ndarray, differences: np.ndarray) -> float:
    """Accuracy with ties at the threshold that is best on these very pairs; NaN for none."""
    epsilon = T.best_threshold(labels, differences)
    return T.mean((np.where(np.abs(differences) <= epsilon, 0.0, np.sign(differences)) == labels).astype(np.float64))
