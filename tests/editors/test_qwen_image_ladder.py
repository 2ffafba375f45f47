"""Qwen-Image's transformer against diffusers' on random tiny configurations: velocities of ragged rows, and gradients
by every weight."""

import pytest

from tests.editors import qwen_image
from tests.parity.ladder import NETWORK


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "zero_cond_t")) for n in qwen_image.LADDER]
)
def test_velocities_and_gradients_are_those_of_diffusers(name):
    wrong = {what: e for what, e in qwen_image.rung_gradients(name).items() if not e <= NETWORK}
    assert not wrong, f"above {NETWORK}: {wrong}"
