"""Step1X-Edit's folder (that of its version for diffusers) and LoRA files, in and out; the transformer and the
autoencoder also from the files that upstream released first, beside it. Its head is not read of the language model."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.flux_kontext.weights import SCHEDULER, STEM, TEXT, schedule, targets
from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.editor import Configs, Step1XEdit
from edit_rl_jax.editors.step1x_edit.prompt import SOURCES, folder_tokenizer
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.model_files import checked, stored_metadata, verify
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError, open_folder
from edit_rl_jax.nn.weights import Naming
from edit_rl_jax.vlm.qwen2_5_vl import weights as qwen
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

__all__ = ["folder_tokenizer", "schedule", "targets"]  # as `editors.registry` finds them
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
NAMINGS = {
    "text_encoder": dataclasses.replace(qwen.NAMING, optional=rf"lm_head\.|{qwen.BUFFERS}", tied=()),
    "transformer": TRANSFORMER,
    "vae": dataclasses.replace(flux_vae.NAMING, convert=bfl.autoencoder),
}
_CONFIGS = {"text_encoder": Config, "transformer": Step1XConfig, "vae": flux_vae.VAEConfig}
_CLASSES = {
    "processor": ["transformers", "Qwen2_5_VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "transformer": ["diffusers", "Step1XEditTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SINGLE = {"transformer": "step1x-edit-*.safetensors", "vae": "vae.safetensors"}  # upstream's own, at the folder's top
read_lora, save_lora = partial(lora_files.read, naming=TRANSFORMER), partial(lora_files.save, naming=TRANSFORMER)


def local_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or the snapshot of a hub id: weights, configs and tokenizer files, no code."""
    return weights.local_folder(path_or_hub_id, revision, ("*.json", "*.safetensors", "*.txt", "*.jinja"))


def configs(folder: Path, text: int = 640) -> Configs:
    """The configurations of a folder; of networks that lie there as upstream's own files alone, the released ones: a
    transformer is v1.0's where its file has the connector's scale."""
    found = {}
    for part, cls in _CONFIGS.items():
        single = None if (folder / part / "config.json").exists() else _single(folder, part)
        found[part] = cls.from_hf(folder / part) if single is None else cls()
        if single is not None and part == "transformer":
            scaled = any(t.name.endswith("connector.scale_factor") for t in open_folder(folder, single.stem))
            found[part] = Step1XConfig(connector_scale_factor=scaled)
    try:
        return Configs(**found, text=text)
    except ValueError as e:
        raise WeightsError(f"{folder}/*/config.json do not fit together: {e}") from None


def _single(folder: Path, part: str) -> Path | None:
    """Upstream's own file of a network, where there is one. Raises WeightsError where there are several."""
    found = sorted(folder.glob(_SINGLE[part])) if part in _SINGLE else []
    if len(found) > 1:
        raise WeightsError(f"{folder}: several of {_SINGLE[part]}: {', '.join(f.name for f in found)}")
    return found[0] if found else None


def _source(folder: Path, part: str) -> tuple[Path, Naming]:
    """Where the weights of a network lie, and what they are called."""
    naming, single = NAMINGS[part], _single(folder, part)
    if single is None or any((folder / part).glob(f"{naming.stem}*.safetensors*")):
        return folder / part, naming
    return folder, dataclasses.replace(naming, stem=single.stem)


def load(folder: Path, abstract, shardings=None):
    """Loads every base weight of a `Step1XEdit` from its folder.

    abstract: state of the editor, or the Trainable or Frozen part of one: of each of its networks it must hold all base
    weights or none. LoRA leaves come back as they are. shardings and errors: as in `nn.weights.load`.
    """
    out = {}
    for part, state in abstract.items():
        if all(path[-1] in weights.LORA for path in weights.flatten(state)[0]):
            out[part] = state
            continue
        home, naming = _source(folder, part)
        out[part] = weights.load(home, state, naming, None if shardings is None else shardings[part])
    return nnx.State(out)


def from_folder(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    lora: str | Path | None = None,
    alpha: float | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> Step1XEdit:
    """An editor with its weights, on one device or sharded over a mesh; `options` are Step1XEdit's.

    lora, alpha: a LoRA of the transformer and its alpha, see `lora_files.read`; without one there is no adapter. The
    text's length is the one that the adapter, or else the folder, was trained with.
    """
    folder = local_folder(path_or_hub_id, revision)
    for home in (folder, lora):
        if home is not None:
            verify(home)
    stored = stored_metadata(lora if lora is not None and Path(lora).is_dir() else folder)
    cfg = configs(folder, checked(stored.get(TEXT, 640), "int", f"{lora or folder}: {TEXT}", 1, 2048))
    adapter = None if lora is None else read_lora(lora, alpha)
    if adapter is not None:
        options["lora"] = LoRAConfig(rank=adapter.rank, alpha=adapter.alpha)
        options["targets"] = targets(adapter.layers)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Step1XEdit(cfg, rngs=nnx.Rngs(0), **options)))
    places = None if mesh is None else sharding.shardings(state, mesh)
    state = load(folder, state, places)
    if adapter is not None:
        place = None if places is None else places["transformer"]
        state["transformer"] = lora_files.load(lora, state["transformer"], adapter, place)
    return nnx.merge(graphdef, state)


def save(
    state,
    cfg: Configs,
    folder: str | Path,
    *,
    files_from: str | Path | None = None,
    parts: Sequence[str] | None = None,
    dtype: Any = None,
) -> Path:
    """Writes a folder in the layout of upstream's version for diffusers; every process must call, the first one writes.

    state: base weights of the editor (`peft.merge` adapters first). files_from: a folder that gives everything else.
    parts: networks written from `state`; by default only the transformer where there is `files_from`, else all; the
    language model is written without its head.
    """
    folder, source = Path(folder), None if files_from is None else Path(files_from)
    parts = parts or (tuple(_CONFIGS) if source is None else ("transformer",))
    for part in parts:
        if part == "text_encoder":
            qwen.save(state[part], cfg.text_encoder, folder / part, dtype=dtype, naming=NAMINGS[part])
        else:
            weights.save(state[part], getattr(cfg, part).to_hf(), folder / part, NAMINGS[part], dtype=dtype)
    if jax.process_index():
        return folder
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    files = {"model_index.json": {"_class_name": "Step1XEditPipeline", **_CLASSES}}
    files["scheduler/scheduler_config.json"] = SCHEDULER
    for name, content in files.items():
        (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    if source is not None:
        for part in (p for p in _CLASSES if p not in parts and (source / p).is_dir()):
            shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
        single = [f.name for part in _SINGLE if part not in parts and (f := _single(source, part))]
        for name in (*files, *SOURCES, *single):
            if (source / name).is_file():
                (folder / name).parent.mkdir(exist_ok=True)
                shutil.copyfile(source / name, folder / name)
    return folder
