"""A table of users' rows of preferences: what each file gives, record by record, or which row is named and why.

An entry is `Case(name, rows, records, bad)`: `records` are the (key, prefers, scores) that --on-bad-record=skip keeps,
`bad` the rows that it counts, as (row, reason); without skip the first of these is the error.
"""

# ruff: noqa: E501
# A line a case, however long.

import json
from typing import Any

from tests.data.rows_table import MALFORMED, Case
from tests.data.rows_table import own as edit

# In the folder of every file of the table; copy.png has the bytes of b.png, same.png its pixels.
IMAGES = ("s.png", "t.png", "a.png", "b.png", "c.png", "d.png")
FOLLOWS, QUALITY = "instruction_following", "visual_quality"
LABEL, OUT, UNKNOWN, NAN = "malformed label", "label out of range", "unknown label", "NaN label"
CONTRA, EQUAL, SUM, MISSING = "preference contradicts scores", "equal images", "overall is not the sum", "missing file"
NONE = float("nan")


def train(dim1=(4, 2), dim2=(3, 3), overall: Any = None, **columns):
    """A row of train.json."""
    made = {
        "prompt": "make it red",
        "choice_dist": None,
        "confidence": None,
        "path_src": "s.png",
        "path1": "a.png",
        "path2": "b.png",
        "model1": "m_seed1",
        "model2": "n",
        "tie_case": False,
    }
    overall = overall or (dim1 and dim2 and [sum(x) for x in zip(dim1, dim2, strict=True)])
    for name, pair in (("dim1_score", dim1), ("dim2_score", dim2), ("overall_score", overall)):
        made |= {f"model{i + 1}_{name}": value for i, value in enumerate(pair or (None, None))}
    return made | columns


def release(follows=(4, 2), quality=(3, 3), vote: Any = "leftvote", **columns):
    """A row of EditReward-Data's parquet release, images as paths."""
    made = {
        "unique_key": "u1",
        "pair_index": 0,
        "instruction": "make it red",
        "source_img": "s.png",
        "left_output_image": "a.png",
        "right_output_image": "b.png",
        "left_model": "m",
        "right_model": "n",
        "vote_type": vote,
    }
    for i, side in enumerate(("left", "right")):
        if follows:
            made[f"{side}_instruction_following_score"] = float(follows[i])
        if quality:
            made[f"{side}_quality_aesthetic_score"] = float(quality[i])
        if follows and quality:
            made[f"{side}_overall_score"] = float(follows[i] + quality[i])
    return made | columns


def bench(ranking: Any = "A>B", **columns):
    """A pair of EditReward-Bench."""
    return {
        "id": "7_0",
        "instruction": "make it red",
        "source_image": "s.png",
        "candidate_1": "a.png",
        "candidate_2": "b.png",
        "ranking": ranking,
        "comparison_type": "AvsB",
        "dataset": "2pair",
        "num_candidates": 2,
        "score_1": None,
        "score_2": None,
        "model_1": "m",
        "model_2": "n",
    } | columns


def own(prefers: Any = 1, scores: Any = None, **columns):
    return {
        "source": "s.png",
        "first": "a.png",
        "second": "b.png",
        "instruction": "make it red",
        "prefers": prefers,
        "scores": scores,
    } | columns


def labels(follows=None, quality=None) -> dict:
    return {name: tuple(map(float, pair)) for name, pair in ((FOLLOWS, follows), (QUALITY, quality)) if pair}


def one(
    name: str, row: Any, prefers: int, scores: dict | None = None, key: str = "rows.jsonl:1", suffix: str = "jsonl"
) -> Case:
    return Case(name, [row], ((key.replace("jsonl", suffix), prefers, scores or {}),), suffix=suffix)


def bad(name: str, row: Any, reason: str, suffix: str = "jsonl") -> Case:
    """A bad row between two good ones of own layout."""
    good = [own(key="a", first="c.png"), own(key="b", first="d.png")]
    return Case(name, [good[0], row, good[1]], (("a", 1, {}), ("b", 1, {})), ((2, reason),), suffix)


BOTH = labels((4, 2), (3, 3))
TRAIN = [
    one("train.json", train(), 1, BOTH),
    one("equal overall, opposite", train((4, 2), (1, 3), tie_case=True), 0, labels((4, 2), (1, 3))),
    one("equal overall, all equal", train((4, 4), (2, 2), tie_case=True), 0, labels((4, 4), (2, 2))),
    one("equal overall, tie_case false", train((4, 2), (1, 3)), 0, labels((4, 2), (1, 3))),
    one("equal overall, tie_case null", train((4, 2), (1, 3), tie_case=None), 0, labels((4, 2), (1, 3))),
    one("one dimension, overall as fractions", train((4, 2), None, (0.7, 0.2)), 1, labels((4, 2))),
    one("no labels: path1 is preferred", train(None, None), 1),
    one("no labels, a tie", train(None, None, tie_case=True), 0),
    one("labels as fractions", train((3.5, 2), (3, 3)), 1, labels((3.5, 2), (3, 3))),
    one("source equal to an edit", train(path_src="a.png"), 1, BOTH),
    one("in parquet, bytes and path", train(path1={"bytes": b"a.png", "path": None}), 1, BOTH, suffix="parquet"),
    bad("tie_case, but no tie", train(tie_case=True), CONTRA),
    bad("path1 has less", train((2, 4)), CONTRA),
    bad("path1 has less overall", train(None, None, (3, 5)), CONTRA),
    bad("overall is no sum", train(overall=(6, 5)), SUM),
    bad("a word for tie_case", train(tie_case="no"), UNKNOWN),
    bad("a label above", train((5, 2)), OUT),
    bad("a label below", train((1, 0)), OUT),
    bad("a label as text", train(("4", 2), None), LABEL),
    bad("a label that is true", train((4, True), None), LABEL),
    bad("a list for a label", train(([4], 2), None), LABEL),
    bad("NaN in JSON", json.dumps(train((NONE, 2), None)), "malformed JSON"),
    bad("NaN in parquet", train((NONE, 2.0), None), NAN, "parquet"),
    bad("NaN overall", train(None, None, (NONE, 2.0)), NAN, "parquet"),
    bad("infinite in parquet", train((float("inf"), 2.0), None), OUT, "parquet"),
    bad("one label of two", train((4, None), None), "missing label"),
    bad("one overall score of two", train(None, None, (4, None)), "missing label"),
    bad("doubled columns", '{"path1": "a.png", "path1": "b.png"}', "malformed JSON"),
    bad("path1 is path2", train(path2="a.png"), EQUAL),
    bad("the same bytes under two names", train(path1="copy.png"), EQUAL),
    bad("the same pixels in other bytes", train(path1="same.png"), EQUAL),
    bad("a missing path1", train(path1="gone.png"), MISSING),
    bad("no path2", train(path2=None), MISSING),
    bad("no path_src", train(path_src=None), MISSING),
    bad("no prompt", train(prompt=None), "empty instruction"),
    bad("text for an image", train(path1="rows.jsonl"), "unreadable image"),
]  # fmt: skip

RELEASE = [
    one("left and right", release(), 1, BOTH, "u1/0"),
    one("right", release((2, 4), vote="rightvote"), -1, labels((2, 4), (3, 3)), "u1/0"),
    one("a vote alone", release(None, None), 1, None, "u1/0"),
    one("no vote: the labels decide", release((2, 4), vote=None), -1, labels((2, 4), (3, 3)), "u1/0"),
    one("a tie", release((4, 2), (1, 3), "tie"), 0, labels((4, 2), (1, 3)), "u1/0"),
    one("both bad", release((1, 1), (1, 1), "bothbad_vote"), 0, labels((1, 1), (1, 1)), "u1/0"),
    one("a vote breaks a tie of labels", release((4, 2), (1, 3)), 1, labels((4, 2), (1, 3)), "u1/0"),
    one("columns in another order", dict(reversed(release((4, 2), (1, 2)).items())), 1, labels((4, 2), (1, 2)), "u1/0"),
    one("names of the 100", {k.replace("_img", "_image").replace("output_", ""): v for k, v in release(unique_key=None, pair_index=None, dev_id="032", category="add").items()}, 1, BOTH, "032"),
    one("bytes in parquet", release(source_img={"bytes": b"s.png", "path": "x"}, left_output_image={"bytes": b"a.png", "path": "y"}), 1, BOTH, "u1/0", "parquet"),
    one("paths beside empty bytes", release(left_output_image={"bytes": None, "path": None}, left_img_rel="a.png"), 1, BOTH, "u1/0", "parquet"),
    bad("an unknown vote", release(vote="left"), UNKNOWN),
    bad("a vote as a number", release(vote=1), UNKNOWN),
    bad("a vote against the labels", release(vote="rightvote"), CONTRA),
    bad("a tie against the labels", release(vote="tie"), CONTRA),
    bad("no vote and one dimension", release(quality=None, vote=None), "no preference"),
    bad("left is right", release(right_output_image="a.png"), EQUAL),
    bad("no left image", release(left_output_image=None), MISSING),
    bad("overall is no sum of sides", release(left_overall_score=8.0), SUM),
]  # fmt: skip

BENCH = [
    *(one(f"ranking {r}", bench(r), p, None, "7_0") for r, p in (("A>B", 1), ("B>A", -1), ("A=B", 0), ("A=B=Good", 0), ("A=B=Bad", 0), ("A > B", 1))),
    one("A against C", bench("C>A", comparison_type="AvsC"), -1, None, "7_0"),
    one("B against D, a tie", bench("B=D", comparison_type="BvsD"), 0, None, "7_0"),
    one("no comparison_type", bench("B>A", comparison_type=None), -1, None, "7_0"),
    one("scores with it", bench(score_1=7, score_2=4.5), 1, None, "7_0"),
    one("scores of a tie may differ", bench("A=B", score_1=7, score_2=6), 0, None, "7_0"),
    *(bad(f"ranking {r!r}", bench(r), UNKNOWN) for r in ("A<B", "a>b", "A", "A>C", "A=B=Ugly", 1, True, ["A>B"])),
    bad("no ranking", bench(None), "no preference"),
    bad("a ranking of others", bench("A>B", comparison_type="AvsC"), UNKNOWN),
    bad("no comparison", bench(comparison_type="A-B"), UNKNOWN),
    bad("a candidate against itself", bench(comparison_type="AvsA"), UNKNOWN),
    bad("scores against the ranking", bench(score_1=2, score_2=6), CONTRA),
    bad("a score as text", bench(score_1="7", score_2=6), LABEL),
    bad("one score", bench(score_1=7), "missing label"),
    bad("no candidate", bench(candidate_2=None), MISSING),
    Case("an id twice", [bench(), bench("B>A", candidate_1="c.png")], (("7_0", 1, {}),), ((2, "duplicate key"),), "jsonl"),
]  # fmt: skip

OWN = [
    one("own, preferred", own(), 1),
    one("own, a tie", own(0), 0),
    one("own, the labels decide", own(None, {FOLLOWS: [1, 2], QUALITY: [3, 3]}), -1, labels((1, 2), (3, 3))),
    one("own, one dimension", own(-1, {QUALITY: [3, 1]}), -1, labels(None, (3, 1))),
    one("dimensions in another order", own(1, {QUALITY: [1, 2], FOLLOWS: [4, 1]}), 1, labels((4, 1), (1, 2))),
    one("own in parquet", own(1, {FOLLOWS: [4.0, 1.0], QUALITY: None}, key="k"), 1, labels((4, 1)), "k", "parquet"),
    one("preferred as a whole float", own(1.0, key="k"), 1, None, "k", "parquet"),
    one("preferred in a tie of labels", own(1, {FOLLOWS: [2, 2], QUALITY: [3, 3]}), 1, labels((2, 2), (3, 3))),
    bad("prefers 2", own(2), UNKNOWN),
    bad("prefers true", own(True), UNKNOWN),
    bad("prefers a word", own("first"), UNKNOWN),
    bad("prefers half", own(0.5), UNKNOWN),
    bad("no prefers and one dimension", own(None, {FOLLOWS: [1, 2]}), "no preference"),
    bad("prefers against the labels", own(1, {FOLLOWS: [1, 2], QUALITY: [3, 3]}), CONTRA),
    bad("a tie against the labels' sum", own(0, {FOLLOWS: [1, 2], QUALITY: [3, 3]}), CONTRA),
    bad("an unknown dimension", own(1, {"aesthetics": [3, 1]}), "unknown dimension"),
    bad("a number for a dimension", own(1, {FOLLOWS: 3}), LABEL),
    bad("three labels", own(1, {FOLLOWS: [1, 2, 3]}), LABEL),
    bad("a list of scores", own(1, [[4, 1], [2, 2]]), LABEL),
    bad("an empty pair", own(1, {FOLLOWS: [None, None]}), "missing label"),
    bad("scores on 0..25", own(1, {FOLLOWS: [20, 4]}), OUT),
    bad("first is second", own(second="a.png"), EQUAL),
    bad("columns of two layouts", own(path1="a.png"), MALFORMED),
    bad("an edit among preferences", edit(source="s.png", edited="a.png"), "another kind of record"),
    bad("a second among images is missing", own(second="gone.png"), MISSING),
    bad("tags in the instruction", own(instruction="<image>make it red"), MALFORMED),
    Case("preferences among edits", [edit(source="s.png", edited="a.png"), own()], (("rows.jsonl:1", None, None),), ((2, "another kind of record"),), "jsonl"),
    Case("a bad first row rules nothing", [own(2), edit(source="s.png", edited="a.png")], (("rows.jsonl:2", None, None),), ((1, UNKNOWN),), "jsonl"),
    Case("the same pair again", [own(), own()], (("rows.jsonl:1", 1, {}),), ((2, "same pair twice"),), "jsonl"),
    Case("the same pair the other way round", [own(), own(-1, first="b.png", second="a.png")], (("rows.jsonl:1", 1, {}),), ((2, "same pair twice"),), "jsonl"),
    Case("a pair with two verdicts", [own(), own(-1)], (("rows.jsonl:1", 1, {}),), ((2, "conflicting labels"),), "jsonl"),
    Case("a pair with other labels", [own(1, {FOLLOWS: [4, 1]}), own(1, {FOLLOWS: [3, 1]})], (("rows.jsonl:1", 1, labels((4, 1))),), ((2, "conflicting labels"),), "jsonl"),
    Case("another source or instruction is another pair", [own(), own(source="t.png"), own(instruction="no")], tuple((f"rows.jsonl:{i}", 1, {}) for i in (1, 2, 3)), (), "jsonl"),
    Case("four layouts in a file", [train(), release(source_img="t.png"), bench(first=None, candidate_1="c.png"), own(first="d.png")], (("rows.jsonl:1", 1, BOTH), ("u1/0", 1, BOTH), ("7_0", 1, {}), ("rows.jsonl:4", 1, {})), (), "jsonl"),
]  # fmt: skip

CASES = TRAIN + RELEASE + BENCH + OWN
