"""A file of instructions edited into a folder of images, resumably (see `data.resumable`)."""

import dataclasses
import hashlib
import itertools
import math
import os
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data.images import ImageError, decode_image, encode_png, resize
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.data.resumable import complete
from edit_rl_jax.editors.base import EditError
from edit_rl_jax.editors.sampling import Edit, EditorSampler

RESULTS = "edits.jsonl"
ADDED = ("edited", "candidates", "valid", "problem")


def entries(path: Path, home: Path) -> Iterator[tuple[dict[str, Any], Callable[[], Edit | str]]]:
    """For each line of a file its output line without results, and what reads the edit, or gives the reason why there
    is none.

    A line is a JSON object with `instruction`, `source` (a path from the file's folder, or a list of up to 5, or
    absent), and `size` ([height, width]) where there is not one source. In the output paths are seen from `home`. Edit
    number n is item n of the random numbers. ValueError names a line that is no such object.
    """
    for item, (where, line) in enumerate(_lines(path)):
        sources = line.get("source", [])
        sources = [sources] if isinstance(sources, str) else sources
        seen = [os.path.relpath(path.parent / s, home) for s in sources]
        out = line | ({"source": seen[0] if isinstance(line["source"], str) else seen} if "source" in line else {})
        yield out, partial(_read, path.parent, sources, line, item, where)


def _read(folder: Path, sources: list[str], line: dict[str, Any], item: int, where: str) -> Edit | str:
    try:
        images = tuple(decode_image(folder / s, where=s) for s in sources)
    except ImageError as error:
        return str(error)
    size = tuple(line["size"]) if line.get("size") else None
    return Edit(line["instruction"], images, size, item=item, where=where)


def _line(where: str, line: Any) -> tuple[str, dict[str, Any]]:
    try:
        sources, size = line.get("source", []), line.get("size")
        good = isinstance(line.get("instruction"), str) and isinstance(sources, str | list)
        good = good and all(isinstance(s, str) for s in sources)
        good = good and (not size or len(size) == 2 and all(isinstance(n, int) and n > 0 for n in size))
    except (AttributeError, TypeError):
        good = False
    if not good:
        raise ValueError(
            f"{where}: wanted is an object with `instruction`, `source` (path or paths) and, if any, `size`"
        )
    return where, line


def lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file. Raises ValueError, naming the line, where one is malformed."""
    return [line for _, line in _lines(path)]


def _lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return json_files.rows(path, _line)


def edit_file(
    sampler: EditorSampler,
    source: Path,
    home: Path,
    settings: Mapping[str, Any],
    *,
    samples: int = 1,
    seed: int = 0,
    chunk: int = 16,
    keep_size: bool = False,
    overwrite: bool = False,
    progress: bool = True,
) -> tuple[int, int]:
    """Makes the edits that `home`/edits.jsonl does not hold yet; returns (edits, those that could not be made).

    Line n has `candidates`, its `samples` PNGs in `home` ("000012.png", or "000012_00.png", ...), and `edited`, the
    first of them; none and null where `valid` is false, for the reason `problem`; `edited_of` is a hash of its sources.
    keep_size: results are resized as `kept_size` says.
    """
    home.mkdir(parents=True, exist_ok=True)

    def work(part):
        asked = [edit if isinstance(edit, str) else _problem(sampler, edit) or edit for edit in (r() for _, r in part)]
        wanted = [dataclasses.replace(e, member=k) for e in asked if not isinstance(e, str) for k in range(samples)]
        made = iter(sampler.made(wanted, seed))
        return [found(e, made) for e in asked]

    def found(edit, made):
        if isinstance(edit, str):
            return dict(zip(ADDED, (None, [], False, edit)))
        names, images = [], list(itertools.islice(made, samples))
        if fault := next((x for x in images if isinstance(x, EditError)), None):
            return dict(zip(ADDED, (None, [], False, str(fault))))
        for k, image in enumerate(images):
            name = f"{edit.item:06}.png" if samples == 1 else f"{edit.item:06}_{k:02}.png"
            if keep_size and edit.images:
                image = resize(image, *kept_size(edit, image.shape[:2]))
            (home / name).write_bytes(encode_png(image))  # before its line: a line that stands is whole
            names.append(name)
        return dict(zip(ADDED, (names[0], names, True, None)))

    good = lambda x: isinstance(x["valid"], bool) and isinstance(x["candidates"], list)
    how = dict(
        adds=ADDED, good=good, source=source, chunk=chunk, overwrite=overwrite, progress=progress, doing="editing"
    )
    content = lambda line, _: _content(home, line.get("source", []))
    done = complete(home / RESULTS, entries(source, home), len(lines(source)), work, settings, content=content, **how)
    return len(done), sum(not x["valid"] for x in done)


def kept_size(edit: Edit, made: tuple[int, int]) -> tuple[int, int]:
    """Gives the (height, width) of the source whose aspect the result has: the last; where a size was asked for, that
    of nearest aspect, and the result's own, `made`, where that is no source's within a tenth."""
    aspect = lambda size: math.log(size[0] / size[1])
    sizes = [(image.shape[0], image.shape[1]) for image in edit.images]
    if edit.size is None:
        return sizes[-1]
    near = min(sizes, key=lambda size: abs(aspect(size) - aspect(made)))
    return near if abs(aspect(near) - aspect(made)) < 0.1 else made


def _content(home: Path, sources: str | list[str]) -> str:
    """Hashes the files of an edit's sources; "" where one cannot be read."""
    digest = hashlib.sha256()
    try:
        for name in [sources] if isinstance(sources, str) else sources:
            digest.update(hashlib.sha256((home / name).read_bytes()).digest())
    except (OSError, ValueError):  # ValueError: a path that no file can have
        return ""
    return digest.hexdigest()


def _problem(sampler: EditorSampler, edit: Edit) -> str | None:
    try:
        sampler.check(edit)
    except RecordError as error:
        return str(error)
