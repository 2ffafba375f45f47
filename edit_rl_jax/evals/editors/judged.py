"""Runs an editor's edits through a judged benchmark.

Writes eval.json, judgements.jsonl, thumbnails.jsonl (of the items that a leaderboard shows) and report.html.
"""

import base64
import fcntl
import hashlib
import importlib
import io
import itertools
import json
import logging
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image
from tqdm import tqdm

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.images import decode_image, encode_png, image_size, resize
from edit_rl_jax.evals.editors import figures, recorded
from edit_rl_jax.evals.editors.asking import Ready
from edit_rl_jax.evals.editors.cases import Benchmark, Entry, Item, Judged
from edit_rl_jax.evals.judges.cases import Problems
from edit_rl_jax.evals.judges.dimensions import dimension_of, matching
from edit_rl_jax.evals.judges.files import dataset_folder
from edit_rl_jax.json_files import dumps, read_object
from edit_rl_jax.rewards.base import Edit, Judge, Judgement
from edit_rl_jax.training.report import write_report

log = logging.getLogger(__name__)

BENCHMARKS = {"gedit_bench": "gedit", "imgedit_bench": "imgedit", "kontext_bench": "kontext", "editworld": "world"}
CHUNK = 128  # edits in memory at once
THUMBNAILS, SIDE = 8, 112  # of each group of each part; pixels of the longer side
KINDS = (".png", ".jpg", ".jpeg", ".webp")

Judging = Callable[[Sequence[Ready]], list[Judged]]


def benchmark(name: str) -> ModuleType:
    """Returns a benchmark by its name in `BENCHMARKS`."""
    return importlib.import_module(f"{__package__}.{BENCHMARKS[name]}")


def by_judge(bench: Benchmark, judge: Judge) -> Judging:
    """Judges by any judge of the project: SC, PQ and O on GEdit's 0-10 of one with those questions, else its overall
    figure on its own scale."""

    def judge_all(ready: Sequence[Ready]) -> list[Judged]:
        edits = [Edit(source, edited, item.instruction, item.extras) for item, source, edited in ready]
        return [_of_judgement(bench, j) for j in judge.score(edits, progress=False)]

    return judge_all


def _of_judgement(bench: Benchmark, judged: Judgement) -> Judged:
    if not judged.valid:
        return Judged(problem="unreadable answer" if judged.unread else "no judgement", detail=judged.problem)
    if judged.overall is None:
        return Judged(problem="no judgement", detail="the judge gives no overall figure")
    sc, pq = ({"sc": "SC", "pq": "PQ"}.get(n) and dimension_of(judged, n) for n in ("sc", "pq"))
    if bench.OFFICIAL == "O" and sc and pq and matching("VQ", judged.dimensions) == "pq":
        found = {"SC": 10 * sc.share, "PQ": 10 * pq.share, "O": 10 * judged.overall.share}
    else:
        found = {figures.OWN: judged.overall.value}
    return Judged(found, words=judged.reasons)


def prepared(bench: Benchmark, item: Item, load: Callable[[], bytes], folder: Path) -> Ready:
    """Reads an item's source and edit; for GEdit's protocol the edit is brought to the source's size.

    Raises RecordError: "missing image", or why one cannot be read.
    """
    edited = picture_of(folder, item.file)
    if edited is None:
        raise RecordError(item.id, "missing image", f"{folder / item.file}")
    own = picture_of(folder, item.source_file) if item.source_file else None
    try:
        source, data = own.read_bytes() if own else load(), edited.read_bytes()
        size, pixels = image_size(source, where=f"{item.id} source"), decode_image(data, where=item.id)
        if pixels.shape[:2] != size and bench.AS_SHOWN:
            out = io.BytesIO()
            Image.fromarray(pixels).resize((size[1], size[0])).save(out, "PNG")  # PIL's own filter, as upstream
            data = out.getvalue()
    except RecordError as error:
        reason = "missing source image" if error.reason == "missing file" else error.reason
        raise RecordError(item.id, reason, error.detail) from None
    return item, source, data


def picture_of(folder: Path, name: str) -> Path | None:
    """Finds a picture by its key: where upstream has it, in another format, or without the first folder of its path."""
    stem = Path(name).with_suffix("")
    homes = [folder / stem, folder.joinpath(*stem.parts[1:])] if len(stem.parts) > 1 else [folder / stem]
    return next((p for h in homes for k in KINDS if (p := h.with_name(h.name + k)).is_file()), None)


def once(picture: Path | None, item: Item, taken: dict[Path, str]) -> None:
    """Notes whose edit a picture is. Raises ValueError where it is another item's, too."""
    if picture is not None and (other := taken.setdefault(picture, item.id)) != item.id:
        raise ValueError(f"{picture} is the edit of {other} and of {item.id}: give each part its folder, {item.file}")


def shown(items: Iterable[Item]) -> set[str]:
    """Picks the items whose pictures are kept: of each group the first by a hash, so that all editors show the same."""
    order = sorted(items, key=lambda i: hashlib.sha256(i.id.encode()).digest())
    grouped = itertools.groupby(sorted(order, key=lambda i: (i.part, i.group)), lambda i: (i.part, i.group))
    return {i.id for _, own in grouped for i in itertools.islice(own, THUMBNAILS)}


def thumbnail(data: bytes) -> str:
    """A small WebP of a picture, as base64. Raises ImageError."""
    picture, file = Image.fromarray(decode_image(data)), io.BytesIO()
    picture.thumbnail((SIDE, SIDE))
    picture.save(file, "WEBP", quality=60, method=4)
    return base64.b64encode(file.getvalue()).decode()


def run(
    name: str,
    output: str | Path,
    *,
    editor: str,
    judge: str,
    judging: Judging | None = None,
    data: str | Path | None = None,
    images: str | Path | None = None,
    predictions: str | Path | None = None,
    part: str = "",
    about: Mapping[str, Any] | None = None,
    spent: Callable[[], Mapping[str, Any]] | None = None,
    revision: str | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Evaluates and returns what it wrote to `output`/eval.json.

    editor, judge: the names under which the results stand in a leaderboard. judging: with `images`, a folder of edits,
    and `data`; or `predictions`, for which the data may be left out where they name their groups. about: what decides
    the judgements; spent: what they took (`EndPointJudge.spent`). Raises ValueError where there is no item and where
    one picture would be the edit of two, OSError, ValueError for files that cannot be read.
    """
    bench, problems, home, taken = benchmark(name), Problems(), Path(output), dict[Path, str]()
    part = bench.ALIASES.get(part, part) or bench.PARTS[0]
    if (judging is None) == (predictions is None) or (judging is not None and (data is None or images is None)):
        raise ValueError("wanted are a judge with data and images, or predictions")
    if part not in ("all", *bench.PARTS):
        raise ValueError(f"{name} has {', '.join(bench.PARTS)} and all, not {part!r}")
    known = recorded.read(bench, predictions, part, problems) if predictions else {}
    found, entries = revision, None
    if data is not None:
        folder, found = home_of(name, data, revision)
        entries = bench.entries(folder, part, problems)
    else:
        entries = ((item, None) for item in recorded.items_of(known, bench))
    home.mkdir(parents=True, exist_ok=True)
    items: dict[str, Item] = {}
    judged: dict[str, Judged] = {}
    pictures: dict[str, dict[str, str]] = {}
    with tqdm(desc="judging", unit="edit", disable=None if progress else True) as bar:
        for chunk in _chunks(distinct(entries, items, problems)):
            ready = []
            for item, load in chunk:
                if predictions is not None:
                    given = known.pop(item.id, (item, Judged(problem="no judgement", detail="none is recorded")))[1]
                    judged[item.id] = recorded.settle(bench, item, given)
                    if images is None or load is None:
                        continue
                once(picture_of(Path(images), item.file), item, taken)
                try:
                    ready.append(prepared(bench, item, load, Path(images)))
                except RecordError as error:
                    judged.setdefault(item.id, Judged(problem=error.reason, detail=error.detail or str(error)))
            if judging is not None:
                judged |= {i.id: j for (i, _, _), j in zip(ready, judging(ready), strict=True)}
            pictures |= {i.id: {"source": s, "edited": e} for i, s, e in ready}  # kept below, if shown
            bar.update(len(chunk))
            _shrink(pictures, shown(items.values()))
    for left in known:
        problems.add("judgement of no item", left)
    if not items:
        raise ValueError(f"{data or predictions}: no item of {name}, {part}")
    every = list(items.values())
    _write_lines(home / "judgements.jsonl", [recorded.to_line(i, judged[i.id]) for i in every])
    _write_lines(home / "thumbnails.jsonl", [{"id": n} | p for n, p in pictures.items()])
    told = {"benchmark": name, "part": part, "editor": editor, "judge": judge}
    told |= {"data": str(data or ""), "revision": found}
    made = told | figures.evaluate(bench, every, judged) | {"problems": problems.found}
    made |= {"asking": dict(spent())} if spent else {}
    if name == "imgedit_bench" and (theirs := _upstream(bench, every, judged)):
        made["by_upstreams_reader"] = theirs
    made |= {"intervals": "95%, bootstrap over the items of each group", "about": dict(about or {})}
    (home / "eval.json").write_text(json.dumps(made, indent=2, allow_nan=False) + "\n")
    write_report(home)
    return made


def home_of(name: str, data: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """Returns (folder or file of the data, its revision)."""
    local = name == "editworld" or Path(data).is_file()
    return (Path(data), revision) if local else dataset_folder(data, revision)


def _upstream(bench: ModuleType, items: Sequence[Item], judged: Mapping[str, Judged]) -> dict[str, Any]:
    """What upstream's scripts make of the same replies: those that their reader cannot read are left out."""
    found = {}
    for part in bench.PARTS:
        own = [i for i in items if i.part == part and "score" in judged[i.id].replies]
        values = [bench.upstream_sample(judged[i.id].replies["score"]) for i in own]
        if any(v is not None for v in values):
            score = figures.macro([float("nan") if v is None else v for v in values], [i.group for i in own], 2)
            found[part] = {"score": score, "n": len(own), "n_left_out": values.count(None)}
    return found


def distinct(entries: Iterable[Entry], items: dict[str, Item], problems: Problems) -> Iterable[Entry]:
    for item, load in entries:
        if item.id in items:
            problems.add("doubled id", item.id)
            continue
        items[item.id] = item
        yield item, load


def _chunks(entries: Iterable[Entry]) -> Iterable[list[Entry]]:
    entries = iter(entries)
    while chunk := list(itertools.islice(entries, CHUNK)):
        yield chunk


def _shrink(pictures: dict[str, dict[str, Any]], wanted: set[str]) -> None:
    """Leaves the pictures that are shown, small."""
    for name in list(pictures):
        if name not in wanted:
            del pictures[name]
        elif isinstance(pictures[name]["source"], bytes):
            try:
                pictures[name] = {k: thumbnail(v) for k, v in pictures[name].items()}
            except RecordError:
                del pictures[name]


def _write_lines(path: Path, lines: Sequence[Any]) -> None:
    beside = path.with_name(path.name + ".new")
    beside.write_text("".join(dumps(x) + "\n" for x in lines), encoding="utf-8")
    os.replace(beside, path)


def make_images(
    name: str,
    sampler: Any,
    data: str | Path,
    folder: Path,
    settings: Mapping[str, Any],
    part: str,
    seed: int = 0,
    member: int = 0,
    revision: str | None = None,
) -> None:
    """Makes the edits that a folder does not hold yet, in upstream's layout, each at its source's size.

    An editor chooses the size that it works at, as where none is asked for; what it made is resized to the source's. An
    edit's noise comes from the item's id, so that it is the same whatever part is asked for. `made.jsonl` tells of what
    instruction and source each is.

    member: which of an editor's samples they are. revision: of the data. Raises ResumeError where the folder was begun
    with other settings or of other data, BlockingIOError where another process makes them.
    """
    from edit_rl_jax.data.resumable import check_settings

    bench, problems = benchmark(name), Problems()
    home, found = home_of(name, data, revision)
    told = {} if name == "editworld" else {"revision": found}  # its files tell split and seed
    beside, settings = folder / "settings.json", {**settings, "size": "the editor's own", **told}
    folder.mkdir(parents=True, exist_ok=True)
    with beside.open("a") as held:  # NFS locks what is open for writing
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BlockingIOError(f"{folder}: another process makes these edits") from None
        if beside.stat().st_size:
            known = read_object(beside)  # of an older version without a revision
            check_settings(
                beside, {k: v for k, v in settings.items() if k in known or k != "revision"}, "take another output"
            )
        beside.write_text(json.dumps(dict(settings), indent=2) + "\n")
        _make(sampler, bench.entries(home, bench.ALIASES.get(part, part), problems), folder, seed, member)


def _make(sampler: Any, entries: Iterator[Entry], folder: Path, seed: int, member: int) -> None:
    from edit_rl_jax.data.resumable import ResumeError, append_lines, whole_lines
    from edit_rl_jax.editors.sampling import Edit as Asked

    told = folder / "made.jsonl"
    known = {line["file"]: line["of"] for _, line in whole_lines(told)}
    while chunk := list(itertools.islice(entries, 32)):
        asked, files, sizes = [], [], []
        for item, load in chunk:
            there = (folder / item.file).exists()
            if there and item.file not in known:  # of an older version
                continue
            try:
                source = load()
                of = hashlib.sha256(item.instruction.encode() + b"\0" + source).hexdigest()
                if there and known[item.file] != of:
                    said = "was made of another source or instruction: take another output"
                    raise ResumeError(f"{folder / item.file} {said}")
                if there:
                    continue
                image = decode_image(source, where=item.id)
                number = int.from_bytes(hashlib.sha256(item.id.encode()).digest()[:4], "big") >> 1
                edit = Asked(item.instruction, (image,), None, number, member, item.id)
                sampler.check(edit)
            except RecordError as error:  # it is missing, and counted where the folder is judged
                log.warning("not edited: %s", error)
                continue
            asked.append(edit)
            files.append((folder / item.file, {"file": item.file, "of": of}))
            sizes.append(image.shape[:2])
        for (file, line), size, image in zip(files, sizes, sampler.made(asked, seed) if asked else ()):
            if isinstance(image, RecordError):
                log.warning("not edited: %s", image)
                continue
            file.parent.mkdir(parents=True, exist_ok=True)
            beside_it = file.with_suffix(".new")
            beside_it.write_bytes(encode_png(resize(image, *size)))
            append_lines(told, [line])
            os.replace(beside_it, file)  # one that stands is whole
