"""The built-in world as a judged benchmark: held-out scenes, any judge, and the oracle, which looks at every pixel.

SC, PQ and O are on 0-10, the oracle's and EditScore's 0-25 scaled down; `success` is the oracle's. The data's name is
SPLIT-SEED-N.
"""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.principles import to_json
from edit_rl_jax.editworld import edits as world
from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.principles import principles_of
from edit_rl_jax.editworld.render import render
from edit_rl_jax.editworld.scene import rng
from edit_rl_jax.evals.editors.cases import Entry, Item, Judged
from edit_rl_jax.evals.editors.gedit import DECIMALS, OFFICIAL, SCALE, SHOWS, questions, read, sample
from edit_rl_jax.evals.judges.cases import Problems

__all__ = ["DECIMALS", "OFFICIAL", "SCALE", "SHOWS", "questions", "read", "sample"]
PARTS, ALIASES, AS_SHOWN = ("test", "validation", "train"), {}, ""
COUNTS: dict[str, int] = {}
GROUPS = {split: tuple(world.TASKS) for split in PARTS}


def asked(split: str, seed: int, index: int) -> world.Edit:
    """Returns an edit, a function of (split, seed, index) alone: those of `editworld.prompts`."""
    return world.random_edit(rng("asked edit", split, seed, index), split, world.TASKS[index % len(world.TASKS)])


def entries(data: Path, part: str, problems: Problems) -> Iterator[Entry]:
    """Yields scenes with an instruction each. Raises ValueError for another name than SPLIT-SEED-N."""
    try:
        split, seed, n = data.name.split("-")
        seed, n = int(seed), int(n)
    except ValueError:
        raise ValueError(f"{data.name!r}: SPLIT-SEED-N is wanted") from None
    for index in range(n if part in ("all", split) else 0):
        edit, key = asked(split, seed, index), f"{seed}-{index:06}"
        extras = {"principles": to_json(principles_of(edit))}
        item = Item(f"{split}/{key}", key, split, edit.task, edit.instruction, file=f"{split}/{key}.png", extras=extras)
        yield item, partial(_source, edit)


def _source(edit: world.Edit) -> bytes:
    return encode_png(render(edit.source))


def by_oracle(ready: Sequence[tuple[Item, bytes, bytes]]) -> list[Judged]:
    """Judges by the oracle, in order."""
    out = []
    for item, _, edited in ready:
        seed, index = map(int, item.key.split("-"))
        try:
            found = oracle.score(decode_image(edited), asked(item.part, seed, index))
        except ValueError as error:
            out.append(Judged(problem="no judgement", detail=str(error)))
            continue
        sc, pq = min(found.success, found.over_editing), min(found.naturalness, found.artifacts)
        scores = {"SC": sc * 0.4, "PQ": pq * 0.4, "O": found.overall * 0.4, "success": float(found.is_success)}
        out.append(Judged({k: float(v) for k, v in scores.items()}))
    return out


def recorded(path: Path, part: str, problems: Problems) -> Iterable[tuple[Item, Judged]] | None:
    """There is no other form."""
    return None
