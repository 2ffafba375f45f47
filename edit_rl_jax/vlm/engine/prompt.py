"""Prompts as the engine takes them: tokens, pictures, and the places where a prompt may be cut to be shared."""

import dataclasses
import hashlib
import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Int32


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """An image of a prompt.

    Attributes:
      key: its content and how it is resized, as a digest: pictures of one key are one image, encoded once.
      tokens: merged tokens.
      slots: patch slots of its arrays, the shape that it is encoded in.
      load: gives its arrays (of `Decoder.image_features`, [1, slots, ...]) and the merged token of each of its pads, in
        order. Called in a thread, at most once a pass through the tower. May raise ValueError: the prompt then has no
        answer.
    """

    key: bytes
    tokens: int
    slots: int
    load: Callable[[], tuple[dict[str, Any], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Piece:
    """Tokens [start, stop) of a prompt; `key` names what it holds up to `stop`: tokens, positions, pictures' keys."""

    key: bytes
    start: int
    stop: int


@dataclasses.dataclass(frozen=True, eq=False)
class Prompt:
    """One prompt.

    Attributes:
      tokens [T]: ids, with a pad for each merged token of an image; the last one is text.
      positions [axes, T]: of the family.
      pictures: (place of its first pad, picture), in order.
      cuts: places (0 < cut < T - 1, outside images) between pieces. All pieces but the last are prefixes to share with
        the prompts that begin alike. They must follow from the prompt alone (where an image begins, where a fixed text
        ends), not from its company: then so does its result, bit for bit.
      item, purpose: what its random numbers come from.
      form: what the engine's automaton is told of its answers (see `automaton.Constraint`).
    """

    tokens: Int32[np.ndarray, " T"]
    positions: Int32[np.ndarray, "axes T"]
    pictures: tuple[tuple[int, Picture], ...] = ()
    cuts: tuple[int, ...] = ()
    item: int = 0
    purpose: int = 0
    form: Int32[np.ndarray, "R F"] | None = None

    def __post_init__(self):
        last = len(self.tokens) - 1
        if last < 1:
            raise ValueError("a prompt has at least two tokens")
        for cut in self.cuts:
            if not 0 < cut < last or any(start < cut < start + p.tokens for start, p in self.pictures):
                raise ValueError(f"a prompt of {last + 1} tokens cannot be cut at {cut}")
        if any(start + p.tokens > last for start, p in self.pictures):
            raise ValueError("the last token of a prompt must be text")

    def pieces(self) -> list[Piece]:
        """The shared prefixes, each without its parent's tokens, and last what is the prompt's own.

        Its last token is in none of them: that is the first that an answer feeds.
        """
        digest, out = hashlib.sha256(), []
        for start, stop in itertools.pairwise((0, *sorted(set(self.cuts)), len(self.tokens) - 1)):
            digest.update(self.tokens[start:stop].tobytes() + b"|" + self.positions[:, start:stop].tobytes())
            for at, picture in self.pictures:
                if start <= at < stop:
                    digest.update(at.to_bytes(4, "big") + picture.key)
            out.append(Piece(digest.digest(), start, stop))
        return out

    def pictures_in(self, piece: Piece) -> list[tuple[int, Picture]]:
        """(place, picture) of the images inside a piece."""
        return [(at, p) for at, p in self.pictures if piece.start <= at < piece.stop]


def rung(n: int, unit: int = 1, parts: int = 8) -> int:
    """`n` rounded up to an eighth (one of `parts`) of the next power of two, at least `unit`: few shapes cover all."""
    step = max(unit, (1 << max(n - 1, 1).bit_length()) // parts // unit * unit)
    return -(-n // step) * step


def power(n: int) -> int:
    """The next power of two."""
    return 1 << max(n - 1, 0).bit_length()


@dataclasses.dataclass(frozen=True)
class Shape:
    """The static sizes of the stores; one compiled decode program a shape.

    shared, own: tokens of a shared prefix and of what follows it. slots: answers side by side (B). prompts: prompts
    that they may belong to (P), `answers` each (K). tiles: groups that they may belong to (G), `queries` each (Q).
    form: sizes of a prompt's form, (0, 0) without.
    """

    shared: int
    own: int
    slots: int
    prompts: int
    answers: int
    tiles: int
    queries: int
    form: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, prompts: "list[Prompt]", answers: int, slots: int, multiple: int = 1, unit: int = 32) -> "Shape":
        """A shape that suits a call; row counts are multiples of `multiple` (a mesh's data axes), lengths of `unit`."""
        pieces = [p.pieces() for p in prompts]
        forms = [p.form.shape for p in prompts if p.form is not None]
        up = lambda n: -(-n // multiple) * multiple
        B = slots if multiple > 1 else min(slots, 2 ** (2 * math.ceil(math.log(len(prompts) * answers, 4)) + 1))
        P = up(B if answers == 1 else -(-7 * B // (4 * answers)))  # an answer that ends early leaves its prompt behind
        groups = len({chain[-2].key if len(chain) > 1 else b"" for chain in pieces})
        each = max(answers, power(-(-len(prompts) * answers // groups)))  # answers to the edits of one source
        Q = min(max(each, 8), B)
        return cls(
            shared=rung(max(chain[-1].start for chain in pieces) or 1, unit),
            own=rung(max(chain[-1].stop - chain[-1].start for chain in pieces), unit),
            slots=B,
            prompts=P,
            answers=answers,
            # places for what is written side by side, and for all answers of one prompt
            tiles=up(max(-(-B // Q) + -(-B // each), -(-answers // Q)) + 1),
            queries=Q,
            form=(power(max(n for n, _ in forms)), power(max(n for _, n in forms))) if forms else (0, 0),
        )

    def fits(self, prompt: Prompt) -> bool:
        """Whether a prompt's pieces and its form fit."""
        last, form = prompt.pieces()[-1], (0, 0) if prompt.form is None else prompt.form.shape
        fits_form = form[0] <= self.form[0] and form[1] <= self.form[1]
        return last.start <= self.shared and last.stop - last.start <= self.own and fits_form
