"""Where everything stands in Step1X-Edit's sequence. NumPy on the host.

As in FLUX.1-Kontext but for the reference, of which there is one: in v1.0 it stands where the result does, at (0, row,
column), in v1.1 at (1, row + 1, column + 1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext import layout as flux
from edit_rl_jax.editors.flux_kontext.layout import Layout, Size
from edit_rl_jax.editors.step1x_edit.config import V1_0

__all__ = ["Layout", "Size", "layout"]
_SHIFT = {True: (-1, 0, 0), False: (0, 1, 1)}


def layout(
    text_lengths: Sequence[int],
    references: Sequence[Sequence[Size]],
    sizes: Sequence[Size],
    lengths: TokenLengths,
    version: str,
) -> Layout:
    """As `flux_kontext.layout.layout`. Raises ValueError naming a row of several references, too."""
    if several := [b for b, images in enumerate(references) if len(images) > 1]:
        raise ValueError(f"row {several[0]}: {len(references[several[0]])} references, Step1X-Edit takes one")
    found = flux.layout(text_lengths, references, sizes, lengths)
    real = found["reference_segments"][..., None] > 0
    moved = found["reference_positions"] + np.array(_SHIFT[version == V1_0], np.int32)
    found["reference_positions"] = np.where(real, moved, 0).astype(np.int32)
    return found
