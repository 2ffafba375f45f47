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


class ResumeError(ValueError):
    """The output holds something else than the beginning of this run."""


def whole_lines(path: Path) -> list[str]:
    """The lines of a file that is appended to; a last one that was cut by a kill is cut off the file."""
    if not path.exists():
        return []
    data = path.read_bytes()
    end = data.rfind(b"\n") + 1
    if end < len(data):
        os.truncate(path, end)
    return data[:end].decode().splitlines()


def append_lines(path: Path, objects: Sequence[Any]) -> None:
    """Appends JSON lines and waits until the disk has them."""
    with path.open("a") as file:
        file.write("".join(json.dumps(x, ensure_ascii=False) + "\n" for x in objects))
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
    source: Path,
    chunk: int,
    overwrite: bool = False,
    progress: bool = True,
    doing: str = "scoring",
) -> list[dict[str, Any]]:
    """Works on the entries (line, what it stands for) that `output` does not hold yet; returns all its lines.

    A line of the output is an entry's line and the results that `work` gives for it, under the names `adds`. The
    settings stand beside it in `<output>.settings.json`; an output of other settings or of another input raises
    ResumeError, unless `overwrite` removes it. Raises BlockingIOError where another process writes the same output.
    """
    beside = output.with_name(output.name + ".settings.json")
    with output.open("a") as held:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if overwrite:
            held.truncate(0)
            beside.unlink(missing_ok=True)
        texts, rest = whole_lines(output), iter(entries)
        if texts:
            _check_settings(beside, settings)
        beside.write_text(json.dumps(dict(settings), indent=2) + "\n")
        done: list[dict[str, Any]] = []
        for number, (text, (line, _)) in enumerate(zip(texts, rest), 1):  # zip takes from `texts` first: none is lost
            old = json.loads(text)
            bare = lambda x: {k: v for k, v in x.items() if k not in adds}
            if bare(old) != bare(line) or not set(adds) <= set(old):
                raise ResumeError(f"{output}:{number} is not the result of entry {number} of {source}")
            done.append(old)
        if len(texts) > total:
            raise ResumeError(f"{output} has {len(texts)} lines, {source} {total} edits")
        with tqdm(desc=doing, unit="edit", total=total, initial=len(done), disable=None if progress else True) as bar:
            said = time.monotonic()
            while part := list(itertools.islice(rest, chunk)):
                new = [{**line, **found} for (line, _), found in zip(part, work(part), strict=True)]
                append_lines(output, new)
                done += new
                bar.update(len(part))
                if progress and bar.disable and time.monotonic() - said > 30:
                    said = time.monotonic()
                    print(f"{doing}: {len(done)} of {total} edits", file=sys.stderr, flush=True)
    return done


def _check_settings(beside: Path, settings: Mapping[str, Any]) -> None:
    old = json.loads(beside.read_text()) if beside.exists() else {}
    changed = [
        f"  {k}: {old.get(k)!r} -> {settings.get(k)!r}" for k in {**old, **settings} if old.get(k) != settings.get(k)
    ]
    if changed:
        lines = "\n".join(changed)
        raise ResumeError(f"the output was begun under other settings; take another file, or --overwrite:\n{lines}")
