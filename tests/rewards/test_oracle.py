"""The oracle as a reward: true edits are near 25, pixels that cannot be read are not a number."""

import numpy as np

from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.rewards import oracle


def test_a_true_edit_scores_high_and_unreadable_pixels_nothing():
    records = EditRecords("test", 4, mixture={"correct": 1.0})
    edit, made = records.candidate(0)
    good, broken, small = oracle.score(
        [(edit, made.render(84)), (edit, np.full((84, 84, 3), np.nan)), (edit, np.zeros((8, 8, 3), np.uint8))]
    )
    assert good.valid and good.success and tuple(good.dimensions) == oracle.DIMENSIONS
    assert min(d.value for d in (*good.dimensions.values(), good.overall)) >= 23
    for bad in (broken, small):
        assert not bad.valid and not bad.dimensions and bad.overall is None and bad.problem
