"""Expected verdicts: of each verdict that was written, the probability of a yes at its place, p(1) / (p(0) + p(1)).

Of both digits as they are written there, with the same white space before them, under the model itself, after all that
stands before. Where in a reply a verdict stands is found by writing the other digit there: it is the verdict on the
principle that then reads the other way.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int32

from edit_rl_jax.data.records import Principle
from edit_rl_jax.rewards.edit_rrm.replies import Reply, parse

_WRITTEN = re.compile(r"score\W{0,8}?([01])(?![\d.])", re.IGNORECASE)


def places(reply: Reply, principles: Sequence[Principle], mode: str) -> tuple[int | None, ...]:
    """Finds where in the text of a valid reply the verdict on each principle stands; None: not as one digit."""
    found: list[int | None] = [None] * len(principles)
    for written in _WRITTEN.finditer(reply.raw):
        at, other = written.start(1), str(1 - int(written[1]))
        read = parse(reply.raw[:at] + other + reply.raw[at + 1 :], principles, mode)
        changed = [k for k, (a, b) in enumerate(zip(reply.verdicts, read.verdicts)) if a != b]
        if len(changed) == 1 and read.verdicts[changed[0]] == int(other):
            found[changed[0]] = at
    return tuple(found)


def digits(tokenizer: Any) -> tuple[tuple[int, int], ...]:
    """Finds the tokens that write a verdict, as (no, yes): the digits, with white space before them or without.

    Raises ValueError for a tokenizer whose digits are no tokens of their own.
    """
    vocabulary = tokenizer.get_vocab()
    ends = [(piece[:-1] + "0", yes) for piece, yes in vocabulary.items() if piece.endswith("1")]
    both = [(vocabulary[other], yes) for other, yes in ends if other in vocabulary]
    pairs = tuple(sorted(pair for pair in both if tokenizer.decode([pair[1]]).strip() == "1"))
    if not pairs:
        raise ValueError("verdicts want a tokenizer whose digits are tokens")
    return pairs


def probabilities(
    reply: Reply,
    principles: Sequence[Principle],
    mode: str,
    tokenizer: Any,
    pairs: Sequence[tuple[int, int]],
    tokens: Int32[np.ndarray, " n"],
    log_probs: Float32[np.ndarray, "2 pairs n"],
) -> tuple[tuple[float, ...] | None, str]:
    """Gives the probability of a yes, by principle, or None and why there is none.

    pairs: of `digits`; tokens: of the text of the reply; log_probs: nats, of all noes and all yeses, at each of them.
    """
    out = []
    for principle, at, verdict in zip(principles, places(reply, principles, mode), reply.verdicts):
        token = None if at is None else _token_at(tokenizer, tokens, at)
        pair = None if token is None else next((k for k, p in enumerate(pairs) if p[verdict] == tokens[token]), None)
        if pair is None:
            return None, f"the verdict is no token of its own: {principle.question!r:.60}"
        no, yes = log_probs[:, pair, token].astype(np.float64)
        out.append(float(np.exp(-np.logaddexp(0.0, no - yes))))
    return tuple(out), ""


def _token_at(tokenizer: Any, tokens: np.ndarray, at: int) -> int | None:
    """The token that writes character `at` of the text."""
    low, high = 0, len(tokens)  # of the first tokens, `low` end before it, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(tokenizer.decode(tokens[:middle])) <= at else (low, middle)
    return low if low < len(tokens) else None
