"""What the leaves of MMDiT networks are called in diffusers' checkpoints."""

from __future__ import annotations

from collections.abc import Sequence

STACKED = ("transformer_blocks", "single_transformer_blocks")
# attributes -> names; `modulation` is the owner's norm with the linear in it
RENAMED = {"to_out": "to_out.0", "up": "net.0.proj", "down": "net.2"}


def name(path: Sequence[str]) -> str:
    """The name of a leaf in FLUX's and Step1X-Edit's transformer, `{}` standing for the layer."""
    names = [RENAMED.get(m, m) for m in path[:-1]]
    names = [n for m in names for n in ([m, "{}"] if m in STACKED else [m])]
    text = ".".join([*names, "bias" if path[-1] == "bias" else "weight"])
    return text.replace("norm_out.modulation.", "norm_out.").replace("modulation.", "norm.")
