"""Every rung of the ladder on every tiny configuration."""

import pytest

from tests.parity import ladder, tiny


@pytest.mark.parametrize("name", tiny.CONFIGS)
@pytest.mark.parametrize("rung", ladder.RUNGS)
def test_rung(rung, name):
    run, bar = ladder.RUNGS[rung]
    wrong = {what: e for what, e in run(name).items() if not e <= bar}
    assert not wrong, f"above {bar}: {wrong}"
