"""What all judges share: the edit that is judged, the judgement with its JSON, and the face of a judge. NumPy only."""

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

Image = Any  # encoded bytes, uint8 [H, W, 3], or an array on a device (uint8, or float on [0, 1])


def option(default: Any, help: str = "", allowed: str | tuple[str, ...] = "") -> Any:
    """Declares a field of a judge's `Options`: its default, what the flag's help says, and what it may be (see
    `ranges.knob`), for it is a key of `rl.judge`, too."""
    return dataclasses.field(default=default, metadata={"help": help, "allowed": allowed})


@dataclasses.dataclass(frozen=True)
class Edit:
    """Holds what is judged: one image, or a sequence of them, was edited into another as an instruction says.

    Attributes:
      sources: the source images; a single one may be given by itself.
      extras: what else a judge may want to know, by name, as JSON (principles, a category, ...).
    """

    sources: Any  # a tuple of images, once made
    edited: Image
    instruction: str
    extras: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        several = isinstance(self.sources, list | tuple)
        object.__setattr__(self, "sources", tuple(self.sources) if several else (self.sources,))

    @classmethod
    def of_record(cls, record: Any) -> "Edit":
        """Makes the edit of a record (`EditRecord` or `VerifierRecord`), with the principles of it or its `meta`."""
        told = {name: record.meta[name] for name in ("principles",) if name in record.meta}
        if own := getattr(record, "principles", ()):
            told = {"principles": [dataclasses.asdict(p) for p in own]}
        return cls(record.source, record.edited, record.instruction, told)

    def only_source(self, judge: str) -> Image:
        """Returns the source image, for a judge that looks at one. Raises ValueError, naming it, where there are more
        or none."""
        if len(self.sources) != 1:
            raise ValueError(f"{judge} judges edits of one source image, this one has {len(self.sources)}")
        return self.sources[0]


@dataclasses.dataclass(frozen=True)
class Dimension:
    """Holds one figure: value, spread (standard deviation; None = not known) and scale: its maximum, or of an unbounded
    figure what counts as full marks."""

    value: float
    spread: float | None = None
    scale: float = 1.0

    @property
    def share(self) -> float:
        """The value as a share of its scale."""
        return self.value / self.scale


@dataclasses.dataclass(frozen=True)
class Judgement:
    """Holds what a judge says of one edit.

    Attributes:
      dimensions: figures by name; those that were not asked for may be missing.
      overall: the figure that edits are ordered by, None where there is none.
      success: whether the edit is what was asked for, where the judge says what is enough; else None.
      reasons: the judge's words.
      problem: why there is no judgement; nothing else is a number then.
      unread: answers of the judge that could not be read.
      details: what else the judge tells, as plain JSON (no tuples) under names that are not taken here.
    """

    dimensions: Mapping[str, Dimension] = dataclasses.field(default_factory=dict)
    overall: Dimension | None = None
    success: bool | None = None
    reasons: tuple[str, ...] = ()
    problem: str = ""
    unread: int = 0
    details: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def valid(self) -> bool:
        """Says whether there is a judgement."""
        return not self.problem

    def value(self, name: str) -> float | None:
        """Returns the value of a dimension, or of "overall"; None where there is none."""
        found = self.overall if name == "overall" else self.dimensions.get(name)
        return None if found is None else found.value

    def to_json(self) -> dict[str, Any]:
        """Returns the judgement as score files, caches and servers hold it."""
        whole = dataclasses.asdict(self.overall) if self.overall else {}
        known = {
            "valid": self.valid,
            "overall": whole.get("value"),
            "overall_std": whole.get("spread"),
            "scale": whole.get("scale"),
            "dimensions": {name: dataclasses.asdict(d) for name, d in self.dimensions.items()},
            "success": self.success,
            "problem": self.problem,
            "reasons": list(self.reasons),
            "unread": self.unread,
        }
        return {**known, **self.details, **known}

    @classmethod
    def from_json(cls, stored: Any) -> "Judgement":
        """Reads what `to_json` wrote. Raises ValueError for anything else."""
        try:
            rest = dict(stored)
            dimensions = {str(k): _dimension(**d) for k, d in rest.pop("dimensions").items()}
            whole = [rest.pop(k) for k in ("overall", "overall_std", "scale")]
            overall = None if whole == [None] * 3 else _dimension(*whole)
            success, reasons, unread, problem = (rest.pop(k) for k in ("success", "reasons", "unread", "problem"))
            good = isinstance(success, bool | None) and type(unread) is int and isinstance(problem, str)
            if not good or not isinstance(reasons, list) or not all(isinstance(r, str) for r in reasons):
                raise ValueError("success, reasons, unread or problem is of another kind")
            if rest.pop("valid") is not (not problem):
                raise ValueError("valid and problem disagree")
        except KeyError as error:
            raise ValueError(f"not a judgement: it has no {error}") from None
        except (AttributeError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"not a judgement: {error}") from None
        return cls(dimensions, overall, success, tuple(reasons), problem, unread, rest)


def _dimension(value: Any, spread: Any, scale: Any) -> Dimension:
    for number in (value, scale, *([] if spread is None else [spread])):
        if isinstance(number, bool) or not isinstance(number, int | float) or not math.isfinite(number):
            raise ValueError(f"a number is wanted, not {number!r:.60}")
    return Dimension(float(value), None if spread is None else float(spread), float(scale))


@runtime_checkable
class Judge(Protocol):
    """Scores edits: a model here, a server elsewhere, anything with these three methods.

    A judge of a model's folder is a class that also has (see `rewards.judges`)

        Options                                     a dataclass of its own settings: flags of the scripts, config of RL
        from_folder(folder, options, *, base=None, mesh=None, verify=True) -> Judge

    and may have `device_images = True` (it takes images that are on the device), `asks_base = False` (none is
    made of a base before training), and for plans
    `architecture(folder, base) -> cfg` (of the network that scores; without it nothing is planned), and, where that is
    not the family's own, `network(cfg) -> (its class, what is read at a prompt's end)`.
    """

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges edits, in order; what cannot be judged is not valid, and spares its neighbours.

        only: names of the dimensions that are wanted, of `dimensions()`; others may be in the result all the same.
        """
        ...

    def dimensions(self) -> tuple[str, ...]:
        """Names the dimensions of the judgements."""
        return ()

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers beside the edit, as JSON: by it caches and files of results are known."""
        return {}
