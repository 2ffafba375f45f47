"""The benchmark `preferences`: how often a judge's overall figure orders two edits as people do, on one's own pairs.

A dataset of `PreferenceRecord`s as `prepare_data.py` makes it; people's ties are left out and counted. Equal figures
and answers that cannot be read are wrong. `pairs.jsonl` lets `side_by_side` compare evaluations of the same pairs.
"""

import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data.records import EditRecord, PreferenceRecord, Record, expect, group_id
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.training.report import Sample, write_report

CHUNK = 256  # pairs judged between two writes of a cache
SHOWN = 12  # of rightly, and of wrongly ordered pairs


def preferred(records: Sequence[Record]) -> Iterator[tuple[EditRecord, EditRecord]]:
    """Yields (better, worse) of each PreferenceRecord that is no tie, both with its key and its group. Raises
    RecordError for another kind."""
    for record in records:
        record = expect(record, PreferenceRecord)
        if record.prefers and not record.meta.get("tie"):
            about = dict(source=record.source, instruction=record.instruction, task=record.task, meta=record.meta)
            about["group"] = record.group or group_id(record.source, record.instruction)
            first, second = (EditRecord(key=record.key, edited=x, **about) for x in record.edited)
            yield (first, second) if record.prefers > 0 else (second, first)


def run(judge: Judge, records: Sequence[Record], output: str | Path, about: Mapping[str, Any]) -> dict[str, Any]:
    """Judges pairs, CHUNK in memory at a time, and returns what it wrote to `output`/eval.json.

    Beside it pairs.jsonl and report.html. Accuracies have 95% intervals that resample groups (a source and an
    instruction). Raises ValueError where there is no pair, RecordError for another kind of record.
    """
    lines, tasks, shown = [], [], {True: [], False: []}
    left = preferred(records)
    while part := list(itertools.islice(left, CHUNK)):
        flat = judge.score([Edit.of_record(record) for pair in part for record in pair])
        for pair, *two in zip(part, flat[::2], flat[1::2]):
            line = _line(pair[0], *two)
            lines.append(line)
            tasks.append(pair[0].task)
            if len(own := shown[bool(line["right"])]) < SHOWN:
                own.append(_sample(pair[len(own) % 3 != 2], two[len(own) % 3 != 2], bool(line["right"])))
    if not lines:
        raise ValueError("there is no pair of which one edit is preferred")
    counts = {"n_pairs": len(lines), "ties": sum(x["tied"] for x in lines), "human_ties": len(records) - len(lines)}
    counts["invalid_pairs"] = sum(x["invalid"] for x in lines)
    found = {"benchmark": "preferences", **about, **_accuracy(lines, "pair_accuracy"), **counts}
    if any(tasks):
        of = {t: [x for x, own in zip(lines, tasks) if own == t] for t in sorted(set(tasks))}
        found["by_task"] = {t or "no task": _accuracy(own, "accuracy") | {"n": len(own)} for t, own in of.items()}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (folder / "eval.json").write_text(json.dumps(found, indent=2) + "\n")
    write_report(folder, shown[True] + shown[False])
    return found


def _line(better: EditRecord, a: Judgement, b: Judgement) -> dict[str, Any]:
    """A line of pairs.jsonl, as `side_by_side` reads it."""
    valid = a.valid and b.valid
    more = a.overall.value - b.overall.value if valid else 0.0
    told = {"pair": better.key, "group": better.group, "right": int(more > 0)}
    return told | {"tied": int(valid and more == 0), "invalid": int(not valid)}


def _accuracy(lines: Sequence[Mapping[str, Any]], name: str) -> dict[str, Any]:
    right = np.array([x["right"] for x in lines], np.float64)
    return {name: float(right.mean()), f"{name}_ci95": list(interval(right, [x["group"] for x in lines]))}


def _sample(record: EditRecord, said: Judgement, right: bool) -> Sample:
    scores = {"overall": said.overall.value if said.valid else None}
    scores |= {name: found.value for name, found in said.dimensions.items()}
    about = dict(instruction=record.instruction, source=record.source, edited=record.edited, task=record.task)
    return Sample(**about, scores=scores, truth={}, reasoning=" ".join(said.reasons) or said.problem, right=right)
