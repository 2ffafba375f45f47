"""Every rung of the ladder on every tiny configuration."""

import itertools

import pytest

from tests.parity import ladder, tiny

# what two of Qwen3-VL's configurations show is enough for every day
LONG = set(itertools.product(("gradients", "generation"), set(tiny.QWEN3) - {"3_tied_gqa", "3_levels"}))


@pytest.mark.parametrize(
    "rung, name",
    [
        pytest.param(rung, name, marks=[pytest.mark.slow] if (rung, name) in LONG else [])
        for rung in ladder.RUNGS
        for name in tiny.CONFIGS
    ],
)
def test_rung(rung, name):
    run, bar = ladder.RUNGS[rung]
    wrong = {what: e for what, e in run(name).items() if not e <= bar}
    assert not wrong, f"above {bar}: {wrong}"
