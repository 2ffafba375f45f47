"""A file of edits scored into a file of results, resumably: what is written is final, in the input's order, once."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data import readers
from edit_rl_jax.data.records import EditRecord, RecordError, VerifierRecord, expect
from edit_rl_jax.data.resumable import complete
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.rewards.cache import content_id

WANTED = ("source", "edited", "instruction")


def entries(path: Path) -> Iterator[tuple[dict[str, Any], Edit | str]]:
    """Yields for each edit of a file its output line without scores, and the edit or the reason why there is none.

    JSONL: objects with `source` (a path from the file's folder, or a list of several), `edited` (a path) and
    `instruction`; what else the judge should know may stand in an object `extras`. Parquet: as `readers.read`, images
    as bytes or paths. A line that is no such object raises ValueError, named; a missing image is a reason, and so is a
    row of a preference.
    """
    if path.suffix == ".parquet":
        for where, record in readers.read(path):
            try:
                if isinstance(record, RecordError):
                    raise record
                edit = Edit.of_record(expect(record, EditRecord, VerifierRecord))
            except RecordError as error:
                yield {"key": where}, str(error)
                continue
            yield {"key": record.key, "instruction": record.instruction, "task": record.task}, edit
        return
    for line in json_files.rows(path, _line):
        yield line, read_edit(line, path.parent)


def sources_of(line: Mapping[str, Any]) -> list[str]:
    """Returns the paths under `source`: one, or a list."""
    return line["source"] if isinstance(line["source"], list) else [line["source"]]


def read_edit(line: Mapping[str, Any], folder: Path) -> Edit | str:
    """Reads the images of the edit that a line names; returns why, where one cannot be read."""
    try:
        *images, edited = [(folder / path).read_bytes() for path in (*sources_of(line), line["edited"])]
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except ValueError as error:  # a path that no file can have
        return f"{line['source']!r}, {line['edited']!r}: {error}"
    return Edit(images, edited, line["instruction"], line.get("extras", {}))


def _line(where: str, line: Any) -> dict[str, Any]:
    if not isinstance(line, dict):
        raise ValueError(f"{where}: not a JSON object: {type(line).__name__}")
    sources = line.get("source")
    several = isinstance(sources, list) and sources and all(isinstance(s, str) for s in sources)
    if missing := [k for k in WANTED if not isinstance(line.get(k), str) and not (k == "source" and several)]:
        raise ValueError(f"{where}: no text under {', '.join(missing)}")
    if not isinstance(line.get("extras", {}), dict):
        raise ValueError(f"{where}: extras is no object")
    return line


def count(path: Path) -> int:
    """Counts the edits of a file; of parquet its rows, which may be more (ShareGPT's of quality alone are no edits).

    Raises ValueError, naming the line, where a JSONL line is malformed.
    """
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.ParquetFile(path).metadata.num_rows
    return sum(1 for _ in json_files.rows(path, _line))


def judge_entries(judge: Judge, found: list[tuple[dict[str, Any], Edit | str]]) -> list[Judgement]:
    """Judges entries in order; one without images is a judgement that is not valid."""
    judged = iter(judge.score([t for _, t in found if not isinstance(t, str)], progress=False))
    return [Judgement(problem=t) if isinstance(t, str) else next(judged) for _, t in found]


def score_file(
    judge: Judge,
    source: Path,
    output: Path,
    *,
    chunk: int = 128,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[int, int, float | None]:
    """Scores what `output` does not hold yet; returns (edits, those without a score, mean overall of the others).

    A line of the output is the input's line with `scores`, a judgement's JSON, and `scores_of`, the hash of the edit
    that was judged; resumes, and raises, as `data.resumable.complete`, also where images of a done line have changed.
    """
    total = count(source)
    work = lambda part: [{"scores": j.to_json()} for j in judge_entries(judge, part)]
    how = dict(adds=("scores",), good=_is_scored, source=source, chunk=chunk, overwrite=overwrite, progress=progress)
    lines = complete(output, entries(source), total, work, judge.settings(), content=_content, **how)
    valid = [x["scores"]["overall"] for x in lines if x["scores"]["overall"] is not None]
    return len(lines), len(lines) - len(valid), sum(valid) / len(valid) if valid else None


def _content(line: Mapping[str, Any], edit: Edit | str) -> str:
    """Hashes an edit, "" for one whose images cannot be read."""
    return "" if isinstance(edit, str) else content_id(*edit.sources, edit.edited, edit.instruction, dict(edit.extras))


def _is_scored(line: Mapping[str, Any]) -> bool:
    scores = line["scores"]
    return isinstance(scores, dict) and isinstance(scores.get("overall", ""), int | float | None)
