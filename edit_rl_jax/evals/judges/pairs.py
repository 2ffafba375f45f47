"""Accuracy on pairs of edits of one (source, instruction): does the judge prefer the one that is better?

A tie is wrong and a reply that cannot be read is wrong; both are counted. Intervals resample scenes.
"""

import dataclasses
import math
from collections.abc import Callable, Collection, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.judges.calibration import calibration
from edit_rl_jax.evals.judges.dimensions import GROUPS, LIKE, dimension_of, figure, names_of
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.rewards.base import Dimension, Edit, Judge, Judgement
from edit_rl_jax.training.report import Sample

GAP = 3  # of 25: pairs whose true figures are nearer than this say nothing about that dimension


@runtime_checkable
class Pair(Protocol):
    """Two records of one source and instruction (`editworld.dataset.Pair`); `kind` is the worse one's error."""

    better: EditRecord
    worse: EditRecord
    task: str
    kind: str


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One dimension of n pairs.

    Attributes:
      right: 1 where the better edit got the higher score, else 0.
      tied, invalid: why a pair is wrong without being reversed.
      groups, tasks, kinds: of each pair.
    """

    right: np.ndarray
    tied: np.ndarray
    invalid: np.ndarray
    groups: tuple[Hashable, ...]
    tasks: tuple[str, ...]
    kinds: tuple[str, ...]

    @property
    def accuracy(self) -> float | None:
        return float(self.right.mean()) if len(self.right) else None

    @property
    def ci95(self) -> list[float] | None:
        return list(interval(self.right, self.groups)) if len(self.right) else None

    def row(self) -> dict[str, Any]:
        """Accuracy with its interval and counts, as a row of a table of eval.json."""
        counts = {"n": len(self.right), "ties": int(self.tied.sum()), "invalid": int(self.invalid.sum())}
        return {"accuracy": self.accuracy, "ci95": self.ci95, **counts}

    def by(self, labels: Sequence[str]) -> dict[str, dict[str, Any]]:
        """A row for each label."""
        return {name: self.where(np.array([x == name for x in labels])).row() for name in sorted(set(labels))}

    def where(self, keep: np.ndarray) -> "Outcome":
        """The pairs where `keep` is True."""
        pick = lambda xs: tuple(x for x, k in zip(xs, keep) if k)
        arrays = (self.right[keep], self.tied[keep], self.invalid[keep])
        return Outcome(*arrays, pick(self.groups), pick(self.tasks), pick(self.kinds))


Score = tuple[float | None, float | None]  # of the better and of the worse edit


def compare(pairs: Sequence[Pair], scores: Sequence[Score], truths: Sequence[int | float]) -> Outcome:
    """`truths`: true score of `better` minus that of `worse`; its sign is the right order. Raises ValueError at 0."""
    if any(t == 0 for t in truths):
        raise ValueError("a pair without a true order cannot be judged")
    invalid = np.array([None in s for s in scores], bool)
    difference = np.array([0.0 if None in s else s[0] - s[1] for s in scores])
    right = (np.sign(difference) == np.sign(truths)) & ~invalid
    names = [(p.better.group or p.better.source, p.task, p.kind) for p in pairs]
    groups, tasks, kinds = zip(*names) if names else ((), (), ())
    return Outcome(right.astype(np.float64), (difference == 0) & ~invalid, invalid, groups, tasks, kinds)


def truth(record: EditRecord, name: str) -> float:
    """Returns a record's true figure on 0-25, as `figure` does: SC for instruction following, PQ for visual quality;
    the overall one exactly, where the record knows it."""
    name = LIKE.get(name, name)
    if name == "overall":
        return record.meta.get("overall", math.sqrt(min(record.sc) * min(record.pq)))
    scores = dict(zip(GROUPS["sc"], record.sc or ())) | dict(zip(GROUPS["pq"], record.pq or ()))
    return float(min(scores[d] for d in GROUPS.get(name, (name,))))


def accuracies(
    pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]], names: Collection[str] = tuple(GROUPS)
) -> dict[str, Outcome]:
    """Returns the outcome of each figure, the overall one first."""
    return {name: dimension(name, pairs, judged) for name in ("overall", *names)}


def dimension(name: str, pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]]) -> Outcome:
    """Returns the outcome of one figure, over the pairs that it tells apart: those whose true ones differ by at least
    GAP, and all for the overall one."""
    truths = [truth(p.better, name) - truth(p.worse, name) for p in pairs]
    told = [i for i, t in enumerate(truths) if abs(t) >= GAP or name == "overall"]
    scores = [(figure(judged[i][0], name), figure(judged[i][1], name)) for i in told]
    return compare([pairs[i] for i in told], scores, [truths[i] for i in told])


def score_pairs(
    judge: Judge, pairs: Sequence[Pair], change: Callable = lambda i, record: record, **options: Any
) -> list[tuple[Judgement, Judgement]]:
    """Judges both edits of every pair; `change(i, record)` alters what the judge is shown of pair i."""
    records = [change(i, r) for i, p in enumerate(pairs) for r in (p.better, p.worse)]
    flat = judge.score(list(map(Edit.of_record, records)), **options)
    return list(zip(flat[::2], flat[1::2]))


def blanked(record: EditRecord) -> EditRecord:
    """The record with its pictures replaced by grey of the same size."""
    grey = lambda data: encode_png(np.full_like(decode_image(data), 128))
    return dataclasses.replace(record, source=grey(record.source), edited=grey(record.edited))


def others(pairs: Sequence[Pair], seed: int = 0) -> list[int]:
    """For every pair the number of another one, whose instruction is a different text wherever there is one."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    text = lambda i: pairs[i].better.instruction
    out: dict[int, int] = {}
    for at, i in enumerate(order):
        following = (int(order[(at + k) % len(order)]) for k in range(1, len(order)))
        out[int(i)] = next((j for j in following if text(j) != text(i)), int(i))
    return [out[i] for i in range(len(pairs))]


def shuffled_instructions(pairs: Sequence[Pair], seed: int = 0) -> list[str]:
    """For every pair the instruction of another pair, a different text wherever there is one."""
    return [pairs[i].better.instruction for i in others(pairs, seed)]


def pixel_distance(record: EditRecord) -> float:
    """Mean absolute difference between the edited and the source picture, 0-255."""
    a, b = (decode_image(x).astype(np.float64) for x in (record.source, record.edited))
    return float(np.abs(a - b).mean()) if a.shape == b.shape else 255.0


def evaluate(
    judge: Judge,
    pairs: Sequence[Pair],
    *,
    untrained: Judge | None = None,
    controls: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Any], list[tuple[Judgement, Judgement]]]:
    """Returns the content of eval.json, and the judgements of the pairs.

    `untrained`: the base before training, on the same pairs. `controls`: images blanked; instructions shuffled (SC);
    the pixel distance to the source, in whichever direction does better. A sampling judge of K `passes` that has
    `first_passes(judgement, k)` is also measured on the first 1, 2, 4, ... of them.
    """
    judged, names = score_pairs(judge, pairs), names_of(judge.dimensions())
    out = accuracies(pairs, judged, names)
    whole = out["overall"]
    figures: dict[str, Any] = {"pair_accuracy": whole.accuracy, "pair_accuracy_ci95": whole.ci95, "n_pairs": len(pairs)}
    if untrained is not None:
        before = dimension("overall", pairs, score_pairs(untrained, pairs))
        figures |= {"untrained_pair_accuracy": before.accuracy, "untrained_pair_accuracy_ci95": before.ci95}
        figures |= {"untrained_invalid": int(before.invalid.sum())}
        figures |= {"gain": float((whole.right - before.right).mean())}
        figures |= {"gain_ci95": list(interval(whole.right - before.right, whole.groups))}
    for name in names:
        o = out[name]
        figures |= {
            f"{name}_pair_accuracy": o.accuracy,
            f"{name}_pair_accuracy_ci95": o.ci95,
            f"{name}_n_pairs": len(o.right),
        }
    figures |= {"ties": int(whole.tied.sum()), "invalid_pairs": int(whole.invalid.sum())}
    figures |= {"invalid_answers": sum(j.unread for ab in judged for j in ab)}
    figures |= {"by_task": whole.by(whole.tasks), "by_kind": whole.by(whole.kinds)}
    if getattr(judge, "passes", 1) > 1 and (first := getattr(judge, "first_passes", None)):
        figures["by_passes"] = by_passes(pairs, judged, judge.passes, first)
    found = calibrations(pairs, judged, names)
    figures |= {"calibration": found.pop("overall")} if "overall" in found else {}
    figures |= {"calibration_by_dimension": found} if found else {}
    if controls:
        figures["controls"] = run_controls(judge, pairs, seed)
    return figures, judged


def calibrations(
    pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]], names: Collection[str]
) -> dict[str, dict[str, Any]]:
    """Returns the calibration of each figure that has a spread, over the pairs that it tells apart (`dimension`)."""
    number, groups, out = lambda v: math.nan if v is None else v, [p.better.group or p.better.source for p in pairs], {}
    for name in ("overall", *names):
        truths = np.array([truth(p.better, name) - truth(p.worse, name) for p in pairs], np.float64)
        told = np.flatnonzero((np.abs(truths) >= GAP) | (name == "overall"))
        both = [[dimension_of(j, name) or Dimension(math.nan) for j in judged[i]] for i in told]
        arrays = (np.array([[number(getattr(d, k)) for d in ab] for ab in both]) for k in ("value", "spread"))
        if len(told) and (found := calibration(np.sign(truths[told]), *arrays, [groups[i] for i in told])):
            out[name] = found
    return out


def by_passes(
    pairs: Sequence[Pair],
    judged: Sequence[tuple[Judgement, Judgement]],
    passes: int,
    first: Callable[[Judgement, int], Judgement],
) -> dict[str, dict[str, Any]]:
    """Compares Avg@k with Avg@1: the overall accuracy of the first k passes, k = 1, 2, 4, ..., `passes`; gains are
    paired. first(judgement, k): the judgement of the first k passes."""
    out: dict[str, dict[str, Any]] = {}
    once = None
    for k in sorted({2**i for i in range(passes.bit_length())} | {passes}):
        found = dimension("overall", pairs, [(first(a, k), first(b, k)) for a, b in judged])
        once = once or found
        gain = found.right - once.right
        paired = {} if k == 1 else {"gain": float(gain.mean()), "gain_ci95": list(interval(gain, found.groups))}
        out[f"Avg@{k}"] = found.row() | paired
    return out


def run_controls(judge: Judge, pairs: Sequence[Pair], seed: int = 0) -> dict[str, dict[str, Any]]:
    """Tries what should not work: rows of figures by name."""
    blank = dimension("overall", pairs, score_pairs(judge, pairs, lambda i, r: blanked(r)))
    other = [pairs[i].better for i in others(pairs, seed)]  # with an instruction go its principles
    told = lambda i: {k: other[i].meta[k] for k in ("principles",) if k in other[i].meta}
    swap = lambda i, r: dataclasses.replace(r, instruction=other[i].instruction, meta=r.meta | told(i))
    names = names_of(judge.dimensions())
    name = next((n for n in ("sc", "instruction_following") if n in names), "overall")  # what reads the instruction
    only = None if name == "overall" else GROUPS.get(name, (name,))
    shuffled = dimension(name, pairs, score_pairs(judge, pairs, swap, only=only))
    distances = [(pixel_distance(p.better), pixel_distance(p.worse)) for p in pairs]
    near = compare(pairs, [(-a, -b) for a, b in distances], [1.0] * len(pairs))
    far = compare(pairs, distances, [1.0] * len(pairs))
    return {
        "images blanked": blank.row(),
        f"instruction shuffled ({_title(name)})": shuffled.row(),
        "pixel distance to the source": max(near, far, key=lambda o: o.accuracy or 0.0).row(),
    }


def samples(pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]], count: int = 12) -> list[Sample]:
    """Picks judged edits for the report, spread over all pairs: of rightly and, as many, of wrongly ordered ones."""
    right = dimension("overall", pairs, judged).right > 0
    names = ["overall", *names_of({d for ab in judged for j in ab for d in j.dimensions})]
    pick = lambda which: [which[i] for i in np.linspace(0, len(which) - 1, min(count, len(which))).astype(int)]
    chosen = pick(np.flatnonzero(right).tolist()) + pick(np.flatnonzero(~right).tolist())
    out = []
    for n, i in enumerate(chosen):
        p, side = pairs[i], n % 3 == 2  # two worse edits for every better one
        record, said = (p.better, judged[i][0]) if side else (p.worse, judged[i][1])
        out.append(
            Sample(
                instruction=record.instruction,
                source=record.source,
                edited=record.edited,
                scores={_title(name): figure(said, name) for name in names},
                truth={_title(name): truth(record, name) for name in names},
                reasoning=" ".join(said.reasons) or said.problem,
                task=record.task,
                kind=str(record.meta.get("kind", "")),
                right=bool(right[i]),
            )
        )
    return out


def _title(name: str) -> str:
    return name.upper() if name in GROUPS else name


def summary(figures: dict[str, Any]) -> str:
    """Says the main figures in a few lines."""
    text = lambda key: "–" if figures.get(key) is None else f"{figures[key]:.3f}"
    between = lambda key: " ({:.3f} to {:.3f})".format(*figures[key]) if figures.get(key) else ""
    lines = [f"pair accuracy {text('pair_accuracy')}{between('pair_accuracy_ci95')} on {figures['n_pairs']} pairs"]
    if "untrained_pair_accuracy" in figures:
        lines.append(f"  the base before training: {text('untrained_pair_accuracy')}")
    names = [n for n in (*GROUPS, *GROUPS["sc"], *GROUPS["pq"], *LIKE) if f"{n}_pair_accuracy" in figures]
    lines += ["  " + ", ".join(f"{_title(n)} {text(f'{n}_pair_accuracy')}" for n in names)] if names else []
    lines.append(f"  {figures['ties']} ties, {figures['invalid_pairs']} pairs with an answer that cannot be read")
    for table in ("by_task", "by_kind", "by_passes", "controls"):
        rows = figures.get(table, {}).items()
        lines += (
            [f"  {table.replace('_', ' ')}: " + ", ".join(f"{k} {v['accuracy']:.2f}" for k, v in rows)] if rows else []
        )
    return "\n".join(lines)
