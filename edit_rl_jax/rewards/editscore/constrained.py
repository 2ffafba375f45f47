"""Constrained decoding: an automaton under which only a valid reply can be written.

{"reasoning": "<no quotes, backslashes or control characters>", "score": [<0..25>, <0..25>]}<end>

A reasoning that would leave no room for the scores is ended.
"""

from typing import Any

import numpy as np

from edit_rl_jax.data.records import SCORE_RANGE
from edit_rl_jax.rewards.editscore.expected import ScoreTree
from edit_rl_jax.rewards.editscore.prompts import END
from edit_rl_jax.vlm.engine.automaton import Automaton


def reply_automaton(tokenizer: Any, vocabulary: int) -> Automaton:
    """The automaton of a tokenizer; `vocabulary`: rows of the model's head. ValueError as `ScoreTree`."""
    parts = ScoreTree(tokenizer)
    encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))
    head, tail = encode('{"reasoning": "'), encode('", "score": [')
    end = tokenizer.convert_tokens_to_ids(END)
    special = sorted({*head, *tail, *parts.digits, *parts.separator, *parts.closing, end})
    names = set(tokenizer.all_special_ids)
    texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), vocabulary))])
    free = np.zeros(vocabulary, bool)
    for i, text in enumerate(texts):
        free[i] = i not in names and bool(text) and not any(c in '"\\' or ord(c) < 32 for c in text)
    free[end] = False
    classes = free.astype(np.int32)  # 0 never, 1 in a reasoning only, then one class each
    classes[special] = 2 + np.arange(len(special))
    of = {token: 2 + i for i, token in enumerate(special)}

    rows: list[dict[int, int]] = []

    def state() -> int:
        rows.append({})
        return len(rows) - 1

    def chain(at: int, tokens: list[int]) -> int:
        """The state after these tokens, the only ones allowed."""
        for token in tokens:
            rows[at][of[token]] = state()
            at = len(rows) - 1
        return at

    def number(at: int, after: list[int]) -> int:
        """The state after a number 0..25 and `after`."""
        done = state()
        for d in range(10):
            second = [e for e in range(10) if d and 10 * d + e <= SCORE_RANGE]
            more = state() if second else done
            rows[at][of[parts.digits[d]]] = more
            rows[more] |= {of[parts.digits[e]]: done for e in second}
        last = chain(done, after)
        for row in {r for r in rows[at].values()} - {done}:
            rows[row][of[after[0]]] = rows[done][of[after[0]]]
        return last

    reasoning = chain(state(), head)
    rows[reasoning] = {c: reasoning for c in (1, *(of[t] for t in special if free[t]))}
    opened = chain(reasoning, tail)
    chain(number(number(opened, parts.separator), parts.closing), [end])
    following = np.full((len(rows), 2 + len(special)), -1, np.int32)
    for i, row in enumerate(rows):
        for c, to in row.items():
            following[i, c] = to
    following[-1, of[end]] = len(rows) - 1
    hurried = following.copy()
    hurried[reasoning] = -1
    hurried[reasoning, of[tail[0]]] = rows[reasoning][of[tail[0]]]
    needed = np.zeros(len(rows), np.int32)
    needed[reasoning] = len(tail) + 2 + len(parts.separator) + 2 + len(parts.closing) + 1
    return Automaton(classes, following, hurried, needed)
