"""EditReward-Bench of the EditScore team: pairs of edits that experts ordered in one of three dimensions.

The data is a Hugging Face dataset of one split, as arrow or parquet files, with `key` (two ids), `instruction`,
`input_image`, `output_images` (two, the preferred one first), `task_type` and `dimension`. The metric is the published
one: a pair is right where the preferred edit's score is strictly higher, so a tie is wrong; the main figure is the
unweighted mean of the tasks' accuracies. Edited images are scored at their input's size. Facts: arXiv 2509.23909,
section 3 and table 14, `evaluation.py` and `calculate_statistics.py` of the released code.
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edit_rl_jax import json_files
from edit_rl_jax.data.images import ImageError, decode_image, image_size, resize
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.evals.judges import dimensions
from edit_rl_jax.evals.judges.calibration import calibration, curves
from edit_rl_jax.evals.judges.files import dataset_folder
from edit_rl_jax.evals.judges.files import tables as rows
from edit_rl_jax.evals.judges.pairs import Outcome
from edit_rl_jax.evals.statistics import macro_interval
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.cache import content_id
from edit_rl_jax.training.report import Sample, write_report

DIMENSIONS = ("prompt_following", "consistency", "overall")
GROUPS = {
    "subject": ("subject-add", "subject-remove", "subject-replace"),
    "appearance": ("color_alter", "material_alter", "style_change", "tone_transfer"),
    "scene": ("background_change", "extract"),
    "advanced": ("ps_human", "text_change", "motion_change", "compose"),
}
TASKS = tuple(task for tasks in GROUPS.values() for task in tasks)
CHUNK = 256  # edits in memory at once


@dataclasses.dataclass(frozen=True)
class Pair:
    """One row: `edits` are ids of the contents (source, edited, instruction), the preferred one first; `keys` the
    dataset's own names of them; `group` the id of (source, instruction)."""

    dimension: str
    task: str
    group: str
    edits: tuple[str, str]
    keys: tuple[str, str]


def _image(where: str, value: Any, root: Path) -> bytes:
    """Bytes of Hugging Face's {"bytes", "path"}, or of a path in the dataset's folder."""
    data, path = (value.get("bytes"), value.get("path")) if isinstance(value, Mapping) else (None, value)
    if isinstance(data, bytes):
        return data
    if not isinstance(path, str) or not (root / path).is_file():
        raise RecordError(where, "missing image", f"{path!r}")
    return (root / path).read_bytes()


def triples(where: str, row: Mapping[str, Any], root: Path) -> tuple[tuple[bytes, bytes, str], ...]:
    """The two edits of a row as (source, edited, instruction). Raises RecordError for a row of another layout."""
    outputs, instruction = row.get("output_images"), row.get("instruction")
    if not isinstance(outputs, list) or len(outputs) != 2 or not isinstance(instruction, str):
        raise RecordError(where, "malformed row", "two output_images and an instruction are wanted")
    source = _image(f"{where} input_image", row.get("input_image"), root)
    return tuple((source, _image(f"{where} output_images", o, root), instruction) for o in outputs)


def read(folder: str | Path) -> tuple[list[Pair], str]:
    """The pairs of a dataset folder, and the SHA-256 of their content. Raises RecordError, naming the row."""
    pairs, digest = [], hashlib.sha256()
    for where, row in rows(folder):
        first, second = triples(where, row, Path(folder))
        dimension, task, keys = row.get("dimension"), row.get("task_type"), row.get("key")
        if dimension not in DIMENSIONS or not isinstance(task, str):
            raise RecordError(where, "malformed row", f"dimension={dimension!r}, task_type={task!r}")
        if not isinstance(keys, list) or len(keys) != 2:
            raise RecordError(where, "malformed row", f"key={keys!r}: two ids are wanted")
        group = content_id(first[0], first[2])
        pair = Pair(dimension, task, group, (content_id(*first), content_id(*second)), (str(keys[0]), str(keys[1])))
        digest.update(json.dumps(dataclasses.astuple(pair)).encode())
        pairs.append(pair)
    return pairs, digest.hexdigest()


def at_source_size(source: bytes, edited: bytes, instruction: str) -> Edit:
    """Returns the edit with its image resized (bicubic) to its input's size; as it is where an image cannot be read."""
    try:
        size = image_size(source)
        return Edit(source, edited if image_size(edited) == size else resize(decode_image(edited), *size), instruction)
    except ImageError:
        return Edit(source, edited, instruction)


def score(judge: Judge, folder: str | Path, progress: bool = True) -> dict[str, Judgement]:
    """Every distinct edit judged once, by its content id."""
    found: dict[str, Judgement] = {}
    waiting: dict[str, Edit] = {}

    def flush() -> None:
        found.update(zip(waiting, judge.score(list(waiting.values()), progress=False)))
        bar.update(len(waiting))
        waiting.clear()

    with tqdm(desc="scoring", unit="edit", disable=None if progress else True) as bar:
        for where, row in rows(folder):
            for triple in triples(where, row, Path(folder)):
                name = content_id(*triple)
                if name not in found and name not in waiting:
                    waiting[name] = at_source_size(*triple)
            if len(waiting) >= CHUNK:
                flush()
        if waiting:
            flush()
    return found


def scores_of(judgement: Judgement, using: Mapping[str, str]) -> dict[str, float | None]:
    """Returns a judgement's score in each dimension, by the figure that answers for it."""
    return {name: dimensions.figure(judgement, using[name]) if judgement.valid else None for name in DIMENSIONS}


def answering(judge: Judge, judged: Iterable[Judgement]) -> dict[str, str]:
    """Names the figure of a judge that answers for each dimension: by its dimensions, or those of its judgements."""
    names = judge.dimensions() or next((j for j in judged if j.valid), Judgement()).dimensions
    return {name: dimensions.matching(name, names) for name in DIMENSIONS}


def read_predictions(file: str | Path) -> dict[str, dict[str, float | None]]:
    """Recorded scores by the dataset's key: JSON lines with `key` and the dimensions' scores, at the top or under
    `scores`; null or absent = no score. Raises ValueError for a line of another kind or a key with two scores."""
    found: dict[str, dict[str, float | None]] = {}

    def read(where: str, row: Any) -> None:
        try:
            key, row = str(row["key"]), row.get("scores", row)
            told = {name: d["value"] for name, d in row.get("dimensions", {}).items()}  # in lines of score.py
            values = {d: None if (v := row.get(d, told.get(d))) is None else float(v) for d in DIMENSIONS}
        except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
            raise ValueError(f"{where}: {error!r}; wanted is an object with `key` and scores") from None
        if not all(math.isfinite(v) for v in values.values() if v is not None):
            raise ValueError(f"{where}: a score of {key} is no finite number")
        if found.setdefault(key, values) != values:
            raise ValueError(f"{where}: {key} has two different scores")

    for _ in json_files.rows(file, read):
        pass
    return found


def outcomes(pairs: Sequence[Pair], scores: Mapping[str, Mapping[str, float | None]], by: str) -> dict[str, Outcome]:
    """The outcome of each dimension. `scores` are by content id (`by="edits"`) or by the dataset's key ("keys")."""
    out = {}
    for dimension in DIMENSIONS:
        told = [p for p in pairs if p.dimension == dimension]
        both = [[scores.get(name, {}).get(dimension) for name in getattr(p, by)] for p in told]
        invalid = np.array([None in b for b in both], bool)
        right = np.array([None not in b and b[0] > b[1] for b in both], np.float64)
        tied = np.array([None not in b and b[0] == b[1] for b in both], bool)
        tasks = tuple(p.task for p in told)
        out[dimension] = Outcome(right, tied, invalid, tuple(p.group for p in told), tasks, tasks)
    return out


def calibrated(
    pairs: Sequence[Pair], judged: Mapping[str, Judgement], using: Mapping[str, str]
) -> dict[str, Any] | None:
    """The calibration of all pairs, each in its dimension; None without spreads."""
    number = lambda v: math.nan if v is None else v
    both = [[dimensions.dimension_of(judged[e], using[p.dimension]) for e in p.edits] for p in pairs]
    array = lambda k: np.array([[math.nan if d is None else number(getattr(d, k)) for d in ab] for ab in both])
    values = (array(k).reshape(-1, 2) for k in ("value", "spread"))
    return calibration(np.ones(len(pairs)), *values, [p.group for p in pairs])


def _macro(outcome: Outcome, tasks: Iterable[str] | None = None) -> dict[str, Any]:
    """Unweighted mean of the tasks' accuracies with its interval; None where there is no pair."""
    if tasks is not None:
        outcome = outcome.where(np.array([t in tasks for t in outcome.tasks], bool))
    if not len(outcome.right):
        return {"accuracy": None, "ci95": None, "tasks": 0}
    each = [row["accuracy"] for row in outcome.by(outcome.tasks).values()]
    ci95 = list(macro_interval(outcome.right, outcome.tasks, outcome.groups))
    return {"accuracy": float(np.mean(each)), "ci95": ci95, "tasks": len(each)}


def figures(
    pairs: Sequence[Pair], scores: Mapping[str, Mapping[str, float | None]], by: str = "edits"
) -> dict[str, Any]:
    """The content of eval.json. Intervals (95%) resample inputs, that is (source, instruction), and for the mean over
    tasks inside each task."""
    out = outcomes(pairs, scores, by)
    macro = {d: _macro(o) for d, o in out.items()}
    pooled = {d: o.row() for d, o in out.items()}
    whole: dict[str, Any] = {}
    for d in DIMENSIONS:
        whole |= {f"{d}_accuracy": macro[d]["accuracy"], f"{d}_accuracy_ci95": macro[d]["ci95"]}
    names = {name for p in pairs for name in getattr(p, by)}
    contents = {(k, e) for p in pairs for k, e in zip(p.keys, p.edits)}
    present = {p.task for p in pairs}
    tasks = [t for t in TASKS if t in present] + sorted(present - set(TASKS))
    table = lambda label, rows: {f"{label}": rows["accuracy"], f"{label}_ci95": rows["ci95"]}
    by_task: dict[str, dict] = {}
    counts: dict[str, dict] = {}
    for d, o in out.items():
        for task, row in o.by(o.tasks).items():
            by_task.setdefault(task, dict.fromkeys(DIMENSIONS)).update(table(d, row))
            count = counts.setdefault(task, {**dict.fromkeys(DIMENSIONS, 0), "ties": 0, "invalid": 0})
            count[d] = row["n"]
            count |= {k: count[k] + row[k] for k in ("ties", "invalid")}
    spread = {}
    for d in DIMENSIONS:
        asked = {name for p in pairs if p.dimension == d for name in getattr(p, by)}
        values = [v for n in asked if (v := scores.get(n, {}).get(d)) is not None]
        if values:
            spread[d] = {"min": min(values), "max": max(values), "mean": np.mean(values), "std": np.std(values)}
            spread[d] = {k: float(v) for k, v in spread[d].items()} | {"n": len(values)}
    return {
        **whole,
        "n_pairs": len(pairs),
        "n_edits": len(names),
        "n_inputs": len({p.group for p in pairs}),
        "edits_without_score": sum(all(v is None for v in scores.get(n, {}).values()) for n in names),
        "ties": sum(r["ties"] for r in pooled.values()),
        "invalid_pairs": sum(r["invalid"] for r in pooled.values()),
        "repeated_pairs": len(pairs) - len({(p.dimension, p.edits) for p in pairs}),
        "keys_of_two_edits": len(contents) - len({k for k, _ in contents}),
        "mean_over_tasks": macro,
        "pooled": pooled,
        "by_group": {
            g: {k: v for d in DIMENSIONS for k, v in table(d, _macro(out[d], members)).items()}
            for g, members in GROUPS.items()
        },
        "by_task": {t: by_task[t] for t in tasks},
        "pairs_by_task": {t: counts[t] for t in tasks},
        "scores": spread,
        "missing_tasks": [t for t in TASKS if t not in present],
        "unknown_tasks": sorted(present - set(TASKS)),
        "intervals": "95%, bootstrap over (input image, instruction), inside each task for means over tasks",
    }


def samples(
    folder: Path, pairs: Sequence[Pair], judged: Mapping[str, Judgement], using: Mapping[str, str], count: int = 8
) -> list[Sample]:
    """Judged edits for the report: the preferred edits of the first pairs that are right, and of as many wrong ones."""
    out, seen = [], {True: 0, False: 0}
    for pair, (where, row) in zip(pairs, rows(folder)):
        scores = tuple(scores_of(judged[e], using)[pair.dimension] for e in pair.edits)
        right = None not in scores and scores[0] > scores[1]
        if seen[right] >= count:
            continue
        seen[right] += 1
        both = zip(("preferred", "other"), scores, triples(where, row, folder), pair.edits)
        for name, score, (source, edited, instruction), edit in both:
            judgement = judged[edit]
            out.append(
                Sample(
                    instruction=instruction,
                    source=source,
                    edited=edited,
                    scores={pair.dimension: score},
                    truth={},
                    reasoning=" ".join(judgement.reasons) or judgement.problem,
                    task=pair.task,
                    kind=name,
                    right=right,
                )
            )
        if min(seen.values()) >= count:
            break
    return out


def run(
    output: str | Path,
    data: str | Path,
    *,
    revision: str | None = None,
    judge: Judge | None = None,
    about: Mapping[str, Any] | None = None,
    predictions: str | Path | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates a judge, or recorded predictions, and returns what it wrote to `output`/eval.json.

    about: what eval.json says of the judge. With a judge, its scores are left in `predictions.jsonl` by the dataset's
    keys, so that they can be evaluated again.
    """
    folder, at = dataset_folder(data, revision)
    pairs, sha256 = read(folder)
    home = Path(output)
    home.mkdir(parents=True, exist_ok=True)
    judged: dict[str, Judgement] = {}
    more: dict[str, Any] = {}
    using = dict(zip(DIMENSIONS, DIMENSIONS))
    if judge is not None:
        judged = score(judge, folder, progress)
        using = answering(judge, judged.values())
        numbers, by = {k: scores_of(j, using) for k, j in judged.items()}, "edits"
        more = {"dimensions_used": using} if any(k != v for k, v in using.items()) else {}
        more |= {"calibration": found} if (found := calibrated(pairs, judged, using)) else {}
        recorded = {k: {"key": k, "scores": numbers[e]} for p in pairs for k, e in zip(p.keys, p.edits)}
        (home / "predictions.jsonl").write_text("".join(json.dumps(r) + "\n" for r in recorded.values()))
    else:
        numbers, by = read_predictions(predictions), "keys"
    source = {"benchmark": "editreward_bench", "data": str(data), "revision": at, "data_sha256": sha256}
    written = {
        **source,
        **figures(pairs, numbers, by),
        **more,
        "judge": dict(about or {"predictions": str(predictions)}),
    }
    (home / "eval.json").write_text(json.dumps(written, indent=2) + "\n")
    shown = samples(folder, pairs, judged, using) if judged else ()
    write_report(home, shown, curves=curves(more.get("calibration")))
    return written


def summary(figures: Mapping[str, Any]) -> str:
    """The main figures in a few lines."""
    lines = []
    for d in DIMENSIONS:
        macro, pooled = figures["mean_over_tasks"][d], figures["pooled"][d]
        if macro["accuracy"] is None:
            continue
        lines.append(
            "{}: {:.3f} ({:.3f} to {:.3f}) mean over {} tasks, {:.3f} ({:.3f} to {:.3f}) of {} pairs; "
            "{} ties, {} without a score".format(
                d, macro["accuracy"], *macro["ci95"], macro["tasks"], pooled["accuracy"], *pooled["ci95"],
                *(pooled[k] for k in ("n", "ties", "invalid")),
            )
        )  # fmt: skip
    if n := figures["repeated_pairs"]:
        lines.append(
            f"{n} of {figures['n_pairs']} pairs repeat an earlier one (same dimension and edits); all are counted"
        )
    for kind in ("missing", "unknown"):
        if figures[f"{kind}_tasks"]:
            lines.append(f"{kind} tasks: {', '.join(figures[f'{kind}_tasks'])}")
    return "\n".join(lines)
