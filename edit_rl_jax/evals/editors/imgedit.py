"""ImgEdit-Bench: nine types of single edits (Basic) with three scores each, and hard ones (UGE) with one; all on 1-5.

A sample of Basic is the mean of its three scores, a type the mean of its samples, each rounded to two decimals, the
figure of the editor the mean over types. The prompts say that scores 2 and 3 must not be above score 1; upstream's code
does not look. Here `rule_broken` is the share of samples that break it, `score_if_kept` what the figure would be were
such scores cut to score 1; `score` is as the judge gave it.
"""

import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data import fields
from edit_rl_jax.evals.editors import reading
from edit_rl_jax.evals.editors.cases import UNREAD, Entry, Item, Judged, Reply
from edit_rl_jax.evals.judges.cases import Problems

LABELS = {  # of the three scores, in the order of the prompts
    "replace": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"),
    "add": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Coherence"),
    "adjust": ("Prompt Compliance", "Visual Seamlessness", "Physical & Detail Fidelity"),
    "remove": ("Prompt Compliance", "Visual Naturalness", "Physical & Detail Integrity"),
    "style": ("Style Fidelity", "Content Preservation", "Rendering Quality"),
    "action": ("Action Fidelity", "Identity Preservation", "Visual & Anatomical Coherence"),
    "extract": ("Object Identity", "Mask Precision", "Visual Quality"),
    "background": ("Instruction Compliance", "Visual Seamlessness", "Physical Consistency"),
    "compose": ("Instruction Compliance", "Visual Naturalness", "Physical Consistency & Fine Detail"),
}
PARTS, ALIASES = ("basic", "uge"), {}
SIZES = {
    "extract": 117, "style": 100, "add": 95, "adjust": 94, "background": 94, "replace": 92, "remove": 86, "action": 36,
    "compose": 23,
}  # fmt: skip
COUNTS = {"basic": sum(SIZES.values()), "uge": 47}
GROUPS = {"basic": tuple(LABELS), "uge": ("uge",)}
OFFICIAL, SCALE, DECIMALS, AS_SHOWN = "score", (1.0, 5.0), 2, ""
SHOWS = {"score": ("source", "edited")}


def entries(data: Path, part: str, problems: Problems) -> Iterator[Entry]:
    """Yields the entries of `basic_edit.json` (`{key: {id, prompt, edit_type}}`), of UGE's `UGE_edit.json` (without
    types). data: such a file, or a folder with them; `id` is the source's path from the file's folder or, within it,
    from `original_images`, `singleturn` or `hard`. Raises FileNotFoundError where there is none."""
    found = 0
    for file in sorted(data.rglob("*.json")) if data.is_dir() else [data]:
        about = json_files.read(file) if file.name != "result.json" else None
        if not isinstance(about, dict) or not all(isinstance(v, dict) and "prompt" in v for v in about.values()):
            if not data.is_dir():
                raise ValueError(f"{file}: an object of objects with `id`, `prompt` and `edit_type` is wanted")
            continue
        kind = "basic" if any("edit_type" in v for v in about.values()) else "uge"
        if part not in ("all", kind):
            continue
        found += 1
        for key, row in about.items():
            where, group = f"{file.name}: {key}", row.get("edit_type") if kind == "basic" else "uge"
            if group not in GROUPS[kind] or not isinstance(row.get("prompt"), str):
                problems.add("malformed row", where, f"edit_type {group!r:.40}")
                continue
            load = partial(_source, where, row.get("id"), file.parent)
            yield Item(f"{kind}/{key}", key, kind, group, row["prompt"], file=f"{kind}/{key}.png"), load
    if not found:
        raise FileNotFoundError(f"{data}: no edits of ImgEdit-Bench's {part}")


def _source(where: str, name: Any, folder: Path) -> bytes:
    homes = [folder, *(folder / n for n in ("original_images", "singleturn", "hard"))]
    there = [h for h in homes if isinstance(name, str) and (h / name).is_file()]
    return fields.image(where, "id", name, (there or homes)[0])


def questions(item: Item) -> Mapping[str, str]:
    """Names the one question; its text is that of the type."""
    return {"score": item.group}


def read(item: Item, question: str, text: str) -> Reply:
    """Reads three labelled scores on 1-5, of UGE one."""
    if item.part == "uge":
        return reading.single(text, 1, 5)
    return reading.labelled(text, LABELS[item.group], 1, 5)


def sample(item: Item, scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Figures of a sample. Raises ValueError for another number of scores than the protocol's."""
    given = scores["score"]
    wanted = 1 if item.part == "uge" else 3
    if len(given) != wanted:
        raise ValueError(f"{len(given)} scores, not {wanted}")
    mean = round(statistics.fmean(given), 2)
    if wanted == 1:
        return {"score": mean}
    kept = round(statistics.fmean([given[0], *(min(s, given[0]) for s in given[1:])]), 2)
    each = {f"score_{i}": float(s) for i, s in enumerate(given, 1)}
    return {"score": mean, **each, "rule_broken": float(max(given[1:]) > given[0]), "score_if_kept": kept}


def recorded(path: Path, part: str, problems: Problems) -> Iterable[tuple[Item, Judged]] | None:
    """Reads upstream's `result.json`: a reply's text or `{"error": ...}` by key. Types are the data's. Raises
    ValueError for all parts at once."""
    if path.suffix != ".json":
        return None
    if part == "all":
        raise ValueError(f"{path.name} is of one part: --part basic or uge")
    found = json_files.read_object(path)
    return ((Item(f"{part}/{key}", key, part, "", ""), _reply(said)) for key, said in found.items())


def _reply(said: Any) -> Judged:
    """The words alone: they are read when the type is known."""
    if isinstance(said, str):
        return Judged(problem=UNREAD, replies={"score": said})
    told = said.get("error") if isinstance(said, dict) else said
    return Judged(problem="no answer", detail=f"{told!r:.200}")


def upstream_sample(text: str) -> float | None:
    """What upstream's own reader makes of a reply: the mean of what stands behind the one ": " of lines of that form,
    if it is digits only; None where there is no such line."""
    parts = [line.strip().split(": ") for line in text.splitlines()]
    found = [int(p[1]) for p in parts if len(p) == 2 and p[1].isdigit() and p[1].isascii()]
    return round(sum(found) / len(found), 2) if found else None
