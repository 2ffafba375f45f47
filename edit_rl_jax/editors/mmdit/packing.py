"""Latent images as tokens of 2 x 2 cells, as released, their numbers in the order (channel, row, column)."""

from __future__ import annotations

from jaxtyping import Array, Float

PATCH = 2


def pack(image: Float[Array, "B h w c"], patch: int = PATCH) -> Float[Array, "B N C"]:
    """Makes tokens row by row; h and w are multiples of `patch`."""
    B, h, w, c = image.shape
    x = image.reshape(B, h // patch, patch, w // patch, patch, c).transpose(0, 1, 3, 5, 2, 4)
    return x.reshape(B, -1, c * patch**2)


def unpack(
    tokens: Float[Array, "B N C"], height: int, width: int, patch: int = PATCH
) -> Float[Array, "B height width c"]:
    """Makes images of height x width cells of the first tokens: the inverse of `pack`."""
    rows, columns = height // patch, width // patch
    x = tokens[:, : rows * columns].reshape(tokens.shape[0], rows, columns, -1, patch, patch)
    return x.transpose(0, 1, 4, 2, 5, 3).reshape(tokens.shape[0], height, width, -1)
