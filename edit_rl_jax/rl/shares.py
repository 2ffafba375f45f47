"""How processes share the reading of what RL asks about: each reads, decodes and checks a part, then tells the others.

What is told are whole things, pictures included: every process packs them all. Storage is read once for all processes.
"""

import dataclasses
import json
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from edit_rl_jax.data.errors import ImageError, RecordError
from edit_rl_jax.data.planning import Reads

T = TypeVar("T")


def part(count: int, index: int, of: int) -> range:
    """Gives the items of share `index`, of `count`: neighbours, as many as of every other but the last."""
    most = -(-count // of)
    return range(count)[index * most :][:most]


@dataclasses.dataclass(frozen=True)
class Sharing:
    """One of `count` shares. swap(mine) -> what each share gave, in order; each makes the same calls in the same order.

    reads: what this share itself read.
    """

    index: int = 0
    count: int = 1
    swap: Callable[[bytes], list[bytes]] = lambda mine: [mine]
    reads: Reads = dataclasses.field(default_factory=Reads)

    def read(
        self,
        numbers: Sequence[int],
        one: Callable[[int], T],
        to_json: Callable[[T], Any],
        from_json: Callable[[Any], T],
    ) -> list[T | ValueError]:
        """Reads what has these numbers with `one`, each in one share; a ValueError, which RecordError is,
        stands for what cannot be read. The others get `from_json(to_json(it))` through real JSON."""
        mine = part(len(numbers), self.index, self.count)
        own: list[T | ValueError] = []
        for i in mine:
            try:
                own.append(one(numbers[i]))
            except ValueError as e:
                own.append(e)
        if self.count == 1:
            return own
        told = [{"error": _error(x)} if isinstance(x, ValueError) else {"value": to_json(x)} for x in own]
        out: list[T | ValueError] = []
        for share, text in enumerate(self.swap(json.dumps(told).encode())):
            if share == self.index:
                out += own
            else:
                out += [_heard(x["error"]) if "error" in x else from_json(x["value"]) for x in json.loads(text)]
        if len(out) != len(numbers):
            raise RecordError("the data", "not at the same place on every process", f"{len(out)} of {len(numbers)}")
        return out


def _error(e: ValueError) -> dict[str, Any]:
    known = isinstance(e, RecordError)
    said = [e.where, e.reason, e.detail] if known else ["a record", "unusable record", f"{type(e).__name__}: {e}"]
    return {"image": isinstance(e, ImageError), "said": said}


def _heard(told: dict[str, Any]) -> ValueError:
    return (ImageError if told["image"] else RecordError)(*told["said"])
