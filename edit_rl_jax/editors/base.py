"""What every image editor is, small enough that FLUX.1-Kontext, Qwen-Image-Edit and Step1X-Edit fit unchanged.

Time runs from t = 0 (noise) to t = 1 (data): x_t = t x_1 + (1 - t) x_0, and the velocity is dx/dt = x_1 - x_0; an
editor whose network counts otherwise converts inside. Latents are token sequences [B, N, C] in fp32 (one row of C
numbers a patch of the latent image), of a fixed length N a bucket: short ones are padded, and `condition` says where.
Guidance and schedule belong to the sampler: it asks for velocities under several conditions and knows nothing of the
network. A condition is a flat dict of arrays with a leading batch axis, so branches of guidance are rows of one
batch (`flow.guidance.stack`). Its index arrays come from the editor's `layout`, NumPy on the host.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from jaxtyping import Array, Float, Int

Condition = Mapping[str, Any]
"""Arrays with a leading batch axis: `noise_segments` [B, N] (0 = padding) in every editor and the other arrays of its
`layout`, `text` [B, T, F] features and, where the bucket has references, `references` [B, S, C] latents."""

Size = tuple[int, int]
"""Rows and columns of an image in tokens: pixels / `multiple`."""


@dataclasses.dataclass(frozen=True)
class Bucket:
    """Lengths, in tokens, that rows are padded to. `references` 0: no row has one."""

    text: int
    references: int
    noise: int


@runtime_checkable
class Editor(Protocol):
    """An NNX module; under jit it is split into (graphdef, trainable, frozen) and merged inside.

    multiple: pixels a token, of which images' sides are multiples. downscale: pixels a latent cell. channels: C,
    numbers a token.
    """

    multiple: int
    downscale: int
    channels: int

    def chat(self, instruction: str, system: str | None = None) -> str:
        """The text that is encoded for an instruction; system: other words than the editor's own before it."""
        ...

    def layout(
        self, text_lengths: Sequence[int], references: Sequence[Sequence[Size]], sizes: Sequence[Size], bucket: Bucket
    ) -> Mapping[str, np.ndarray]:
        """Index arrays [B, ...] of rows with that many text tokens, references of those sizes and an output of that
        size. On the host; ValueError names a row that does not fit."""
        ...

    def encode_text(self, tokens: Int[Array, "B T"], segments: Int[Array, "B T"]) -> Float[Array, "B T F"]:
        """Text features of padded token rows (segments: 1 = text, 0 = padding); differentiable by the text tower."""
        ...

    def encode_images(self, pixels: Float[Array, "B H W 3"], keys: Array | None = None) -> Float[Array, "B N C"]:
        """Latents of images in [-1, 1], without padding: the posterior's mean, or with a PRNG key an image a sample."""
        ...

    def velocity(
        self, latents: Float[Array, "B N C"], t: Float[Array, B], condition: Condition
    ) -> Float[Array, "B N C"]:
        """dx/dt in fp32, zero at padding."""
        ...

    def decode(self, latents: Float[Array, "B N C"], height: int, width: int) -> Float[Array, "B height width 3"]:
        """Pixels, about [-1, 1] (not clipped), of latents whose first tokens are an image of that size in pixels."""
        ...
