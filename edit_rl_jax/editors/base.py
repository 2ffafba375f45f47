"""What every image editor is: a `Processor` on the host and an `Editor` on the devices.

    Request -> Processor.fit, text_length -> TokenLengths -> Processor.prepare -> arrays of fixed shapes   (NumPy)
    arrays, latents of the references -> Editor.condition -> a pytree [B, branches, ...] -> Editor.velocity  (JAX)

Sampling, flow-matching training and RL go this way, and none of them knows what is in the arrays or the pytree: text of
one encoder or of several, seen with the images or without, pooled vectors, positions, a number for guidance.

Time runs from t = 0 (noise) to t = 1 (data): x_t = t x_1 + (1 - t) x_0, and the velocity is dx/dt = x_1 - x_0; an
editor whose network counts otherwise converts inside. Latents are token sequences [B, N, C] in fp32, an image's tokens
row by row, of a fixed length N: short ones are padded at their end.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, UInt8

from edit_rl_jax.data.records import RecordError
from edit_rl_jax.flow.guidance import Guidance

Size = tuple[int, int]
"""Height and width of an image in pixels."""

Arrays = Mapping[str, Any]
"""What `Processor.prepare` makes: arrays with a leading batch axis, NumPy on the host, then on the devices."""

Condition = Any
"""What the network needs: a pytree of arrays with a leading batch axis; `Editor.condition` adds branches after it."""


class EditError(RecordError):
    """An edit that cannot be made; names it."""


@dataclasses.dataclass(frozen=True)
class TokenLengths:
    """Lengths, in tokens, that rows are padded to. `references` 0: no row has one."""

    text: int
    references: int
    noise: int


class Request(NamedTuple):
    """An edit that is asked for, on the host.

    instruction: in words; None where training leaves it out. images: the references in RGB, for an editor whose text
    encoder sees them; () while only lengths are asked for. references, size: of their latents and of the result.
    negative, negative_system: what guidance leads away from, and the system text before it (None: the editor's own).
    """

    instruction: str | None
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...]
    references: tuple[Size, ...]
    size: Size
    negative: str = ""
    negative_system: str | None = None
    where: str = "edit"


@runtime_checkable
class Preparer(Protocol):
    """What makes arrays of requests: all that rows of training data (`editors.rows`) ask of a model.

    `tokenizer` is what the editor's files give: one, or several in an object of its own; no other code looks inside.

    Attributes:
      multiple: pixels of a token's side; images' sides are multiples of it.
      guidance: of sampling, where the user says nothing.
    """

    multiple: int
    guidance: Guidance

    def text_length(self, tokenizer: Any, request: Request, guidance: Guidance) -> int:
        """Counts the tokens of text that a request takes: those of its longest branch."""
        ...

    def prepare(
        self, tokenizer: Any, requests: Sequence[Request | None], lengths: TokenLengths, guidance: Guidance
    ) -> Arrays:
        """Makes the arrays [B, ...] of requests, whose shapes follow from `lengths` and `guidance.branches` alone.

        None is a row of padding; with nothing else the tokenizer may be None. Raises ValueError, naming the row that
        does not fit.
        """
        ...


@runtime_checkable
class Processor(Preparer, Protocol):
    """The half of an editor that works on the host, of its architecture alone: no weights, no device. Picklable.

    Attributes:
      downscale: pixels of a latent cell's side, which schedules count. channels: C, numbers of a token.
      steps: of sampling, where the user says nothing. max_side: of references, likewise.
    """

    downscale: int
    channels: int
    steps: int
    max_side: int

    def fit(
        self, images: Sequence[Size], size: Size | None, max_pixels: int, max_side: int, where: str
    ) -> tuple[tuple[Size, ...], Size]:
        """Chooses the sizes that references are resized to, and the result's.

        images: sizes of the references; size: the result's that is wanted, or None. No size exceeds max_pixels (but
        for an editor's own list of sizes), and no reference's side max_side. Raises EditError or ImageError, naming
        `where`.
        """
        ...


@runtime_checkable
class Editor(Protocol):
    """An NNX module; under jit it is split into (graphdef, trainable, frozen) and merged inside."""

    processor: Processor

    def condition(self, arrays: Arrays, references: Float[Array, "B S C"]) -> Condition:
        """Makes conditions [B, branches, ...] of prepared arrays; differentiable by what is trained of the encoders.

        references: latents of each row's references, one after the other, then padding; S = `TokenLengths.references`.
        The branches are in the order of the guidance's `combine`.
        """
        ...

    def velocity(
        self, latents: Float[Array, "B N C"], t: Float[Array, " B"], condition: Condition
    ) -> Float[Array, "B N C"]:
        """Computes dx/dt in fp32, zero at padding; condition: of one branch a row, [B, ...]."""
        ...

    def encode(self, pixels: Float[Array, "B H W 3"], keys: Array | None = None) -> Float[Array, "B N C"]:
        """Encodes images in [-1, 1], without padding: the posterior's mean, or with a PRNG key an image a sample."""
        ...

    def decode(self, latents: Float[Array, "B N C"], height: int, width: int) -> Float[Array, "B height width 3"]:
        """Makes pixels, about [-1, 1] (not clipped), of latents whose first tokens are an image of that size."""
        ...


def tokens(processor: Preparer, size: Size) -> int:
    """Counts the tokens of an image of that size in pixels."""
    return (size[0] // processor.multiple) * (size[1] // processor.multiple)


def smaller(size: Size, pixels: int, multiple: int) -> Size:
    """Shrinks a size to at most that many pixels, on the grid of `multiple`, its aspect kept as well as that allows; 0:
    no limit."""
    if not pixels or size[0] * size[1] <= pixels:
        return size
    scale = math.sqrt(pixels / (size[0] * size[1]))
    height, width = (max(int(side * scale) // multiple * multiple, multiple) for side in size)
    return height, width


def check_text(length: int, allowed: int, where: str) -> None:
    """Refuses text that is too long: the one rule of sampling, training and RL. Raises EditError."""
    if length > allowed:
        raise EditError(where, "text too long", f"{length} tokens of text are more than {allowed}")
