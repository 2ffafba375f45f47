"""What tests of evaluations share."""

import inspect

import pytest

from edit_rl_jax.evals import statistics


@pytest.fixture
def few_draws(monkeypatch):
    """Intervals of 400 draws instead of 4,000 and 1,000."""
    for function in (statistics.interval, statistics.macro_interval, statistics.bootstrap):
        monkeypatch.setitem(inspect.unwrap(function).__kwdefaults__, "draws", 400)
