"""What the judge says of one edit: its replies, and the figures made of them."""

import dataclasses
import math
import statistics
from collections.abc import Sequence
from typing import Any

from edit_rl_jax.rewards.editscore.aggregate import Figures, aggregate, over
from edit_rl_jax.rewards.editscore.parsing import Reply


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the judge says of one edit, on 0-25; figures are means over the passes that could be read.

    Attributes:
      valid: whether at least one pass gave all the scores that were asked for; nothing else is a number otherwise.
      sc: (editing success, no over-editing), or None.
      pq: (naturalness, no artifacts), or None.
      overall: mean over passes of sqrt(min SC * min PQ) (see `aggregate` for the other reduction), or None;
        `overall_std` is their standard deviation (n).
      sc_replies, pq_replies: what was written, a pass each.
      problem: why there is no score: an unreadable image, an empty instruction, or the first reply's fault.
      passes: the figures of the passes that could be read, one by one.
      outside: in expected-score mode, the probability of answers that are not two scores (the larger of SC and PQ).
    """

    sc: tuple[float, float] | None = None
    pq: tuple[float, float] | None = None
    overall: float | None = None
    overall_std: float | None = None
    sc_replies: tuple[Reply, ...] = ()
    pq_replies: tuple[Reply, ...] = ()
    problem: str = ""
    passes: tuple[Figures, ...] = ()
    outside: float | None = None

    @property
    def valid(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        """A line of score.py's output; `sc` and `pq` are means of the passes' minima, `std` of each figure (n)."""
        replies = {"sc": self.sc_replies, "pq": self.pq_replies}
        passes = {
            q: [{"scores": r.scores, "reasoning": r.reasoning, "raw": r.raw} for r in rs] for q, rs in replies.items()
        }
        mean, std = over(self.passes, statistics.fmean), over(self.passes, statistics.pstdev)
        return {
            "valid": self.valid,
            "prompt_following": self.sc and self.sc[0],
            "consistency": self.sc and self.sc[1],
            "naturalness": self.pq and self.pq[0],
            "artifacts": self.pq and self.pq[1],
            "sc": mean.sc,
            "pq": mean.pq,
            "overall": self.overall,
            "overall_std": self.overall_std,
            "problem": self.problem,
            "passes": passes,
            "figures": [dataclasses.asdict(p) for p in self.passes],
            "std": dataclasses.asdict(std),
            **({} if self.outside is None else {"outside": self.outside}),
        }


def overall(sc: Sequence[int | float], pq: Sequence[int | float]) -> float:
    """sqrt(min SC * min PQ), on the scores' own scale."""
    return math.sqrt(min(sc) * min(pq))


def judge(
    sc: Sequence[Reply], pq: Sequence[Reply], reduction: str = "average_last", behaviour: str = "paper"
) -> Judgement:
    """The judgement of K passes; a question that was not asked has no replies. See `aggregate` for the options."""
    asked = [replies for replies in (sc, pq) if replies]
    passes = [p for p in zip(*asked) if all(r.valid for r in p)]
    if not passes:
        problem = next(r.problem for replies in asked for r in replies if not r.valid)
        return Judgement(sc_replies=tuple(sc), pq_replies=tuple(pq), problem=problem)
    found = aggregate(
        [(p[0].scores if sc else None, p[-1].scores if pq else None) for p in passes], reduction, behaviour
    )
    mean, both = found.mean, bool(sc and pq)
    return Judgement(
        sc=(mean.prompt_following, mean.consistency) if sc else None,
        pq=(mean.naturalness, mean.artifacts) if pq else None,
        overall=mean.overall if both else None,
        overall_std=found.std.overall if both else None,
        sc_replies=tuple(sc),
        pq_replies=tuple(pq),
        passes=found.passes,
    )
