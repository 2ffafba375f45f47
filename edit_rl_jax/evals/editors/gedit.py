"""GEdit-Bench: eleven groups, English and Chinese; scores of semantic consistency (SC) and perceptual quality (PQ).

Each of both is the smaller of two scores on 0-10; O = sqrt(SC * PQ) of each sample, not of means. Figures are means of
groups, and their unweighted mean. Upstream shows its judge pictures as JPEG, the edit at the source's size, and for PQ
the edit alone.
"""

import csv
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edit_rl_jax.data import fields
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.editors import reading
from edit_rl_jax.evals.editors.cases import Entry, Item, Judged, Reply, is_number
from edit_rl_jax.evals.judges.cases import Problems
from edit_rl_jax.evals.judges.files import rows

NAMES = (
    "background_change", "color_alter", "material_alter", "motion_change", "ps_human", "style_change", "subject-add",
    "subject-remove", "subject-replace", "text_change", "tone_transfer",
)  # fmt: skip
PARTS, ALIASES = ("en", "cn"), {"zh": "cn"}
COUNTS = {"en": 606, "cn": 606}
GROUPS = {"en": NAMES, "cn": NAMES}
OFFICIAL, SCALE, DECIMALS, AS_SHOWN = "O", (0.0, 10.0), None, "jpeg"
SHOWS = {"sc": ("source", "edited"), "pq": ("edited",)}
_PATH = re.compile(r"(?:^|/)([\w-]+)/(en|cn|zh)/([^/]+)\.\w+$")


def entries(data: Path, part: str, problems: Problems) -> Iterator[Entry]:
    """Yields the rows of the dataset's files: `task_type`, `key`, `instruction`, `instruction_language`, the source as
    `input_image_raw` or `input_image`, `Intersection_exist`."""
    for where, row, folder in rows(data):
        try:
            item = _item(where, row)
        except (RecordError, KeyError, TypeError, AttributeError) as error:
            problems.add("malformed row", where, str(error))
            continue
        if part in ("all", item.part):
            value = next((row[n] for n in ("input_image_raw", "input_image") if row.get(n) is not None), None)
            yield item, partial(fields.image, where, "input_image", value, folder)


def _item(where: str, row: Any) -> Item:
    if isinstance(row, RecordError):
        raise row
    language, group = str(row["instruction_language"]), fields.text(where, row, "task_type")
    language, key = ALIASES.get(language, language), fields.key(where, row, "key")
    if language not in PARTS or group not in NAMES:
        raise RecordError(where, "malformed row", f"task_type {group!r:.40}, instruction_language {language!r:.20}")
    return item_of(language, group, key, fields.text(where, row, "instruction"), row.get("Intersection_exist"))


def item_of(language: str, group: str, key: str, instruction: str = "", intersection: Any = None) -> Item:
    """Makes an item, with its files where upstream's scripts look for them."""
    known = None if intersection is None else str(intersection).strip().lower() in ("true", "1")
    home = f"fullset/{group}/{language}/{key}"
    return Item(f"{language}/{key}", key, language, group, instruction, known, f"{home}.png", f"{home}_SRCIMG.png")


def questions(item: Item) -> Mapping[str, str]:
    """Names both questions."""
    return {"sc": "sc", "pq": "pq"}


def read(item: Item, question: str, text: str) -> Reply:
    """Reads two scores on 0-10."""
    return reading.score_list(text, 2, 10)


def sample(item: Item, scores: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """SC, PQ and O of a sample. Raises ValueError without scores."""
    sc, pq = min(scores["sc"]), min(scores["pq"])
    return {"SC": sc, "PQ": pq, "O": math.sqrt(sc * pq)}


def recorded(path: Path, part: str, problems: Problems) -> Iterable[tuple[Item, Judged]] | None:
    """Reads upstream's CSV, or a folder of them (those of groups; the combined one where it stands alone)."""
    files = sorted(path.rglob("*_gpt_score.csv")) if path.is_dir() else [path]
    files = [f for f in files if "_combined_" not in f.name] or files
    return _of_csv(files, part, problems) if files and files[0].suffix == ".csv" else None


def _of_csv(files: Sequence[Path], part: str, problems: Problems) -> Iterator[tuple[Item, Judged]]:
    for file in files:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            for number, row in enumerate(csv.DictReader(lines), 2):
                where = f"{file.name}:{number}"
                found = _PATH.search((row.get("edited_image") or "").replace("\\", "/"))
                if not found or found[1] not in NAMES:
                    problems.add("malformed line of predictions", where, "no .../TASK/LANGUAGE/KEY.png")
                    continue
                language = ALIASES.get(found[2], found[2])
                if part in ("all", language):
                    about = (row.get("instruction") or "", row.get("intersection_exist"))
                    yield item_of(language, found[1], found[3], *about), _judged(row)


def _judged(row: Mapping[str, Any]) -> Judged:
    """A line's SC and PQ, each the smaller score already; `sementics_score` is upstream's spelling."""
    try:
        sc, pq = (float(row[n]) for n in ("sementics_score", "quality_score"))
    except (KeyError, TypeError, ValueError):
        return Judged(problem="malformed judgement", detail="sementics_score and quality_score are wanted")
    if not all(is_number(v) and SCALE[0] <= v <= SCALE[1] for v in (sc, pq)):
        return Judged(problem="malformed judgement", detail=f"{sc}, {pq}: not on 0-10")
    return Judged({"SC": sc, "PQ": pq, "O": math.sqrt(sc * pq)})
