"""Step1X-Edit's released folder and LoRA files, in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.nn.weights import Naming

STEM = "diffusion_pytorch_model"
STACKED = (*mmdit.STACKED, "blocks")  # the last: the connector's
# attributes of the connector -> names
RENAMED = {"modulation": "adaLN_modulation", "linear": "1", "fc1": "mlp.fc1", "fc2": "mlp.fc2", "blocks": "blocks.{}"}
_TIME = {"linear_1": "mlp.0", "linear_2": "mlp.2"}  # of the connector's t_embedder
_EMBEDDERS = {
    f"time_text_embed.{theirs}_embedder.linear_{i}.": f"{ours}_embed.{layer}_layer."
    for theirs, ours in (("timestep", "time"), ("text", "vec"))
    for i, layer in ((1, "in"), (2, "out"))
}  # FLUX's -> ours


def name(path: Sequence[str]) -> str:
    """The checkpoint's name of a leaf of the transformer in diffusers' style, `{}` standing for the layer."""
    *modules, leaf = path
    if modules[0] in ("time_embed", "vec_embed"):
        modules[1] = {"linear_1": "in_layer", "linear_2": "out_layer"}[modules[1]]
    if modules[0] != "connector":
        return mmdit.name((*modules, leaf))
    if leaf == "scale_factor":
        return ".".join(path)
    renamed = RENAMED | (_TIME if "t_embedder" in modules else {})
    return ".".join([*(renamed.get(m, m) for m in modules), "bias" if leaf == "bias" else "weight"])


def _ours(name: str) -> str:
    return next((ours + name.removeprefix(flux) for flux, ours in _EMBEDDERS.items() if name.startswith(flux)), name)


def _flux(path: Sequence[str]) -> str:
    found = name(path)
    back = {ours: flux for flux, ours in _EMBEDDERS.items()}
    return next((flux + found.removeprefix(ours) for ours, flux in back.items() if found.startswith(ours)), found)


TRANSFORMER = Naming(name, stacked=STACKED, canonical=_ours, stem=STEM, convert=bfl.transformer)
ORIGINAL = dataclasses.replace(TRANSFORMER, name=_flux)
"""For `bfl.save_transformer`: the layout of v1.0's and v1.1's own files."""
