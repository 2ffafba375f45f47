"""Which judged edits a report shows: of every error kind a pair that is ordered rightly and one that is not."""

from collections.abc import Sequence

from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.pairs import DIMENSIONS, Pair, accuracies
from edit_rl_jax.rewards.editscore.reward import Judgement, overall
from edit_rl_jax.training.report import Sample


def sample(record: EditRecord, judgement: Judgement, right: bool | None = None) -> Sample:
    """A record with scores and its judgement, as the report shows them; an unreadable reply is shown as written."""
    truth = {"overall": float(record.meta.get("overall", overall(record.sc, record.pq)))}
    truth |= {name: of(record) for name, of in DIMENSIONS.items()}
    replies = {"SC": judgement.sc_replies[:1], "PQ": judgement.pq_replies[:1]}
    words = [f"{q}: {r.reasoning if r.valid else r.raw}" for q, rs in replies.items() for r in rs]
    return Sample(
        instruction=record.instruction,
        source=record.source,
        edited=record.edited,
        scores={"overall": judgement.overall} | {name: of(judgement) for name, of in DIMENSIONS.items()},
        truth=truth,
        reasoning="\n".join(words if judgement.valid else [*words, f"no score: {judgement.problem}"]),
        task=record.task,
        kind=str(record.meta.get("kind", "")),
        right=right,
    )


def report_samples(
    pairs: Sequence[Pair], judged: Sequence[tuple[Judgement, Judgement]], limit: int = 16
) -> list[Sample]:
    """Both edits of at most `limit` pairs: the first right and the first wrong pair of each error kind, in turn."""
    right = accuracies(pairs, judged)["overall"].right
    first: dict[tuple[bool, str], int] = {}
    for i, pair in enumerate(pairs):
        first.setdefault((bool(right[i]), pair.kind), i)
    chosen = sorted(first.values())[:limit]
    both = lambda i: zip((pairs[i].better, pairs[i].worse), judged[i])
    return [sample(record, judgement, bool(right[i])) for i in chosen for record, judgement in both(i)]
