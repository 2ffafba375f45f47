"""Makes candidates for best of N of a benchmark's items: folders of edits, one a sample, with what each is worth."""

import itertools
import logging
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.editors import compare, judged
from edit_rl_jax.evals.editors.world import by_oracle
from edit_rl_jax.evals.judges.cases import Problems

log = logging.getLogger(__name__)


def write(
    name: str,
    data: str | Path,
    folders: Sequence[str | Path],
    home: Path,
    part: str = "",
    measured: Sequence[str | Path] = (),
) -> Path:
    """Writes `home`/candidates.jsonl, as `best_of_n.read` reads it, and the sources beside it; returns its path.

    folders: of edits in upstream's layout, one a sample. measured: results of eval_editor.py on each of them, in the
    same order, whose official figure is the candidates' truth; of `editworld` it is the oracle's O without them. A
    candidate without an image or without a judgement has none. Raises ValueError where the numbers differ or an item
    is another one than that which was judged.
    """
    bench, problems, lines, taken = judged.benchmark(name), Problems(), [], dict[Path, str]()
    if measured and len(measured) != len(folders):
        raise ValueError(f"{len(folders)} folders of edits, but {len(measured)} of their results")
    known = [compare.load(f) for f in measured]
    part = bench.ALIASES.get(part, part) or bench.PARTS[0]
    entries = judged.distinct(bench.entries(judged.home_of(name, data)[0], part, problems), {}, problems)
    (home / "sources").mkdir(parents=True, exist_ok=True)
    while chunk := list(itertools.islice(entries, 64)):
        for item, load in chunk:
            line: dict[str, Any] = {"id": item.id, "group": item.group, "instruction": item.instruction}
            line |= {"extras": dict(item.extras)} if item.extras else {}
            file = home / "sources" / f"{item.id.replace('/', '_')}.png"  # by its content it may be JPEG, too
            file.unlink(missing_ok=True)  # of an earlier call
            try:
                file.write_bytes(load())
            except RecordError as error:
                problems.add(error.reason, item.id, str(error))  # its candidates are not valid then, and counted
            found = [judged.picture_of(Path(f), item.file) or Path(f) / item.file for f in folders]
            for picture in found:
                judged.once(picture, item, taken)
            seen = lambda path: os.path.relpath(path, home)
            line |= {"source": seen(file), "candidates": [seen(p) for p in found]}
            if known:
                line["truth"] = [_truth(r, item) for r in known]
            elif name == "editworld":
                line["truth"] = [_by_oracle(item, p) for p in found]
            lines.append(line)
    (file := home / "problems.json").unlink(missing_ok=True)
    if problems.found:
        file.write_text(json_files.dumps(problems.found) + "\n", encoding="utf-8")
        log.warning("%s: %s", file, ", ".join(f"{e['n']} {r}" for r, e in problems.found.items()))
    if not lines:
        raise ValueError(f"{data}: no item of {name}")
    out = home / "candidates.jsonl"
    out.write_text("".join(json_files.dumps(x) + "\n" for x in lines), encoding="utf-8")
    return out


def _truth(results: compare.Results, item: Any) -> float | None:
    """The official figure of an item's edit. Raises ValueError where that was another item."""
    own = results.items.get(item.id)
    if own is not None and (own.group, own.instruction) != (item.group, item.instruction):
        raise ValueError(f"{results.folder}: {item.id} is not the same item")
    value = results.value(item.id) if own is not None else float("nan")
    return None if value != value else value


def _by_oracle(item: Any, path: Path) -> float | None:
    if not path.is_file():
        return None
    found = by_oracle([(item, b"", path.read_bytes())])[0]
    return found.figures["O"] if found.valid else None
