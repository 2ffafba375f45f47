"""Runs a judge, or recorded predictions, through a public benchmark; writes eval.json, predictions.jsonl, report.html.

Every edit is judged once by its content, a few in memory at a time; with a `Cached` judge a killed run goes on.
"""

import dataclasses
import importlib
import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.resumable import append_lines
from edit_rl_jax.evals.judges import cases as C
from edit_rl_jax.evals.judges import dimensions
from edit_rl_jax.evals.judges.calibration import calibration, curves
from edit_rl_jax.evals.judges.files import dataset_folder
from edit_rl_jax.evals.judges.recorded import read_labels, read_predictions, to_line
from edit_rl_jax.evals.judges.ties import Ties, order
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.cache import content_id
from edit_rl_jax.training.report import Sample, write_report

BENCHMARKS = {
    "editreward_bench_tiger": "tiger_bench",
    "genai_bench": "genai_bench",
    "aurora_bench": "aurora_bench",
    "imagenhub": "imagenhub",
    "editreward_compass": "compass",
    "mmrb2_edit": "mmrb2_edit",
}
CHUNK = 128  # edits in memory at once
SHOWN = 8  # of rightly and of wrongly ordered pairs, in the report


def benchmark(name: str) -> C.Benchmark:
    """Returns a benchmark by its name in `BENCHMARKS`."""
    return importlib.import_module(f"{__package__}.{BENCHMARKS[name]}")


@dataclasses.dataclass
class Scored:
    """What a judge said of a benchmark's edits, without its words: judgements by content, contents by item."""

    judged: dict[str, Judgement] = dataclasses.field(default_factory=dict)
    contents: dict[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)  # items without images, and why

    def using(self, names: Collection[str], axes: Iterable[str]) -> dict[str, str]:
        """Names the figure that answers each axis, by a judge's dimensions, or those that its judgements have."""
        valid = next((j for j in self.judged.values() if j.valid), Judgement())
        return {axis: dimensions.matching(axis, names or valid.dimensions) for axis in axes}

    def prediction(self, item: C.Item, using: Mapping[str, str]) -> C.Prediction:
        """Returns the scores of an item's edits."""
        if item.id in self.failed:
            return C.Prediction(problem=self.failed[item.id])
        if item.id not in self.contents:  # without a label: it was not judged
            return C.Prediction(problem="not judged")
        found = [self.judged[c] for c in self.contents[item.id]]
        if any(not j.valid for j in found):
            return C.Prediction(problem="no judgement")
        told = [dimensions.dimension_of(j, using[item.axis]) for j in found]
        if None in told:
            return C.Prediction(problem="no score")
        spreads = None if any(d.spread is None for d in told) else tuple(d.spread for d in told)
        return C.Prediction(tuple(d.value for d in told), spreads)


def score(
    judge: Judge,
    entries: Iterable[C.Entry],
    problems: C.Problems,
    progress: bool = True,
    labelled: Collection[str] = (),
) -> Scored:
    """Judges every distinct edit of the items that have a label, and of those that are named as `labelled`."""
    out, waiting = Scored(), {}

    def flush() -> None:
        found = judge.score(list(waiting.values()), progress=False)
        kept = lambda j: {k: j.details[k] for k in (*dimensions.GROUPS, "std") if k in j.details}
        out.judged.update({c: dataclasses.replace(j, reasons=(), details=kept(j)) for c, j in zip(waiting, found)})
        bar.update(len(waiting))
        waiting.clear()

    with tqdm(desc="scoring", unit="edit", disable=None if progress else True) as bar:
        for item, load in entries:
            if item.label is None and item.id not in labelled:
                continue
            try:
                made = load()
            except RecordError as error:
                out.failed[item.id] = "missing image" if error.reason == "missing file" else error.reason
                problems.add(out.failed[item.id], item.id, str(error))
                continue
            if not made:  # a row that cannot be read, and is named
                continue
            names = tuple(content_id(*e.sources, e.edited, e.instruction) for e in made)
            out.contents[item.id] = names
            if len(set(names)) < len(names) and not item.same:
                problems.add("equal images", item.id)
            new = {c: e for c, e in zip(names, made) if c not in out.judged}
            waiting |= new
            if len(waiting) >= CHUNK:
                flush()
        if waiting:
            flush()
    for name, contents in out.contents.items():
        if said := next((j.problem for c in contents if not (j := out.judged[c]).valid), ""):
            problems.add("no judgement", name, said)
    return out


def overlay(items: dict[str, C.Item], labels: Iterable[C.Item], problems: C.Problems) -> None:
    """Puts recorded labels in the place of the data's; a label of no item, and one that differs, is named."""
    for label in labels:
        if label.id not in items:
            problems.add("label without an item", label.id)
            continue
        old = items[label.id]
        if not old.problem and (old.label, old.text) != (label.label, label.text):
            problems.add("label differs from the data's", label.id)
        items[label.id] = dataclasses.replace(old, label=label.label, text=label.text, problem=label.problem)


def run(
    name: str,
    output: str | Path,
    *,
    data: str | Path | None = None,
    labels: str | Path | None = None,
    predictions: str | Path | None = None,
    judge: Judge | None = None,
    about: Mapping[str, Any] | None = None,
    ties: Ties | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates and returns what it wrote to `output`/eval.json.

    data: the benchmark's folder, file or hub id; `labels` may stand for it where there are `predictions`. judge: or
    what is recorded; about: what eval.json says of it. Raises ValueError where there is no item, or no data for a
    judge, and OSError, ValueError for files that cannot be read.
    """
    if (judge is None) == (predictions is None) or (data is None and (labels is None or judge is not None)):
        raise ValueError("wanted are a judge or predictions, and data, or for predictions labels")
    bench, ties, problems = benchmark(name), ties or Ties(), C.Problems()
    kept: dict[str, C.Item] = {}
    folder, found = None, revision
    if data is not None:
        folder, found = (Path(data), revision) if Path(data).is_file() else dataset_folder(data, revision)
    read = lambda note: C.entries(bench, folder, note)
    given: dict[str, C.Item] = {}
    if labels is not None:  # before judging: what they label is judged
        _drain(C.distinct(((i, tuple) for i in read_labels(labels, problems, bench)), problems, given))
    scored = Scored()
    if folder is None:
        kept = given
    else:
        entries = C.distinct(read(problems), problems, kept)
        if judge is not None:
            labelled = {i.id for i in given.values() if i.label is not None}
            scored = score(judge, entries, problems, progress, labelled)
        else:
            _drain(entries)
        overlay(kept, given.values(), problems)
    if not kept:
        raise ValueError(f"{data or labels}: no item of {name}")
    home = Path(output)
    home.mkdir(parents=True, exist_ok=True)
    using: dict[str, str] = {}
    if judge is not None:
        using = scored.using(judge.dimensions(), bench.AXES)
        by_id = {i.id: scored.prediction(i, using) for i in kept.values()}
        (home / "predictions.jsonl").unlink(missing_ok=True)
        append_lines(home / "predictions.jsonl", [to_line(i, p) for i, p in by_id.items()])
        cases = C.Cases.of(list(kept.values()), list(by_id.values()))
    else:
        cases = C.Cases.of(*C.match(kept.values(), read_predictions(predictions, problems), problems))
    figures = bench.figures(cases, ties)
    ordered = cases.where(np.array([i.text != "rating" for i in cases.items], bool))
    calibrated = calibration(ordered.labels, ordered.scores, ordered.spreads, ordered.groups, ties.seed)
    written = {
        "benchmark": name,
        "data": str(data or labels),
        "revision": found,
        "items_sha256": content_id([dataclasses.astuple(i) for i in kept.values()]),
        **figures,
        "problems": problems.found,
        **({"dimensions_used": using} if using else {}),
        **({"calibration": calibrated} if calibrated else {}),
        "intervals": "95%, bootstrap over (source, instruction), at the thresholds that were chosen",
        "judge": dict(about or {"predictions": str(predictions)}),
    }
    (home / "eval.json").write_text(json.dumps(written, indent=2, allow_nan=False) + "\n")
    shown = samples(cases, read(C.Problems()), using) if judge is not None and folder is not None else ()
    write_report(home, shown, curves=curves(calibrated))
    return written


def _drain(entries: Iterable[C.Entry]) -> None:
    for _ in entries:
        pass


def samples(cases: C.Cases, entries: Iterable[C.Entry], using: Mapping[str, str]) -> Iterator[Sample]:
    """Yields judged edits for the report: of the first pairs that are rightly ordered, and of as many others."""
    items = {i.id: i for i in cases.items}  # with the labels that count
    right = dict(zip(items, order(cases) == cases.labels))
    scores = dict(zip(items, cases.scores.tolist()))
    left = {True: SHOWN, False: SHOWN}
    for item, load in entries:
        item = items[item.id]
        good = bool(right.get(item.id, False))
        if item.text == "rating" or item.label is None or not left[good]:
            continue
        try:
            made: tuple[Edit, ...] = load()
        except RecordError:
            continue
        if not made:
            continue
        left[good] -= 1
        for edit, value, letter in zip(made, scores[item.id], item.letters):
            told = {using[item.axis]: None if value != value else value}
            yield Sample(
                edit.instruction,
                edit.sources[0],
                edit.edited,
                told,
                {},
                "",
                item.task,
                f"{letter} of {item.text}",
                good,
            )
        if not any(left.values()):
            return


def summary(figures: Mapping[str, Any]) -> str:
    """Says the main figures in a few lines, and what was wrong."""
    lines = []
    for name in (
        "official_accuracy", "accuracy_with_ties", "accuracy_without_ties", "official_spearman", "spearman",
        "pointwise_spearman",
    ):  # fmt: skip
        if figures.get(name) is not None:
            ends = figures.get(f"{name}_ci95")
            between = f" ({ends[0]:.4f} to {ends[1]:.4f})" if ends else ""
            lines.append(f"{name.replace('_', ' ')}: {figures[name]:.4f}{between}")
    lines.append(f"{figures['n']} items, {figures['n_invalid']} of them without a usable label or prediction")
    if figures.get("tie_threshold") is not None:
        lines.append(f"tie threshold {figures['tie_threshold']:.6g}: {figures['tie_threshold_from']}")
    for reason, entry in figures["problems"].items():
        more = ", ..." if entry["n"] > len(entry["ids"][:5]) else ""
        lines.append(f"{reason}: {entry['n']} ({', '.join(entry['ids'][:5])}{more})")
    if found := figures.get("calibration"):
        each = ", ".join(f"{m} {found[m]['expected_calibration_error']:.3f}" for m in ("gaussian", "logistic_normal"))
        lines.append(f"expected calibration error: {each}")
    return "\n".join(lines)
