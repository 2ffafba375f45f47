"""From the replies of K passes to a judgement: both reductions, and the profiles that name upstream's two behaviours.

Everything stays on the judge's own scale 0..R (R = 25); `FIGURE_SCALE` gives the published 0-10. Facts: arXiv
2509.23909, section 3, and the released code's `evaluate` and `batch_evaluate`, which differ.
"""

import dataclasses
import math
import statistics
from collections.abc import Callable, Collection, Sequence
from typing import Any, Literal

from edit_rl_jax.data.records import SCORE_RANGE
from edit_rl_jax.editworld.oracle import is_success
from edit_rl_jax.rewards.base import Dimension, Judgement
from edit_rl_jax.rewards.editscore.parsing import Reply

FIGURE_SCALE = 10 / SCORE_RANGE  # published figures are on 0-10
REDUCTIONS = ("average_last", "average_first")
QUESTIONS = {"sc": ("prompt_following", "consistency"), "pq": ("naturalness", "artifacts")}  # and their two scores
DIMENSIONS = (*QUESTIONS["sc"], *QUESTIONS["pq"])
Scores = tuple[float, float]


def questions_of(only: Collection[str] | None) -> list[Literal["sc", "pq"]]:
    """Names the questions that ask for these dimensions (None: all). Raises ValueError for another name."""
    if unknown := set(only or ()) - set(DIMENSIONS):
        raise ValueError(f"EditScore has no dimension {', '.join(sorted(unknown))}, but {', '.join(DIMENSIONS)}")
    return [q for q, names in QUESTIONS.items() if only is None or not set(names).isdisjoint(only)]


@dataclasses.dataclass(frozen=True)
class Profile:
    """A behaviour of the released code, by name. What both do to a reply that cannot be read (a random number in one,
    half of the range in the other) is in neither: such a pass has no score.

    Attributes:
      pq_sees_source: whether the question of perceptual quality shows the source image before the edited one.
      first: whose mean `average_first` puts under the root beside PQ's: "prompt_following", or "sc" (the minimum).
    """

    pq_sees_source: bool = False
    first: Literal["prompt_following", "sc"] = "sc"


PROFILES = {
    # `evaluate`: what the paper describes and benchmarks. Its average_first leaves consistency out.
    "paper": Profile(pq_sees_source=False, first="prompt_following"),
    # `batch_evaluate`: what the released RL policies were trained against; PQ was shown both images there.
    "rl-compat": Profile(pq_sees_source=True, first="sc"),
}


def profile(name: "str | Profile") -> Profile:
    """A named profile. Raises KeyError that lists the names."""
    if isinstance(name, Profile):
        return name
    if name not in PROFILES:
        raise KeyError(f"no profile {name!r}; there are {sorted(PROFILES)}")
    return PROFILES[name]


@dataclasses.dataclass(frozen=True)
class Figures:
    """Scores of one pass, or their means or standard deviations (n); None for a question that was not asked.

    Attributes:
      prompt_following, consistency: SC's two scores; `sc` their minimum.
      naturalness, artifacts: PQ's two scores; `pq` their minimum.
      overall: sqrt(sc * pq).
    """

    prompt_following: float | None = None
    consistency: float | None = None
    sc: float | None = None
    naturalness: float | None = None
    artifacts: float | None = None
    pq: float | None = None
    overall: float | None = None


@dataclasses.dataclass(frozen=True)
class Aggregate:
    """K passes one by one, their mean and standard deviation; `mean.overall` follows the reduction."""

    passes: tuple[Figures, ...]
    mean: Figures
    std: Figures


def one_pass(sc: Scores | None, pq: Scores | None) -> Figures:
    """The figures of one pass."""
    s, p = sc and min(sc), pq and min(pq)
    both = None if s is None or p is None else math.sqrt(s * p)
    return Figures(*(sc or (None, None)), s, *(pq or (None, None)), p, both)


def over(passes: Sequence[Figures], of: Callable[[list[float]], float]) -> Figures:
    """A statistic of each figure over passes; None where a question was not asked, or there are no passes."""
    columns = {f.name: [getattr(p, f.name) for p in passes] for f in dataclasses.fields(Figures)}
    return Figures(**{k: of(v) if v and None not in v else None for k, v in columns.items()})


def aggregate(
    passes: Sequence[tuple[Scores | None, Scores | None]],
    reduction: str = "average_last",
    behaviour: str | Profile = "paper",
) -> Aggregate:
    """Aggregates the (SC, PQ) scores of the passes that could be read; a question that was not asked is None in all.

    `average_last`: overall is the mean over passes of sqrt(sc * pq). `average_first`: the root of the product of means,
    of what the profile names. Raises ValueError without passes, or where a question was answered in some passes only.
    """
    if not passes or any(len({x is None for x in column}) > 1 for column in zip(*passes)):
        raise ValueError(f"{len(passes)} passes: at least one, and the same questions in each, are wanted")
    if reduction not in REDUCTIONS:
        raise ValueError(f"reduction is one of {REDUCTIONS}, not {reduction!r}")
    single = tuple(one_pass(*p) for p in passes)
    mean, std = over(single, statistics.fmean), over(single, statistics.pstdev)
    if reduction == "average_first" and mean.overall is not None:
        mean = dataclasses.replace(mean, overall=math.sqrt(getattr(mean, profile(behaviour).first) * mean.pq))
    return Aggregate(single, mean, std)


def judge(
    sc: Sequence[Reply], pq: Sequence[Reply], reduction: str = "average_last", behaviour: str | Profile = "paper"
) -> Judgement:
    """Judges by the replies of K passes; a question that was not asked has no replies. Options: see `aggregate`."""
    passes = [p for p in zip(*(replies for replies in (sc, pq) if replies)) if all(r.valid for r in p)]
    scores = [(p[0].scores if sc else None, p[-1].scores if pq else None) for p in passes]
    return judgement(sc, pq, aggregate(scores, reduction, behaviour) if passes else None)


def judgement(sc: Sequence[Reply], pq: Sequence[Reply], found: Aggregate | None, **details: Any) -> Judgement:
    """Makes the judgement of replies and their figures (None: no pass could be read); spreads are over the passes.

    `details` holds the means by name, `sc` and `pq` among them, their standard deviations `std`, the `figures` of each
    pass that could be read, and the replies themselves: `passes`.
    """
    every = (*sc, *pq)
    mean, std = (found.mean, found.std) if found else (Figures(), Figures())
    means, stds = dataclasses.asdict(mean), dataclasses.asdict(std)
    known = {k: Dimension(v, stds[k], float(SCORE_RANGE)) for k, v in means.items() if v is not None}
    asked = sc and pq and found
    return Judgement(
        {name: known[name] for name in DIMENSIONS if name in known},
        known.get("overall"),
        is_success(*([means[name] for name in names] for names in QUESTIONS.values())) if asked else None,
        tuple(r.reasoning or r.raw for r in (*sc[:1], *pq[:1])),
        "" if found else next(r.problem for r in every if not r.valid),
        sum(not r.valid for r in every),
        {
            **{k: v for k, v in means.items() if k != "overall"},
            "passes": {q: [_plain(r) for r in replies] for q, replies in (("sc", sc), ("pq", pq))},
            "figures": [dataclasses.asdict(p) for p in found.passes] if found else [],
            "std": stds,
            **details,
        },
    )


def _plain(reply: Reply) -> dict[str, Any]:
    scores = None if reply.scores is None else list(reply.scores)
    return dataclasses.asdict(reply) | {"scores": scores, "numbers": list(reply.numbers)}


def replies(judged: Judgement, most: int | None = None) -> tuple[tuple[Reply, ...], tuple[Reply, ...]]:
    """Returns the replies to SC and PQ that a judgement was made of, of the first `most` passes."""
    given = judged.details.get("passes", {"sc": (), "pq": ()})
    read = lambda r: Reply(**r | {"scores": r["scores"] and tuple(r["scores"]), "numbers": tuple(r["numbers"])})
    sc, pq = (tuple(read(r) for r in given[q][:most]) for q in QUESTIONS)
    return sc, pq
