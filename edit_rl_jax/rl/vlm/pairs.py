"""Human pairs for a verifier's RL: read in an order that can be resumed, ties left out, with principles and labels."""

import base64
import dataclasses
import logging
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edit_rl_jax.data import principles as principles_lib
from edit_rl_jax.data.preferences import LABEL_RANGE, totals
from edit_rl_jax.data.records import SCORE_RANGE, VERIFIER_SCALE, PreferenceRecord, Principle, RecordError, expect
from edit_rl_jax.rl.shares import Sharing

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Pair:
    """One pair. images: the better and the worse, encoded. gold: their scores on 0..10, verdicts: on the principles;
    None where the record does not tell. group: of one (source, instruction), the record's."""

    key: str
    source: bytes
    images: tuple[bytes, bytes]
    instruction: str
    principles: tuple[Principle, ...]
    gold: tuple[float, float] | None
    verdicts: tuple[tuple[int, ...], tuple[int, ...]] | None
    group: str = ""


def gold_scores(record: PreferenceRecord) -> tuple[float, float] | None:
    """Gives both edits' scores on 0..10: the oracle's where there is one, else the mean label, from 1..4."""
    oracle = record.meta.get("oracle")
    if isinstance(oracle, Mapping) and "overall" in oracle:
        a, b = (float(x) * VERIFIER_SCALE / SCORE_RANGE for x in oracle["overall"])
        return a, b
    sums, (low, high) = totals(record), LABEL_RANGE
    return sums and tuple((s / 2 - low) / (high - low) * VERIFIER_SCALE for s in sums)


def pair(record: Any, sets: Mapping[str, Sequence[Principle]], needed: bool = True) -> Pair | None:
    """Makes a pair of a PreferenceRecord, None of a tie, disentangled or not. sets: of principles, by id, where the
    record has none.

    Raises RecordError for another kind of record, for one without principles where they are needed, and for verdicts
    that are not one 0 or 1 for each of them."""
    record = expect(record, PreferenceRecord)
    if not record.prefers or record.meta.get("tie"):
        return None
    order = (0, 1) if record.prefers > 0 else (1, 0)
    stored = record.meta.get("principles")
    if stored is not None:
        found = principles_lib.from_json(record.key, stored)
    else:
        found = tuple(sets.get(principles_lib.principles_id(record.source, record.instruction), ()))
    if needed and not found:
        raise RecordError(record.key, "no principles", "neither in meta nor in rl.principles")
    gold, verdicts = gold_scores(record), record.meta.get("verdicts")
    swap = lambda two: None if two is None else (two[order[0]], two[order[1]])
    if verdicts is not None:
        if not isinstance(verdicts, list | tuple) or not all(isinstance(one, list | tuple) for one in verdicts):
            raise RecordError(record.key, "malformed verdicts", f"two lists are wanted, not {verdicts!r:.40}")
        if [len(one) for one in verdicts] != [len(found)] * 2:
            raise RecordError(record.key, "wrong number of verdicts", f"for {len(found)} principles")
        if wrong := [v for one in verdicts for v in one if v not in (0, 1)]:
            raise RecordError(record.key, "a verdict is no 0 or 1", f"{wrong[0]!r:.40}")
        verdicts = tuple(tuple(map(int, one)) for one in verdicts)
    labels = swap(gold), swap(verdicts)
    return Pair(record.key, record.source, swap(record.edited), record.instruction, found, *labels, record.group)


def to_json(found: Pair | None) -> Any:
    """Gives a pair as `from_json` reads it; None, a tie, stays None."""
    if found is None:
        return None
    pictures = [base64.b64encode(x).decode() for x in (found.source, *found.images)]
    kept = {k: getattr(found, k) for k in ("key", "instruction", "gold", "verdicts", "group")}
    return kept | {"pictures": pictures, "principles": [dataclasses.asdict(p) for p in found.principles]}


def from_json(told: Any) -> Pair | None:
    """Reads what `to_json` gave."""
    if told is None:
        return None
    source, better, worse = (base64.b64decode(x) for x in told["pictures"])
    asked = tuple(Principle(**p) for p in told["principles"])
    gold, verdicts = told["gold"] and tuple(told["gold"]), told["verdicts"] and tuple(map(tuple, told["verdicts"]))
    return Pair(told["key"], source, (better, worse), told["instruction"], asked, gold, verdicts, told["group"])


class Reader:
    """Reads pairs from a source of records, one pass after another. sharing: with whom.

    Attributes:
      position: the next record's place in the order.
      ties, bad: records passed over since the start of the run.
    """

    def __init__(
        self,
        source: Any,
        config: Any,
        sets: Mapping[str, Sequence[Principle]],
        state: Mapping[str, int] | None = None,
        sharing: Sharing | None = None,
    ):
        self.sharing = sharing or Sharing()
        self.source, self.config, self.sets = source, config, sets
        self.position, self.ties, self.bad = ((state or {}).get(k, 0) for k in ("position", "ties", "bad"))
        self._order: tuple[int, Any] = (-1, None)

    @property
    def state(self) -> dict[str, int]:
        """All that another one needs to go on from here."""
        return {"position": self.position, "ties": self.ties, "bad": self.bad}

    def _index(self, position: int) -> int:
        epoch, at = divmod(position, len(self.source))
        if not self.config.data.shuffle:
            return at
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.config.seed, epoch]).permutation(len(self.source))
        return int(self._order[1][at])

    def take(self, count: int, check: Any = lambda pair: None) -> list[Pair]:
        """Reads the next pairs. check: raises RecordError for one that cannot be asked about. Raises RecordError for a
        bad record unless they are skipped, and where a whole pass gave too few."""
        out, end = [], self.position + len(self.source)

        def read(index: int) -> Pair | None:
            record = self.source[index]
            self.sharing.reads.add(record)
            found = pair(record, self.sets, self.config.rl.mode != "think")
            if found is not None:
                check(found)
            return found

        while len(out) < count:
            if self.position >= end:
                raise RecordError("the data", "too few pairs", f"{len(out)} of {count} in {len(self.source)} records")
            there = range(self.position, min(self.position + count - len(out), end))  # all of them are needed
            self.position = there.stop
            for found in self.sharing.read([self._index(p) for p in there], read, to_json, from_json):
                if found is None:
                    self.ties += 1
                elif not isinstance(found, ValueError):
                    out.append(found)
                elif self.config.data.on_bad_record == "error":
                    raise found
                else:
                    self.bad += 1
                    log.warning("skipped: %s", found)
        return out
