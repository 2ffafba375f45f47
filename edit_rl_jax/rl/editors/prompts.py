"""What an editor is asked in RL: sources of (source image, instruction), in an order that is a function of the step."""

import base64
import dataclasses
import functools
import hashlib
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from edit_rl_jax import json_files
from edit_rl_jax.data.errors import ImageError
from edit_rl_jax.data.images import decode_image
from edit_rl_jax.data.principles import principles_id, to_json
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.editors.rows import cover
from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.editworld.edits import Edit
from edit_rl_jax.editworld.principles import principles_of
from edit_rl_jax.editworld.render import render
from edit_rl_jax.names import ConfigError, nearest, resolve
from edit_rl_jax.rl.editors.config import evaluation_size
from edit_rl_jax.rl.shares import Sharing

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Prompt:
    """One thing to edit. `edit`: of the built-in world, for its oracle; `extras`: what else a judge may want to know,
    as `rewards.base.Edit` has it."""

    key: str
    source: UInt8[np.ndarray, "H W 3"]
    instruction: str
    task: str = ""
    edit: Edit | None = None
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@runtime_checkable
class Source(Protocol):
    """Random access to prompts. `data_hash` names the content."""

    data_hash: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Prompt: ...


class World:
    """Edits of the built-in world; each a function of (split, seed, index) alone."""

    def __init__(self, split: str, size: int, seed: int, height: int, width: int, key: str = "rl.size", **options: Any):
        if height != width:
            raise ConfigError(f"config key '{key}': the built-in world is square, not {height} x {width}")
        self._records = EditRecords(split, size, seed, height, group=1, **options)
        self.data_hash = hashlib.sha256(repr((split, size, seed, height, sorted(options.items()))).encode()).hexdigest()

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Prompt:
        edit, r = self._records.edit(index), self._records
        picture = render(edit.source, r.resolution)
        extras = {"principles": to_json(principles_of(edit))}
        return Prompt(f"{r.split}/{r.seed}/{index}", picture, edit.instruction, edit.task, edit, extras)


class Lines:
    """JSON lines with `source` (a path, from the file's folder) or `input_images` (a list of one), `instruction`, and
    if known `task` or `task_type`, and `extras`, an object for the judge; in it is put, if there is none, the
    `principles_id` of the source's file (`data.principles`). Sources are cropped to the aspect of height x width and
    resized."""

    def __init__(self, file: Path, height: int, width: int):
        self.file, self.size, self.data_hash = file, (height, width), hashlib.sha256(file.read_bytes()).hexdigest()
        try:
            self._rows = list(json_files.rows(file, _row))
        except json_files.JSONError as e:
            raise ConfigError(str(e)) from None

    def __len__(self) -> int:
        return len(self._rows)

    def encoded(self, index: int) -> tuple[str, bytes, str]:
        """Gives a line's key, its source's file and its instruction. Raises ImageError."""
        row, key = self._rows[index], f"{self.file.name}/{index}"
        try:
            return key, (self.file.parent / _image(row)).read_bytes(), row["instruction"]
        except FileNotFoundError as error:
            raise ImageError(key, "missing file", str(error.filename)) from None
        except OSError as error:
            raise ImageError(key, "unreadable image", str(error)) from None

    def __getitem__(self, index: int) -> Prompt:
        row, (key, image, instruction) = self._rows[index], self.encoded(index)
        source = cover(decode_image(image, where=key), *self.size)
        extras = {"principles_id": principles_id(image, instruction)} | row.get("extras", {})
        return Prompt(key, source, row["instruction"], row.get("task") or row.get("task_type") or "", extras=extras)


def _row(where: str, row: Any) -> dict[str, Any]:
    texts = [row.get(k) or "" for k in ("instruction", "task", "task_type")] if isinstance(row, dict) else [""]
    if not all(isinstance(t, str) for t in texts) or not texts[0].strip() or not _image(row):
        raise ConfigError(f"{where}: row {where.rsplit(':', 1)[1]} wants an instruction and one source image")
    if not isinstance(row.get("extras", {}), dict):
        raise ConfigError(f"{where}: extras is no object")
    return row


def _image(row: dict[str, Any]) -> str:
    several = row.get("input_images")
    image = row.get("source") or (several[0] if isinstance(several, list) and len(several) == 1 else "")
    return image if isinstance(image, str) else ""


def source(config: Any, split: str) -> Source:
    """The prompts of a split, "train" or "test": `config.data.train` or `.validation` ("" = the same world's, or those
    that the function gives).

    "editworld", a JSON lines file, or "my_pkg.mod:function", called with (config, split). Raises ConfigError.
    """
    d, (height, width) = config.data, config.rl.size if split == "train" else evaluation_size(config.rl)
    name = (d.validation or d.train) if split == "test" else d.train
    if name == "editworld":
        size = d.size if split == "train" else config.rl.eval_prompts
        seed, options = config.seed if split == "train" else 0, d.options.to_dict()
        try:
            return World(split, size, seed, height, width, f"rl.{'eval_' * (split == 'test')}size", **options)
        except ConfigError:
            raise
        except (TypeError, ValueError) as e:
            raise ConfigError(f"config key 'data.options' is {options}: {e}") from e
    if Path(name).is_file():
        if split == "test" and not d.validation:
            raise ConfigError("config key 'data.validation' must name held-out prompts, or 'rl.eval_prompts' be 0")
        return Lines(Path(name), height, width)
    if ":" in name:
        return resolve(name, {})(config, split)
    hint = nearest(name, ["editworld"])
    raise ConfigError(f"no prompts '{name}'{hint}: editworld, a .jsonl file or my_pkg.mod:function")


def take(
    source: Source, index: int, on_bad_record: str, check: Callable[[Prompt], None] = lambda prompt: None
) -> Prompt:
    """Reads a prompt; `check` raises RecordError for one that the editor does not take.

    "skip": instead of one that cannot be used the next that can, with a warning; "error" raises.
    """
    for i in range(index, index + len(source)):
        try:
            prompt = source[i % len(source)]
            check(prompt)
            return prompt
        except RecordError as e:
            if on_bad_record == "error" or i == index + len(source) - 1:
                raise
            log.warning("skipped: %s", e)


def read(
    source: Source, items: Sequence[int], on_bad_record: str, check: Callable[[Prompt], None], sharing: Sharing
) -> list[Prompt]:
    """Reads prompts as `take` does: those of `Lines` each in one process, others (the world's, drawn and not read; a
    function's, of which JSON may not hold everything) in every one. Raises RecordError or ImageError, everywhere."""

    def one(index: int) -> Prompt:
        found = take(source, index, on_bad_record, check)
        sharing.reads.add(found)
        return found

    if not isinstance(source, Lines):
        return [one(i) for i in items]
    out = []
    for found in sharing.read(items, one, _to_json, _from_json):
        if isinstance(found, ValueError):
            raise found
        out.append(found)
    return out


def _to_json(prompt: Prompt) -> dict[str, Any]:
    told = {k: getattr(prompt, k) for k in ("key", "instruction", "task")} | {"extras": dict(prompt.extras)}
    return told | {"shape": prompt.source.shape, "source": base64.b64encode(prompt.source.tobytes()).decode()}


def _from_json(told: dict[str, Any]) -> Prompt:
    picture = np.frombuffer(base64.b64decode(told.pop("source")), np.uint8).reshape(told.pop("shape"))
    return Prompt(source=picture, **told)


def numbers(config: Any, size: int, step: int) -> list[int]:
    """Which prompts rollout number `step` (from 0) takes: passes over the data, shuffled if `data.shuffle`."""
    count = config.rl.prompts
    if count > size:
        raise ConfigError(f"config key 'rl.prompts' is {count}, there are {size}")
    epoch, part = divmod(step, size // count)  # what is left over of a pass waits for the next: no prompt comes twice
    order = _order(size, config.seed, epoch, config.data.shuffle)
    return [int(i) for i in order[part * count : (part + 1) * count]]


def groups(prompts: Sequence[Prompt]) -> list[int]:
    """For each prompt the first one with the same source and instruction: their samples are compared."""
    first: dict[tuple[bytes, str], int] = {}
    return [first.setdefault((p.source.tobytes(), p.instruction), i) for i, p in enumerate(prompts)]


@functools.lru_cache(maxsize=2)
def _order(size: int, seed: int, epoch: int, shuffle: bool) -> Any:
    return np.random.default_rng([seed, epoch]).permutation(size) if shuffle else range(size)
