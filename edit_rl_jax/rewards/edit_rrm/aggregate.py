"""From the replies of K passes to a judgement: means and spreads over those that could be read."""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from edit_rl_jax.data.records import CATEGORIES, VERIFIER_SCALE, Principle
from edit_rl_jax.rewards.base import Dimension, Judgement
from edit_rl_jax.rewards.edit_rrm.replies import WEIGHTS, Reply, by_category, weighted

NAMES = {c: c.lower() for c in CATEGORIES}  # of categories as dimensions
DIMENSIONS = ("score", "verdicts", *NAMES.values())
SCALES = {"score": float(VERIFIER_SCALE)}  # of the others: 1


@dataclasses.dataclass(frozen=True)
class Pass:
    """A reply and, where they were asked for, the probabilities of a yes, by principle; `problem` is the reply's, or
    why it has no probabilities."""

    reply: Reply
    probabilities: tuple[float, ...] | None = None
    problem: str = ""

    def figures(self, principles: Sequence[Principle], weights: Mapping[str, float] = WEIGHTS) -> dict[str, float]:
        """Gives the figures of a pass that could be read by their names: score, verdicts (their mean), a category that
        has principles (its mean), and categories (their weighted mean, where what there is weighs anything)."""
        assert self.reply.score is not None
        out = {"score": self.reply.score}
        values = self.reply.verdicts if self.probabilities is None else self.probabilities
        if self.reply.average is None or not values:
            return out
        each = [float(v) for v in values if v is not None]
        means = by_category(principles, each)
        out |= {"verdicts": statistics.fmean(each)} | {NAMES[c]: m for c, m in means.items()}
        whole = weighted(means, weights, self.reply.score)
        return out if whole is None else out | {"categories": whole}

    def to_json(self) -> dict[str, Any]:
        """Gives the pass as judgements hold it."""
        reply = dataclasses.asdict(self.reply) | {"verdicts": list(self.reply.verdicts), "problem": self.problem}
        return reply if self.probabilities is None else reply | {"probabilities": list(self.probabilities)}

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> "Pass":
        """Reads what `to_json` made."""
        rest = {**stored, "verdicts": tuple(stored["verdicts"])}
        found = rest.pop("probabilities", None)
        return cls(Reply(**rest), None if found is None else tuple(found), rest["problem"])


def judge(
    passes: Sequence[Pass],
    principles: Sequence[Principle],
    reward: str = "score",
    weights: Mapping[str, float] = WEIGHTS,
    **details: Any,
) -> Judgement:
    """Judges by K passes; one that could not be read leaves the averages, and spreads are over the others.

    reward: the overall figure: "score" (0..10), "verdicts" or "categories" (0..1). `details` gets `principles`:
    question, category and `verdict` (its mean) of each; and `passes`: the replies.
    """
    read = [p for p in passes if not p.problem]
    each = [p.figures(principles, weights) for p in read]
    over = lambda name: [f[name] for f in each if name in f]
    known = {
        name: Dimension(statistics.fmean(values), statistics.pstdev(values), SCALES.get(name, 1.0))
        for name in (*DIMENSIONS, "categories")
        if (values := over(name))
    }
    problem = next((p.problem for p in passes), "no replies") if not read else ""
    if not problem and reward not in known:
        problem = f"no principles of a category that has a weight: no {reward}"
    verdicts = list(zip(*(p.probabilities or p.reply.verdicts for p in read)))
    means = [statistics.fmean(map(float, v)) if None not in v else None for v in verdicts] or [None] * len(principles)
    asked = [{"question": p.question, "category": p.category, "verdict": m} for p, m in zip(principles, means)]
    return Judgement(
        {} if problem else {name: known[name] for name in DIMENSIONS if name in known},
        None if problem else known[reward],
        None,
        tuple(p.reply.reasoning or p.reply.raw for p in (read or passes)[:1]),
        problem,
        len(passes) - len(read),
        {"principles": asked, "passes": [p.to_json() for p in passes], **details},
    )


def first(judged: Judgement, count: int, reward: str = "score", weights: Mapping[str, float] = WEIGHTS) -> Judgement:
    """Makes of a judgement that of the first `count` passes; as it is where it has none."""
    rest = dict(judged.details)
    passes, asked = rest.pop("passes", []), rest.pop("principles", [])
    if not passes:
        return judged
    principles = [Principle(p["question"], p["category"]) for p in asked]
    return judge([Pass.from_json(p) for p in passes[:count]], principles, reward, weights, **rest)
