"""Accuracy on pairs of edits of one (source, instruction): does the judge prefer the one that is better?

A tie is wrong and a reply that cannot be read is wrong; both are counted. Intervals resample scenes.
"""

import dataclasses
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from edit_rl_jax.data.images import decode_image, encode_png
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.rewards.editscore.judge import EditScore, Judgement, judge, overall
from edit_rl_jax.training.report import Sample

GAP = 3  # of 25: pairs that are nearer than this in SC or PQ say nothing about that dimension


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


DIMENSIONS: dict[str, Callable[[Any], float | None]] = {
    "sc": lambda x: None if x.sc is None else float(min(x.sc)),
    "pq": lambda x: None if x.pq is None else float(min(x.pq)),
}
"""A record's or a judgement's figure of a dimension; the overall one is apart, for records keep it exactly."""


def accuracies(pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]]) -> dict[str, Outcome]:
    """Outcomes `overall`, `sc` and `pq`; SC and PQ over the pairs whose true figures differ by at least GAP."""
    truth = lambda r: r.meta.get("overall", overall(r.sc, r.pq))
    scores = [(a.overall, b.overall) for a, b in judged]
    out = {"overall": compare(pairs, scores, [truth(p.better) - truth(p.worse) for p in pairs])}
    for name in DIMENSIONS:
        out[name] = dimension(name, pairs, judged)
    return out


def dimension(name: str, pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]]) -> Outcome:
    """The outcome of one dimension, over the pairs that it tells apart."""
    of = DIMENSIONS[name]
    truths = [of(p.better) - of(p.worse) for p in pairs]
    told = [i for i, t in enumerate(truths) if abs(t) >= GAP]
    scores = [(of(judged[i][0]), of(judged[i][1])) for i in told]
    return compare([pairs[i] for i in told], scores, [truths[i] for i in told])


def score_pairs(reward: EditScore, pairs: Sequence[Pair], change: Callable = lambda i, record: record, **options):
    """(better, worse) judgements of every pair; `change(i, record)` alters what the judge is shown of pair i."""
    records = [change(i, r) for i, p in enumerate(pairs) for r in (p.better, p.worse)]
    flat = reward.score([(r.source, r.edited, r.instruction) for r in records], **options)
    return list(zip(flat[::2], flat[1::2]))


def blanked(record: EditRecord) -> EditRecord:
    """The record with its pictures replaced by grey of the same size."""
    grey = lambda data: encode_png(np.full_like(decode_image(data), 128))
    return dataclasses.replace(record, source=grey(record.source), edited=grey(record.edited))


def shuffled_instructions(pairs: Sequence[Pair], seed: int = 0) -> list[str]:
    """For every pair the instruction of another pair, a different text wherever there is one."""
    order = np.random.default_rng(seed).permutation(len(pairs))
    texts = [pairs[i].better.instruction for i in order]
    out: dict[int, str] = {}
    for at, i in enumerate(order):
        own = pairs[i].better.instruction
        others = (texts[(at + k) % len(texts)] for k in range(1, len(texts)))
        out[int(i)] = next((t for t in others if t != own), own)
    return [out[i] for i in range(len(pairs))]


def pixel_distance(record: EditRecord) -> float:
    """Mean absolute difference between the edited and the source picture, 0-255."""
    a, b = (decode_image(x).astype(np.float64) for x in (record.source, record.edited))
    return float(np.abs(a - b).mean()) if a.shape == b.shape else 255.0


def evaluate(
    reward: EditScore,
    pairs: Sequence[Pair],
    *,
    untrained: EditScore | None = None,
    controls: bool = True,
    seed: int = 0,
) -> tuple[dict[str, Any], list[tuple[Judgement, Judgement]]]:
    """The content of eval.json, and the judgements of the pairs.

    `untrained`: the base before training, on the same pairs. `controls`: images blanked; instructions shuffled (SC);
    the pixel distance to the source, in whichever direction does better. A sampling judge of K passes is also measured
    on the first 1, 2, 4, ... of them.
    """
    judged = score_pairs(reward, pairs)
    out = accuracies(pairs, judged)
    whole = out["overall"]
    figures: dict[str, Any] = {"pair_accuracy": whole.accuracy, "pair_accuracy_ci95": whole.ci95, "n_pairs": len(pairs)}
    if untrained is not None:
        before = compare_base(untrained, pairs)
        figures |= {"untrained_pair_accuracy": before.accuracy, "untrained_pair_accuracy_ci95": before.ci95}
        figures |= {"untrained_invalid": int(before.invalid.sum())}
        figures |= {"gain": float((whole.right - before.right).mean())}
        figures |= {"gain_ci95": list(interval(whole.right - before.right, whole.groups))}
    for name in DIMENSIONS:
        o = out[name]
        figures |= {
            f"{name}_pair_accuracy": o.accuracy,
            f"{name}_pair_accuracy_ci95": o.ci95,
            f"{name}_n_pairs": len(o.right),
        }
    figures |= {"ties": int(whole.tied.sum()), "invalid_pairs": int(whole.invalid.sum())}
    figures |= {
        "invalid_answers": sum(not r.valid for ab in judged for j in ab for r in (*j.sc_replies, *j.pq_replies))
    }
    figures |= {"by_task": whole.by(whole.tasks), "by_kind": whole.by(whole.kinds)}
    if reward.passes > 1 and not reward.expected:
        figures["by_passes"] = by_passes(pairs, judged, reward.passes, reward.judge)
    if controls:
        figures["controls"] = run_controls(reward, pairs, seed)
    return figures, judged


def by_passes(
    pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]], passes: int, judge: Callable = judge
) -> dict[str, dict[str, Any]]:
    """Avg@k against Avg@1: the overall accuracy of the first k passes, k = 1, 2, 4, ..., `passes`; gains are paired.

    judge(sc_replies, pq_replies): the judgement of some of the replies.
    """
    out: dict[str, dict[str, Any]] = {}
    once = None
    for k in sorted({2**i for i in range(passes.bit_length())} | {passes}):
        cut = lambda j, k=k: judge(j.sc_replies[:k], j.pq_replies[:k]) if j.sc_replies else j
        found = accuracies(pairs, [(cut(a), cut(b)) for a, b in judged])["overall"]
        once = once or found
        gain = found.right - once.right
        paired = {} if k == 1 else {"gain": float(gain.mean()), "gain_ci95": list(interval(gain, found.groups))}
        out[f"Avg@{k}"] = found.row() | paired
    return out


def compare_base(untrained: EditScore, pairs: Sequence[Pair]) -> Outcome:
    """The overall outcome of another model on the same pairs."""
    return accuracies(pairs, score_pairs(untrained, pairs))["overall"]


def run_controls(reward: EditScore, pairs: Sequence[Pair], seed: int = 0) -> dict[str, dict[str, Any]]:
    """What should not work: rows of figures by name."""
    blank = accuracies(pairs, score_pairs(reward, pairs, lambda i, r: blanked(r)))["overall"]
    other = shuffled_instructions(pairs, seed)
    swap = lambda i, r: dataclasses.replace(r, instruction=other[i])
    shuffled = dimension("sc", pairs, score_pairs(reward, pairs, swap, questions=("sc",)))
    distances = [(pixel_distance(p.better), pixel_distance(p.worse)) for p in pairs]
    near = compare(pairs, [(-a, -b) for a, b in distances], [1.0] * len(pairs))
    far = compare(pairs, distances, [1.0] * len(pairs))
    return {
        "images blanked": blank.row(),
        "instruction shuffled (SC)": shuffled.row(),
        "pixel distance to the source": max(near, far, key=lambda o: o.accuracy or 0.0).row(),
    }


def samples(pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]], count: int = 12) -> list[Sample]:
    """Judged edits for the report, spread over all pairs: of rightly and, as many, of wrongly ordered ones."""
    right = accuracies(pairs, judged)["overall"].right > 0
    pick = lambda which: [which[i] for i in np.linspace(0, len(which) - 1, min(count, len(which))).astype(int)]
    chosen = pick(np.flatnonzero(right).tolist()) + pick(np.flatnonzero(~right).tolist())
    out = []
    for n, i in enumerate(chosen):
        p, side = pairs[i], n % 3 == 2  # two worse edits for every better one
        record, said = (p.better, judged[i][0]) if side else (p.worse, judged[i][1])
        figures = {name: of(said) for name, of in DIMENSIONS.items()}
        truth = {name: of(record) for name, of in DIMENSIONS.items()}
        words = [r.reasoning or r.raw for r in (*said.sc_replies[:1], *said.pq_replies[:1])]
        out.append(
            Sample(
                instruction=record.instruction,
                source=record.source,
                edited=record.edited,
                scores={"overall": said.overall, "SC": figures["sc"], "PQ": figures["pq"]},
                truth={
                    "overall": record.meta.get("overall", overall(record.sc, record.pq)),
                    "SC": truth["sc"],
                    "PQ": truth["pq"],
                },
                reasoning=" ".join(words) or said.problem,
                task=record.task,
                kind=str(record.meta.get("kind", "")),
                right=bool(right[i]),
            )
        )
    return out


def summary(figures: dict[str, Any]) -> str:
    """The main figures in a few lines."""
    text = lambda key: "–" if figures.get(key) is None else f"{figures[key]:.3f}"
    between = lambda key: " ({:.3f} to {:.3f})".format(*figures[key]) if figures.get(key) else ""
    lines = [f"pair accuracy {text('pair_accuracy')}{between('pair_accuracy_ci95')} on {figures['n_pairs']} pairs"]
    if "untrained_pair_accuracy" in figures:
        lines.append(f"  the base before training: {text('untrained_pair_accuracy')}")
    lines.append(f"  SC {text('sc_pair_accuracy')}, PQ {text('pq_pair_accuracy')}")
    lines.append(f"  {figures['ties']} ties, {figures['invalid_pairs']} pairs with an answer that cannot be read")
    for table in ("by_task", "by_kind", "by_passes", "controls"):
        rows = figures.get(table, {}).items()
        lines += (
            [f"  {table.replace('_', ' ')}: " + ", ".join(f"{k} {v['accuracy']:.2f}" for k, v in rows)] if rows else []
        )
    return "\n".join(lines)
