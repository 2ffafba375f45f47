"""What preferences say: checks of a pair and its labels, what a tie means, and counts. Paper: arXiv 2509.26346."""

import collections
import dataclasses
import math

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.images import MAX_PIXELS, image_size
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, PreferenceRecord, brief

LABEL_RANGE = (1, 4)  # of a dimension; fractions, as means over annotators are, may be
CONTRADICTS, EQUAL, OPPOSITE, OUT = "preference contradicts scores", "equal images", "opposite", "label out of range"


def totals(record: PreferenceRecord) -> tuple[float, float] | None:
    """Sums the labels of (first, second) over both dimensions; None where one is not labelled."""
    if any(name not in record.scores for name in PREFERENCE_DIMENSIONS):
        return None
    first, second = (sum(record.scores[name][side] for name in PREFERENCE_DIMENSIONS) for side in range(2))
    return first, second


def tie(record: PreferenceRecord) -> str:
    """Names the kind of an overall tie: "opposite" where each edit is better in some dimension, "equal" where all
    labels are, "unlabelled" where a dimension has none; "" where one edit is preferred."""
    if record.prefers:
        return ""
    if is_opposite(record):
        return OPPOSITE
    return "unlabelled" if totals(record) is None else "equal"


def is_opposite(record: PreferenceRecord) -> bool:
    """Says whether a pair is tied as a whole while each edit is better in some dimension."""
    ahead = {(a > b) - (a < b) for a, b in record.scores.values()}
    return record.prefers == 0 and ahead >= {1, -1}


def flagged(record: PreferenceRecord) -> PreferenceRecord:
    """Notes the kind of a tie in `meta["tie"]`; leaves a preference as it is."""
    return record if record.prefers else dataclasses.replace(record, meta={**record.meta, "tie": tie(record)})


def disentangled(record: PreferenceRecord) -> list[PreferenceRecord]:
    """Makes two opposite preferences of a tie with opposite advantages, and leaves any other record one. Ties are
    `flagged`; the keys of the two end in "/first" and "/second", by which edit is preferred."""
    if not is_opposite(record):
        return [flagged(record)]
    return [
        dataclasses.replace(flagged(record), key=f"{record.key}/{name}", prefers=prefers)
        for name, prefers in (("first", 1), ("second", -1))
    ]


def check_preference(
    record: PreferenceRecord, where: str | None = None, max_pixels: int | None = None
) -> PreferenceRecord:
    """Validates everything that does not need the pixels, and returns the record.

    Raises RecordError (or its subclass ImageError) for: an empty key or instruction, `prefers` other than 1, -1 and 0,
    an unknown dimension, a label that is NaN or outside 1..4, images of the same bytes or that `image_size` refuses,
    and a preference that the sums of the labels contradict: the other edit has more, or a tie whose sums differ. To
    prefer one of two with equal sums is no contradiction: the labels are coarse.
    """
    where = where or record.key or "record without a key"
    if not record.key:
        raise RecordError(where, "empty key")
    if not record.instruction.strip():
        raise RecordError(where, "empty instruction")
    if record.prefers not in (1, -1, 0):
        raise RecordError(where, "unknown label", f"prefers={brief(record.prefers)}: 1, -1 or 0 wanted")
    for name, pair in record.scores.items():
        if name not in PREFERENCE_DIMENSIONS:
            raise RecordError(where, "unknown dimension", f"{name}: known are {', '.join(PREFERENCE_DIMENSIONS)}")
        for value in pair:
            if math.isnan(value):
                raise RecordError(where, "NaN label", name)
            if not LABEL_RANGE[0] <= value <= LABEL_RANGE[1]:
                raise RecordError(where, OUT, f"{name}: {value:g} is not on {LABEL_RANGE[0]}..{LABEL_RANGE[1]}")
    for name, data in zip(("source", "first", "second"), (record.source, *record.edited), strict=True):
        image_size(data, where=f"{where} {name}", max_pixels=max_pixels or MAX_PIXELS)
    if record.edited[0] == record.edited[1]:
        raise RecordError(where, EQUAL, "both edits are the same bytes")
    sums = totals(record)
    if sums and (ahead := (sums[0] > sums[1]) - (sums[0] < sums[1])) and ahead != record.prefers:
        said = {1: "the first is preferred", -1: "the second is preferred", 0: "a tie"}[record.prefers]
        raise RecordError(where, CONTRADICTS, f"{said}, but the labels sum to {sums[0]:g} and {sums[1]:g}")
    return record


@dataclasses.dataclass
class Counts:
    """Counts pairs by who wins, as a whole and by dimension, and ties by kind."""

    pairs: int = 0
    wins: dict[str, collections.Counter] = dataclasses.field(default_factory=lambda: {"overall": collections.Counter()})
    ties: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    broken: int = 0  # preferred although the labels' sums are equal

    def add(self, record: PreferenceRecord) -> None:
        self.pairs += 1
        self.wins["overall"][record.prefers] += 1
        for name, (a, b) in record.scores.items():
            self.wins.setdefault(name, collections.Counter())[(a > b) - (a < b)] += 1
        sums = totals(record)
        self.broken += bool(record.prefers and sums and sums[0] == sums[1])
        if record.prefers == 0:
            self.ties[tie(record)] += 1

    def as_dict(self) -> dict[str, object]:
        """Gives the counts as JSON can hold them; `wins` are [first, tie, second] by figure."""
        wins = {name: [count[k] for k in (1, 0, -1)] for name, count in self.wins.items()}
        return {"pairs": self.pairs, "wins": wins, "ties": dict(self.ties), "broken": self.broken}

    def __str__(self) -> str:
        """Writes a table of shares, as the paper has one; nothing where there is no pair."""
        if not self.pairs:
            return ""
        lines = [f"{self.pairs} pairs{'':21s}labelled  first wins     tie  second wins"]
        for name, count in self.wins.items():
            n = count.total()
            first, tied, second = (f"{100 * count[k] / n:.2f}%" for k in (1, 0, -1))
            lines.append(f"  {name:24s}{n:12d}{first:>12s}{tied:>8s}{second:>13s}")
        kinds = ", ".join(f"{n} {kind}" for kind, n in sorted(self.ties.items()))
        lines.append(f"  {self.ties.total()} ties overall{': ' if kinds else ''}{kinds}")
        if self.broken:
            lines.append(f"  {self.broken} pairs with a preference whose labels sum to a tie")
        return "\n".join(lines)
