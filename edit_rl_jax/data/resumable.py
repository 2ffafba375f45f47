"""Files of results that a killed job goes on with: what is written is final, in the input's order, once."""

import fcntl
import itertools
import json
import os
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from edit_rl_jax import json_files

ADVICE = "take another file, or --overwrite"


class ResumeError(ValueError):
    """The output holds something else than the beginning of this run."""


def whole_lines(path: Path) -> list[tuple[str, Any]]:
    """(file:line, value) of the JSON lines of a file that is appended to; a last one that was cut by a kill is cut off
    the file. Raises JSONError for any other that is damaged."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    lines = json_files.numbered(data[:end].split(b"\n"), str(path))
    return [(where, json_files.loads(line, where)) for where, line in lines]


def append_lines(path: Path, objects: Sequence[Any]) -> None:
    """Appends JSON lines and waits until the disk has them."""
    with path.open("ab") as file:
        file.write("".join(json_files.dumps(x) + "\n" for x in objects).encode())
        file.flush()
        os.fsync(file.fileno())


def complete(
    output: Path,
    entries: Iterable[tuple[dict[str, Any], Any]],
    total: int,
    work: Callable[[list[tuple[dict[str, Any], Any]]], Sequence[Mapping[str, Any]]],
    settings: Mapping[str, Any],
    *,
    adds: Sequence[str],
    good: Callable[[Mapping[str, Any]], bool],
    source: Path,
    chunk: int,
    overwrite: bool = False,
    progress: bool = True,
    doing: str = "scoring",
    content: Callable[[Mapping[str, Any], Any], str] | None = None,
) -> list[dict[str, Any]]:
    """Works on the entries (line, what it stands for) that `output` does not hold yet; returns all its lines.

    A line of the output is an entry's line and the results that `work` gives for it, under the names `adds`; `good`
    says whether a line's results are of the right kind. The settings stand beside it in `<output>.settings.json`; an
    output of other settings or of another input, or a damaged one, raises ResumeError or JSONError, unless `overwrite`
    removes it. Raises ResumeError where the output is the input, BlockingIOError where another process writes there.

    content: hashes what an entry stands for ("" where its images cannot be read); it stands under the first of `adds` +
    "_of", and images that are others now raise ResumeError. A line of an older version, without it, is taken as it is,
    and so is one whose images are gone.
    """
    beside = output.with_name(output.name + ".settings.json")
    if output.exists() and source.exists() and output.samefile(source):
        raise ResumeError(f"{output} is the input: take another file for the output")
    with output.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{output}: another process writes there") from None
        if overwrite:
            held.truncate(0)
            beside.unlink(missing_ok=True)
        written, rest = whole_lines(output), iter(entries)
        if written:
            check_settings(beside, settings)
        else:
            beside.write_text(json.dumps(dict(settings), indent=2) + "\n")
        done: list[dict[str, Any]] = []
        of = f"{adds[0]}_of"
        told = lambda line, entry: {of: content(line, entry)} if content else {}
        bare = lambda x: {k: v for k, v in x.items() if k not in (*adds, of)}
        for (where, old), (line, entry) in zip(written, rest):  # zip takes from `written` first: no entry is lost
            if not isinstance(old, dict) or not set(adds) <= set(old) or bare(old) != bare(line) or not good(old):
                raise ResumeError(f"{where} is not the result of entry {len(done) + 1} of {source}")
            now = content(line, entry) if content and of in old else ""
            if now and old[of] != now:
                raise ResumeError(f"{where}: the images of entry {len(done) + 1} of {source} are others now; {ADVICE}")
            done.append(old)
        if len(written) > len(done):
            raise ResumeError(f"{output} has {len(written)} lines, {source} {len(done)} edits")
        with tqdm(desc=doing, unit="edit", total=total, initial=len(done), disable=None if progress else True) as bar:
            said = time.monotonic()
            while part := list(itertools.islice(rest, chunk)):
                new = [{**line, **found, **told(line, x)} for (line, x), found in zip(part, work(part), strict=True)]
                append_lines(output, new)
                done += new
                bar.update(len(part))
                if progress and bar.disable and time.monotonic() - said > 30:
                    said = time.monotonic()
                    print(f"{doing}: {len(done)} of {total} edits", file=sys.stderr, flush=True)
    return done


def check_settings(beside: Path, settings: Mapping[str, Any], advice: str = ADVICE) -> None:
    """Raises ResumeError, with the difference, unless a file holds these settings."""
    check_same(json_files.read_object(beside) if beside.exists() else {}, settings, advice)


def check_same(old: Mapping[str, Any], new: Mapping[str, Any], advice: str) -> None:
    """Raises ResumeError, with the difference, for settings that are not those of an output."""
    changed = [f"  {k}: {old.get(k)!r} -> {new.get(k)!r}" for k in {**old, **new} if old.get(k) != new.get(k)]
    if changed:
        lines = "\n".join(changed)
        raise ResumeError(f"the output was begun under other settings; {advice}:\n{lines}")
