"""Ranges of numbers in words: which values a config key or a flag takes, and the line that says so.

A range is text: "[1, 100]" with its ends, "(0, 1)" without, "-1 or [1, 100]" with one value besides. NaN and infinity
lie in none.
"""

import argparse
import dataclasses
import re
from collections.abc import Callable
from typing import Any

INT32 = "[1, 2147483647]"  # of what is counted in int32 on the devices
INT32_OR_0 = "[0, 2147483647]"
_FORM = re.compile(r"(?:(\S+) or )?([\[(])(\S+), (\S+)([\])])")


def problem(value: float, allowed: str) -> str:
    """What a number in the range `allowed` must be, where `value` is not, e.g. "must be above 0 and at most 1, got 7";
    "" where it is."""
    form = _FORM.fullmatch(allowed)
    assert form, allowed
    besides, opening, low, high, closing = form.groups()
    above = value >= float(low) if opening == "[" else value > float(low)
    below = value <= float(high) if closing == "]" else value < float(high)
    if above and below or besides is not None and value == float(besides):
        return ""
    words = f"at least {low}" if opening == "[" else f"above {low}"
    words += f" and at most {high}" if closing == "]" else f" and below {high}"
    return f"must be {f'{besides}, or ' if besides else ''}{words}, got {value}"


def knob(default: Any, allowed: str | tuple[str, ...] = "") -> Any:
    """Declares a field of a dataclass that is a key of configs, with its default and what it may be.

    allowed: the range of a number, or the choices of a text. default: `dict` for an empty one.
    """
    about = {"allowed": allowed}
    if default is dict:
        return dataclasses.field(default_factory=dict, metadata=about)
    return dataclasses.field(default=default, metadata=about)


def flag(kind: type[int] | type[float], allowed: str) -> Callable[[str], float]:
    """The `type` of a command-line flag that takes an int or a float in the range `allowed`."""

    def parse(text: str) -> float:
        if wrong := problem(value := kind(text), allowed):  # argparse says itself what is no number
            raise argparse.ArgumentTypeError(wrong)
        return value

    parse.__name__ = kind.__name__
    return parse
