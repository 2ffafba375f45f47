"""Step1X-Edit's folder (that of its version for diffusers) and LoRA files, in and out; the transformer and the
autoencoder also from the files that upstream released first, beside it. The language model is read and written without
its head."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax.editors.flux_kontext.weights import SCHEDULER, schedule, targets
from edit_rl_jax.editors.folders import STEM, TEXT, EditorFolder
from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.editor import Configs, Step1XEdit
from edit_rl_jax.editors.step1x_edit.prompt import SOURCES, folder_tokenizer
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.nn.safetensors_io import open_folder
from edit_rl_jax.nn.weights import Naming
from edit_rl_jax.vlm.qwen2_5_vl import weights as qwen
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

__all__ = ["TEXT", "configs", "folder_tokenizer", "from_folder", "load", "local_folder", "read_lora", "save"]
__all__ += ["save_lora", "schedule", "targets"]

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
_CLASSES = {
    "processor": ["transformers", "Qwen2_5_VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "transformer": ["diffusers", "Step1XEditTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


class Step1XFolder(EditorFolder):
    """The folder, whose transformer may lie there in v1.0's or v1.1's own file alone."""

    def of_single(self, part: str, file: Path) -> Any:
        """As `EditorFolder`; a transformer is v1.0's where its file has the connector's scale."""
        if part != "transformer":
            return super().of_single(part, file)
        scaled = any(t.name.endswith("connector.scale_factor") for t in open_folder(file.parent, file.stem))
        return Step1XConfig(connector_scale_factor=scaled)


FOLDER = Step1XFolder(
    Step1XEdit,
    Configs,
    networks={
        "text_encoder": (Config, dataclasses.replace(qwen.NAMING, optional=rf"lm_head\.|{qwen.BUFFERS}", tied=())),
        "transformer": (Step1XConfig, TRANSFORMER),
        "vae": (flux_vae.VAEConfig, dataclasses.replace(flux_vae.NAMING, convert=bfl.autoencoder)),
    },
    classes=_CLASSES,
    pipeline="Step1XEditPipeline",
    scheduler=SCHEDULER,
    targets=targets,
    text=(640, 2048),
    single={"transformer": "step1x-edit-*.safetensors", "vae": "vae.safetensors"},  # upstream's own
    files=SOURCES,
)
local_folder, configs, load, from_folder = FOLDER.local_folder, FOLDER.configs, FOLDER.load, FOLDER.from_folder
save, read_lora, save_lora = FOLDER.save, FOLDER.read_lora, FOLDER.save_lora
