"""What ties of preferences mean. Paper: arXiv 2509.26346, on overall ties whose dimensions disagree."""

import dataclasses

from edit_rl_jax.data.records import PreferenceRecord


def is_opposite(record: PreferenceRecord) -> bool:
    """Says whether a pair is tied as a whole while each edit is better in some dimension."""
    ahead = {(a > b) - (a < b) for a, b in record.scores.values()}
    return record.prefers == 0 and ahead >= {1, -1}


def disentangled(record: PreferenceRecord) -> list[PreferenceRecord]:
    """Makes two opposite preferences of a tie with opposite advantages; leaves any other record as it is."""
    if not is_opposite(record):
        return [record]
    return [
        dataclasses.replace(record, key=f"{record.key}/{name}", prefers=prefers)
        for name, prefers in (("first", 1), ("second", -1))
    ]
