"""Chats of a VLM that sees the images, the branches of guidance one after another in a row. NumPy on the host."""

from collections.abc import Mapping, Sequence

import numpy as np

SHOWN = ("patches", "patch_segments", "window_segments", "patch_hw")
"""Arrays of the images, which every branch sees; of `vlm.rows`, as those below."""
TOKENS = ("tokens", "segments", "positions", "image_index")
"""Arrays of the chats, [B, (3,) branches * length]."""


def joined(branches: Sequence[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    """Makes one row of the branches' rows of one chat each: its samples in turn, and the images of the first."""
    numbered = [dict(one) | {"segments": one["segments"] * np.int32(e)} for e, one in enumerate(branches, 1)]
    chats = {k: np.concatenate([one[k] for one in numbered], axis=-1) for k in TOKENS}
    return chats | {k: branches[0][k] for k in SHOWN}
