"""Constrained replies of the verifier: an automaton that is told each prompt's principles writes valid replies only.

    <reasoning, without braces and angle brackets>[{"question": "<the principle's>", "score": <0 or 1>}, ...]
    {"average_score": <the mean of what was written>}
    <score><0..10, one decimal at most></score><end>

What is free is written by the model, all else is written for it, token by token as `replies.write` has it. A reasoning
that would leave no room for the rest is ended; whatever it says, it is no part of what is read (`Forms.begins`).
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int, Int32

from edit_rl_jax.data.records import CATEGORIES, VERIFIER_SCALE, Principle
from edit_rl_jax.rewards.edit_rrm.expected import digits
from edit_rl_jax.rewards.edit_rrm.replies import listed, write
from edit_rl_jax.rewards.editscore.prompts import END
from edit_rl_jax.vlm.engine.automaton import Automaton

AFTER, VERDICT = -1, -2  # in a form: its end; a verdict, in the digits' pair number VERDICT - entry


@dataclasses.dataclass(frozen=True, eq=False)
class FormAutomaton:
    """Follows the form [R, F] of each answer's prompt: row c is what is written once c verdicts are yes.

    A state is place * R + yeses; those from F * R on are the tail's.

    Attributes:
      free: the tokens of a reasoning. A form's first token may be one of them: its second one, then, decides.
      pairs: tokens of a no and of a yes.
      tail: what follows a form: the score's number and the end.
      reasons: whether there is a reasoning.
    """

    free: Bool[np.ndarray, " V"]
    pairs: Int32[np.ndarray, "K 2"]
    tail: Automaton
    reasons: bool

    def allowed(self, state: Int[Array, " B"], left: Int[Array, " B"], form: Int[Array, "B R F"]) -> Bool[Array, "B V"]:
        """Says which tokens may come next in each answer, with `left` tokens to its limit."""
        inside, place, _, entry, pair = self._at(state, form)
        ids = jnp.arange(self.free.shape[0])[None]
        own = ids == entry[:, None]
        own |= (entry <= VERDICT)[:, None] & ((ids == pair[:, :1]) | (ids == pair[:, 1:]))
        hurry = left <= jnp.max(jnp.sum(form != AFTER, axis=2), axis=1) + self.tail.needed[0]
        thinking = self._reasoning(place, form) & ~hurry
        own |= thinking[:, None] & jnp.asarray(self.free)[None]
        return jnp.where(inside[:, None], own, self.tail.allowed(self._tail(state, form), left))

    def next(self, state: Int[Array, " B"], token: Int[Array, " B"], form: Int[Array, "B R F"]) -> Int[Array, " B"]:
        """Gives the states after these tokens."""
        R, F = form.shape[1:]
        inside, place, yeses, entry, pair = self._at(state, form)
        yeses += ((entry <= VERDICT) & (token == pair[:, 1])).astype(jnp.int32)
        ended = (place + 1 == F) | (self._entry(form, yeses, jnp.minimum(place + 1, F - 1)) == AFTER)
        forward = jnp.where(ended, F * R, (place + 1) * R + yeses)
        again = jnp.where(token == form[:, 0, 0], R, 0)  # the reasoning goes on
        within = jnp.where(self._reasoning(place, form) & (token != entry), again, forward)
        return jnp.where(inside, within, F * R + self.tail.next(self._tail(state, form), token))

    def _at(self, state: Array, form: Array) -> tuple[Array, ...]:
        """Says whether a state is of the form; its place and count of yeses, what stands there, and its two digits."""
        R, F = form.shape[1:]
        place, yeses = jnp.divmod(jnp.minimum(state, F * R - 1), R)
        entry = self._entry(form, yeses, place)
        return state < F * R, place, yeses, entry, jnp.asarray(self.pairs)[jnp.maximum(VERDICT - entry, 0)]

    def _entry(self, form: Array, yeses: Array, place: Array) -> Array:
        return form[jnp.arange(form.shape[0]), yeses, place]

    def _reasoning(self, place: Array, form: Array) -> Array:
        """Says whether the reasoning may go on: at the form's first place, and after it where that token is free."""
        return self.reasons & ((place == 0) | (place == 1) & jnp.asarray(self.free)[form[:, 0, 0]])

    def _tail(self, state: Array, form: Array) -> Array:
        return jnp.maximum(state - form.shape[1] * form.shape[2], 0)


class Forms:
    """Makes the forms of replies in one mode, and the automaton that follows them.

    `of(principles)` gives a form, int32 [R, F]. Raises ValueError for a tokenizer that does not keep verdicts and score
    apart from what surrounds them.
    """

    def __init__(self, tokenizer: Any, vocabulary: int, mode: str):
        """Reads the tokenizer; vocabulary: rows of the model's head."""
        self.tokenizer, self.mode, self.pairs = tokenizer, mode, digits(tokenizer)
        marks = [self._encode(str(d)) for d in range(10)] + [self._encode(".")]
        if any(len(m) != 1 for m in marks):
            raise ValueError("constrained replies want a tokenizer whose digits are tokens")
        self._digits, self._point = [m[0] for m in marks[:10]], marks[10][0]
        opening = self._encode("<score>")
        self._closing = self._encode("<score>7</score>")[len(opening) + 1 :]
        for text in ("7", "7.5", str(VERIFIER_SCALE)):
            number = [self._point if c == "." else self._digits[int(c)] for c in text]
            if self._encode(f"<score>{text}</score>") != [*opening, *number, *self._closing] or len(opening) < 2:
                raise ValueError("constrained replies want a tokenizer that keeps a score apart from its tag")
        names = set(tokenizer.all_special_ids)
        texts = tokenizer.batch_decode([[i] for i in range(min(len(tokenizer), vocabulary))])
        free = np.zeros(vocabulary, bool)
        for i, text in enumerate(texts):
            free[i] = i not in names and bool(text) and not any(c in "{}<>" for c in text)
        end = tokenizer.convert_tokens_to_ids(END)
        free[end] = False
        pairs = np.array(self.pairs, np.int32)
        self.automaton = FormAutomaton(free, pairs, self._tail(vocabulary, end), "think" in mode)
        self.of = functools.lru_cache(1024)(self._of)
        probe = self.of(tuple(Principle(q, CATEGORIES[0]) for q in ("Is it red?", "and round")))
        self._first = int(probe[0, 0])

    def needed(self, form: Int32[np.ndarray, "R F"]) -> int:
        """Counts the tokens that a reply takes at most, its reasoning left out."""
        return int((form != AFTER).sum(1).max() + self.automaton.tail.needed[0])

    def begins(self, tokens: Int32[np.ndarray, " n"]) -> int:
        """Finds the token with which the form begins in a reply: before it stands the reasoning."""
        free = self.automaton.free[tokens]
        at = len(tokens) if free.all() else int(np.argmin(free))
        return at - 1 if 0 < at < len(tokens) and tokens[at - 1] == self._first else at

    def _of(self, principles: tuple[Principle, ...]) -> Int32[np.ndarray, "R F"]:
        """Makes the form of replies about these principles. Raises ValueError where no valid reply can be written."""
        n = len(principles) if self.mode != "think" else 0
        if n:
            write("", principles, [0] * n, 0, "verify")  # raises where its questions cannot be told apart
        rows = [self._begin(principles, [1] * c + [0] * (n - c)) for c in range(n + 1)]
        holes: list[tuple[int, int]] = []  # (place, pair)
        for i, both in enumerate(zip(rows[0], rows[-1])):
            if both in self.pairs and len(holes) < n:
                holes.append((i, self.pairs.index(both)))
        start = holes[-1][0] + 1 if holes else 0
        form = np.full((n + 1, max(map(len, rows))), AFTER, np.int32)
        for c, row in enumerate(rows):
            wanted = list(rows[0][:start])
            for at, pair in holes[:c]:
                wanted[at] = self.pairs[pair][1]
            if len(holes) < n or row[:start] != wanted:
                raise ValueError(
                    "constrained replies want a tokenizer that keeps verdicts apart from what surrounds them"
                )
            form[c, : len(row)] = row
            for at, pair in holes:
                form[c, at] = VERDICT - pair
        return form

    def _begin(self, principles: Sequence[Principle], verdicts: Sequence[int]) -> list[int]:
        """Tokens of a reply without reasoning, up to where its score begins."""
        lines = listed(principles, verdicts) if verdicts else []
        tokens = self._encode("\n".join([*lines, "<score>0</score>"]))
        return tokens[: len(tokens) - len(self._closing) - 1]

    def _encode(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _tail(self, vocabulary: int, end: int) -> Automaton:
        """The number, 0 to 10 with one decimal at most, the tag's end and that of the turn."""
        rows: list[dict[int, int]] = [{} for _ in range(5 + len(self._closing))]
        number, one, whole, point, closing = range(5)  # `closing`: of its first token, n; the rest follow
        first, second = self._closing[0], closing + 1
        rows[number] = {d: one if k == 1 else whole for k, d in enumerate(self._digits)}
        rows[one] = {self._digits[0]: closing, self._point: point, first: second}
        rows[whole] = {self._point: point, first: second}
        rows[point] = dict.fromkeys(self._digits, closing)
        for k, token in enumerate([*self._closing, end]):
            rows[closing + k] = {token: min(closing + k + 1, len(rows) - 1)}
        special = sorted({token for row in rows for token in row})
        classes = np.zeros(vocabulary, np.int32)
        classes[special] = 1 + np.arange(len(special))
        following = np.full((len(rows), 1 + len(special)), -1, np.int32)
        for i, row in enumerate(rows):
            for token, to in row.items():
                following[i, classes[token]] = to
        needed = np.zeros(len(rows), np.int32)
        needed[number] = 3 + len(self._closing) + 1
        return Automaton(classes, following, following, needed)
