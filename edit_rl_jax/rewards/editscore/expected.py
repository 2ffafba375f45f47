"""Expected scores: the distribution over all pairs of scores on 0..25 after a reasoning, from one branched pass.

Digits are tokens of their own ("25" is "2", "5"), so a score is a path and ends where its terminator follows: "2" is
not "25". P(a, b) = P(a and its separator) * P(b and its end | a). What is left of 1 is the probability of answers that
are not two scores on the scale: it is reported, and the figures are those of the rest.
"""

import dataclasses
import re
from typing import Any

import numpy as np

from edit_rl_jax.data.records import SCORE_RANGE
from edit_rl_jax.rewards.base import Judgement
from edit_rl_jax.rewards.editscore.aggregate import Aggregate, Figures, judgement, over
from edit_rl_jax.rewards.editscore.parsing import Reply, parse
from edit_rl_jax.rewards.editscore.prompts import answer
from edit_rl_jax.vlm.engine.branch import Tree

N = SCORE_RANGE + 1
_OPEN = re.compile(r'"score"\s*:\s*\[\s*$')


@dataclasses.dataclass(frozen=True)
class Expected:
    """One pass: E[first], E[second], E[min], E[sqrt(min)] over the valid answers, and the probability of the others."""

    reply: Reply
    first: float = float("nan")
    second: float = float("nan")
    least: float = float("nan")
    root: float = float("nan")
    outside: float = 1.0


class ScoreTree:
    """The 26 x 26 answers as a tree of a tokenizer's tokens.

    Attributes:
      opening: tokens of a reply without reasoning, up to where the first score begins.
      separator, closing: what stands between the scores, and after them (the end of the turn left out).
      tree: for `vlm.engine.branch`.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        encode = lambda text: list(tokenizer.encode(text, add_special_tokens=False))
        digits = [encode(str(d)) for d in range(10)]
        if any(len(d) != 1 for d in digits):
            raise ValueError("expected scores want a tokenizer whose digits are tokens")
        self.digits = [d for (d,) in digits]
        whole = encode(answer("", (3, 4), end=""))
        a, b = whole.index(self.digits[3]), len(whole) - 1 - whole[::-1].index(self.digits[4])
        self.opening, self.separator, self.closing = whole[:a], whole[a + 1 : b], whole[b + 1 :]
        for pair in ((0, 25), (17, 9)):
            made = [*self.opening, *self.number(pair[0]), *self.separator, *self.number(pair[1]), *self.closing]
            if made != encode(answer("", pair, end="")):
                raise ValueError("expected scores want a tokenizer that keeps scores apart from what surrounds them")
        self._build()

    def number(self, n: int) -> list[int]:
        return [self.digits[int(c)] for c in str(n)]

    def _build(self) -> None:
        tokens, parents, index = [0], [-1], {(): 0}
        wanted: list[list[int]] = [[]]

        def node(path: tuple[int, ...]) -> int:
            if path not in index:
                parent = node(path[:-1])
                index[path] = len(tokens)
                tokens.append(path[-1])
                parents.append(parent)
                wanted.append([])
            return index[path]

        def edges(path: tuple[int, ...], start: int) -> list[tuple[int, int]]:
            """(node, column of its `wanted`) of each step of the path from place `start` on."""
            out = []
            for i in range(start, len(path)):
                at = node(path[:i])
                if path[i] not in wanted[at]:
                    wanted[at].append(path[i])
                out.append((at, wanted[at].index(path[i])))
            return out

        self.first = [edges((*self.number(a), *self.separator), 0) for a in range(N)]
        self.second = [
            [edges((*head, *self.number(b), *self.closing[:1]), len(head)) for b in range(N)]
            for head in ((*self.number(a), *self.separator) for a in range(N))
        ]
        width = max(map(len, wanted))
        table = [w + [-1] * (width - len(w)) for w in wanted]
        self.tree = Tree(*(np.array(x, np.int32) for x in (tokens, parents, table)))

    def opens_at(self, tokens: np.ndarray) -> int | None:
        """Finds the token of an answer after which its first score begins; None where there is none.

        It is the last place from which a written pair is read as the reply's own: no draft, no quotation.
        """
        for i in reversed(range(len(tokens))):
            if "[" in self.tokenizer.decode([int(tokens[i])]):
                text = self.tokenizer.decode(tokens[: i + 1])
                if _OPEN.search(text) and parse(text + "7, 13]}").scores == (7, 13):
                    return i
        return None

    def probabilities(self, logp: np.ndarray) -> np.ndarray:
        """P(first, second) [26, 26] from the tree's log-probabilities."""
        total = lambda steps: sum(float(logp[at, column]) for at, column in steps)
        first = np.array([total(steps) for steps in self.first])
        second = np.array([[total(steps) for steps in row] for row in self.second])
        return np.exp(first[:, None] + second)

    def expected(self, reply: Reply, logp: np.ndarray | None) -> Expected:
        """The figures of one pass; `logp` is None where the answer never came to its scores."""
        if logp is None:
            return Expected(dataclasses.replace(reply, scores=None, problem=reply.problem or "no score"))
        p = self.probabilities(np.asarray(logp, np.float64))
        inside = float(p.sum())
        if not np.isfinite(inside) or inside <= 0:
            return Expected(dataclasses.replace(reply, scores=None, problem="no probability on valid scores"))
        a, b = np.indices(p.shape)
        mean = lambda values: float((p * values).sum() / inside)
        first, second, least = mean(a), mean(b), np.minimum(a, b)
        reply = dataclasses.replace(reply, scores=(first, second), numbers=(first, second), problem="")
        return Expected(reply, first, second, mean(least), mean(np.sqrt(least)), max(0.0, 1 - inside))


def judge_expected(sc: tuple[Expected, ...], pq: tuple[Expected, ...]) -> Judgement:
    """The judgement of passes in expected-score mode; a question that was not asked has none.

    SC and PQ of a pass are E[min]; overall is E[sqrt(min SC * min PQ)], the limit of Avg@K for these reasonings. The
    detail `outside` is the probability of answers that are not two scores (the larger of SC and PQ).
    """
    replies = [tuple(x.reply for x in xs) for xs in (sc, pq)]
    passes = [p for p in zip(*(xs for xs in (sc, pq) if xs)) if all(x.reply.valid for x in p)]
    if not passes:
        return judgement(*replies, None)
    figures = []
    for p in passes:
        s, q = p[0] if sc else None, p[-1] if pq else None
        both = s.root * q.root if s and q else None
        columns = [(x.first, x.second, x.least) if x else (None, None, None) for x in (s, q)]
        figures.append(Figures(*columns[0], *columns[1], both))
    mean, std = (over(figures, lambda values, of=of: float(of(values))) for of in (np.mean, np.std))
    outside = float(np.mean([max(x.outside for x in p) for p in passes]))
    return judgement(*replies, Aggregate(tuple(figures), mean, std), outside=outside)
