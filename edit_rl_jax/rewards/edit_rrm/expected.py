"""Expected verdicts: of each verdict that was written, the probability of a yes at its place.

It comes from the log-probability of the digit that was written, under the model itself: of a 1, its probability; of a
0, what that leaves. So all other tokens speak against what was written, which is little where a verifier writes its
form. Where the likelier digit was written (greedy) and has less than half, they could turn the verdict, and there is
none; of a sampled reply a digit may have less in any case. Where in a reply a verdict stands is found by writing the
other digit there: it is the verdict on the principle that then reads the other way.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

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


def probabilities(
    reply: Reply,
    principles: Sequence[Principle],
    mode: str,
    tokenizer: Any,
    tokens: np.ndarray,
    log_probs: np.ndarray,
    greedy: bool = True,
) -> tuple[tuple[float, ...] | None, str]:
    """Gives the probability of a yes, by principle, or None and why there is none.

    tokens: int [n], of the text of the reply; log_probs: fp32 [n], nats.
    """
    out = []
    for principle, at, verdict in zip(principles, places(reply, principles, mode), reply.verdicts):
        token = None if at is None else _token_at(tokenizer, tokens, at)
        if token is None or tokenizer.decode([int(tokens[token])]).strip() != str(verdict):
            return None, f"the verdict is no token of its own: {principle.question!r:.60}"
        p = float(np.exp(np.float64(log_probs[token])))
        if greedy and p < 0.5:
            return None, f"the digit has {p:.2f}, less than half: {principle.question!r:.60}"
        out.append(min(1.0, p) if verdict else max(0.0, 1.0 - p))
    return tuple(out), ""


def _token_at(tokenizer: Any, tokens: np.ndarray, at: int) -> int | None:
    """The token that writes character `at` of the text."""
    low, high = 0, len(tokens)  # of the first tokens, `low` end before it, `high` do not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if len(tokenizer.decode(tokens[:middle])) <= at else (low, middle)
    return low if low < len(tokens) else None
