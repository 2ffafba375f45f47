"""EditWorld for a verifier: labelled edits with their principles, verdicts and final score, and the reply to learn."""

from edit_rl_jax.data import principles
from edit_rl_jax.data.records import VERIFIER_SCALE, EditRecord, VerifierRecord
from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.editworld.principles import principles_of, verdicts_of

__all__ = ["VerifierRecords", "of_record", "principles_of", "verdicts_of"]
TOP = 25  # of the oracle's overall


def of_record(record: EditRecord) -> VerifierRecord:
    """Makes a verifier's record of the world's: what the oracle says, as it is learnt. The final score is the oracle's
    overall, brought to 0..10: nothing where the edit was not made at all. `meta["reasoning"]`: the reasons of both
    kinds of scores."""
    asked, score = principles.from_json(record.key, record.meta["principles"]), record.meta["overall"]
    return VerifierRecord(
        key=record.key,
        source=record.source,
        edited=record.edited,
        instruction=record.instruction,
        principles=asked,
        verdicts=tuple(record.meta["verdicts"]),
        score=round(VERIFIER_SCALE * score / TOP, 1),
        task=record.task,
        group=record.group,
        meta=record.meta | {"reasoning": f"{record.sc_reasoning} {record.pq_reasoning}"},
    )


class VerifierRecords(EditRecords):
    """Random access to `size` VerifierRecords of the edits that `EditRecords` gives; its options and errors."""

    def __getitem__(self, index: int) -> VerifierRecord:
        return of_record(super().__getitem__(index))
