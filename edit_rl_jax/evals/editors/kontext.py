"""KontextBench: 1,026 pictures and instructions in five categories, which people judge.

There is no published protocol of a model. It is asked GEdit-Bench's two questions here, as other work does; figures are
means of categories, their unweighted mean, and the pooled mean beside it.
"""

from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path

from edit_rl_jax.data import fields
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.evals.editors.cases import Entry, Item, Judged
from edit_rl_jax.evals.editors.gedit import AS_SHOWN, DECIMALS, OFFICIAL, SCALE, SHOWS, questions, read, sample
from edit_rl_jax.evals.judges.cases import Problems
from edit_rl_jax.evals.judges.files import rows

__all__ = ["AS_SHOWN", "DECIMALS", "OFFICIAL", "SCALE", "SHOWS", "questions", "read", "sample"]
PARTS, ALIASES = ("test",), {}
COUNTS = {"test": 1026}
CATEGORIES = (
    "Character Reference",
    "Instruction Editing - Global",
    "Instruction Editing - Local",
    "Style Reference",
    "Text Editing",
)
GROUPS = {"test": CATEGORIES}


def entries(data: Path, part: str, problems: Problems) -> Iterator[Entry]:
    """Yields the rows of the dataset's files: `category`, `instruction`, `key`, and the source as `image` (parquet) or
    `file_name` (metadata.jsonl beside the pictures)."""
    for number, (where, row, folder) in enumerate(rows(data)):
        try:
            if isinstance(row, RecordError):
                raise row
            group, asked = row["category"], fields.text(where, row, "instruction")
            if group not in CATEGORIES:
                raise RecordError(where, "malformed row", f"category {group!r:.60}")
            key = fields.key(where, row, "key", "id") if {"key", "id"} & set(row) else str(number)
        except (RecordError, KeyError, TypeError, AttributeError) as error:
            problems.add("malformed row", where, str(error))
            continue
        value = next((row[n] for n in ("image", "file_name") if row.get(n) is not None), None)
        item = Item(f"test/{key}", key, "test", group, asked, file=f"{key}.png")
        yield item, partial(fields.image, where, "image", value, folder)


def recorded(path: Path, part: str, problems: Problems) -> Iterable[tuple[Item, Judged]] | None:
    """There is no form of upstream's."""
    return None
