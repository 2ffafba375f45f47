"""Where everything stands in Qwen-Image-Edit's sequence: segments and rotary positions of rows. NumPy on the host.

As FLUX.1-Kontext's (`flux_kontext.layout`), but rows and columns are counted from each image's centre, and text token j
stands at (p, p, p), p being j after half the longest side of the row's images.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext.layout import Layout, Size
from edit_rl_jax.editors.flux_kontext.layout import layout as from_corner


def layout(
    text_lengths: Sequence[int], references: Sequence[Sequence[Size]], sizes: Sequence[Size], lengths: TokenLengths
) -> Layout:
    """Index arrays of rows; arguments and errors as FLUX.1-Kontext's."""
    out = from_corner(text_lengths, references, sizes, lengths)
    for b, (length, images, size) in enumerate(zip(text_lengths, references, sizes)):
        centre = lambda image: np.array([0, image[0] - image[0] // 2, image[1] - image[1] // 2], np.int32)
        out["noise_positions"][b, : size[0] * size[1]] -= centre(size)
        for k, image in enumerate(images, 1):
            out["reference_positions"][b, out["reference_segments"][b] == k] -= centre(image)
        first = max(side // 2 for image in (size, *images) for side in image)
        out["text_positions"][b, :length] = first + np.arange(length)[:, None]
    return out
