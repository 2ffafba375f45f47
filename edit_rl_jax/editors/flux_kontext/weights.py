"""FLUX.1-Kontext's released folder (diffusers') and LoRA files, in and out; the transformer and the autoencoder also
from the files of Black Forest Labs that lie beside it."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.editor import Configs, FluxKontext
from edit_rl_jax.editors.flux_kontext.processor import Tokenizers
from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.editors.mmdit.blocks import TARGETS
from edit_rl_jax.editors.text import clip, t5
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.model_files import checked, read_json, stored_metadata, verify
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.weights import Naming
from edit_rl_jax.vlm.tokenizer import load_tokenizer

STEM = "diffusion_pytorch_model"
TRANSFORMER = Naming(mmdit.name, stacked=mmdit.STACKED, stem=STEM, convert=bfl.transformer)
NAMINGS = {
    "text_encoder": clip.NAMING,
    "text_encoder_2": t5.NAMING,
    "transformer": TRANSFORMER,
    "vae": dataclasses.replace(flux_vae.NAMING, convert=bfl.autoencoder),
}
_CONFIGS = {
    "text_encoder": clip.CLIPConfig,
    "text_encoder_2": t5.T5Config,
    "transformer": FluxConfig,
    "vae": flux_vae.VAEConfig,
}
_CLASSES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
_SINGLE = {"transformer": "flux1-*kontext*.safetensors", "vae": "ae.safetensors"}  # BFL's, at the folder's top
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "use_dynamic_shifting": True,
    "shift": 3.0,
    "base_shift": 0.5,
    "max_shift": 1.15,
    "base_image_seq_len": 256,
    "max_image_seq_len": 4096,
}
TEXT = "text_tokens"
"""Entry of an export's `edit_rl.json`: see `Processor.text`."""
read_lora, save_lora = partial(lora_files.read, naming=TRANSFORMER), partial(lora_files.save, naming=TRANSFORMER)


def local_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or the snapshot of a hub id: weights (in diffusers' folders, once), configs and
    tokenizer files, no code."""
    return weights.local_folder(path_or_hub_id, revision, ("*.json", "*/*.safetensors", "*.txt", "*.model"))


def configs(folder: Path, text: int = 512) -> Configs:
    """The configurations of a released folder; of networks that lie there as BFL's files alone, the released ones."""
    single = [part for part in _SINGLE if not (folder / part / "config.json").exists() and _single(folder, part)]
    found = {part: cls() if part in single else cls.from_hf(folder / part) for part, cls in _CONFIGS.items()}
    try:
        return Configs(**found, text=text)
    except ValueError as e:
        raise WeightsError(f"{folder}/*/config.json do not fit together: {e}") from None


def _single(folder: Path, part: str) -> Path | None:
    """BFL's file of a network, where there is one. Raises WeightsError where there are several."""
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


def folder_tokenizer(folder: Path) -> Tokenizers:
    """Loads the tokenizers of a released folder."""
    return Tokenizers(load_tokenizer(folder / "tokenizer"), load_tokenizer(folder / "tokenizer_2"))


def schedule(folder: Path, steps: int) -> Schedule:
    """The schedule that a released folder asks for, at that many steps."""
    file = folder / "scheduler" / "scheduler_config.json"
    stored = SCHEDULER | (read_json(file) if file.exists() else {})
    number = lambda key, kind: checked(stored[key], kind, f"{file}: {key}", 0, 2**20)
    if not checked(stored["use_dynamic_shifting"], "bool", f"{file}: use_dynamic_shifting"):
        return Schedule(steps, "static", shift=number("shift", "float"))
    base = {
        k: stored[k] for k in ("base_shift", "base_image_seq_len", "time_shift_type", "shift_terminal") if k in stored
    }
    if not base.items() <= {**SCHEDULER, "time_shift_type": "exponential", "shift_terminal": None}.items():
        raise WeightsError(f"{file}: not implemented: {base}")
    top = {"max_shift": number("max_shift", "float"), "max_tokens": number("max_image_seq_len", "int")}
    return Schedule(steps, "exponential", **top)


def load(folder: Path, abstract, shardings=None):
    """Loads every base weight of a `FluxKontext` from its folder.

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
) -> FluxKontext:
    """An editor with its weights, on one device or sharded over a mesh; `options` are FluxKontext's.

    lora, alpha: a LoRA of the transformer and its alpha, see `lora_files.read`; without one there is no adapter. The
    text's length is the one that the adapter, or else the folder, was trained with.
    """
    folder = local_folder(path_or_hub_id, revision)
    for home in (folder, lora):
        if home is not None:
            verify(home)
    stored = stored_metadata(lora if lora is not None and Path(lora).is_dir() else folder)
    cfg = configs(folder, checked(stored.get(TEXT, 512), "int", f"{lora or folder}: {TEXT}", 1, 512))
    adapter = None if lora is None else read_lora(lora, alpha)
    if adapter is not None:
        options["lora"] = LoRAConfig(rank=adapter.rank, alpha=adapter.alpha)
        options["targets"] = targets(adapter.layers)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: FluxKontext(cfg, rngs=nnx.Rngs(0), **options)))
    places = None if mesh is None else sharding.shardings(state, mesh)
    state = load(folder, state, places)
    if adapter is not None:
        place = None if places is None else places["transformer"]
        state["transformer"] = lora_files.load(lora, state["transformer"], adapter, place)
    return nnx.merge(graphdef, state)


def targets(modules: Iterable[str]) -> str:
    """The narrowest of `mmdit.blocks.TARGETS` in which the modules of an adapter lie."""
    kinds = (r"_blocks\.\d+\.attn\.", r"_blocks\.\d+\.(ff|ff_context|proj_mlp)\b", "")
    return TARGETS[max((next(i for i, k in enumerate(kinds) if re.search(k, m)) for m in modules), default=0)]


def save(
    state,
    cfg: Configs,
    folder: str | Path,
    *,
    files_from: str | Path | None = None,
    parts: Sequence[str] | None = None,
    dtype: Any = None,
) -> Path:
    """Writes a folder in the released layout; every process must call, the first one writes.

    state: base weights of the editor (`peft.merge` adapters first). files_from: a released folder that gives everything
    else. parts: networks written from `state`; by default only the transformer where there is `files_from`, else all.
    """
    folder, source = Path(folder), None if files_from is None else Path(files_from)
    parts = parts or (tuple(_CONFIGS) if source is None else ("transformer",))
    for part in parts:
        weights.save(state[part], getattr(cfg, part).to_hf(), folder / part, NAMINGS[part], dtype=dtype)
    if jax.process_index():
        return folder
    for part in _CLASSES:
        if source is not None and part not in parts and (source / part).is_dir():
            shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
    (folder / "scheduler").mkdir(parents=True, exist_ok=True)
    files = {"model_index.json": {"_class_name": "FluxKontextPipeline", **_CLASSES}}
    files["scheduler/scheduler_config.json"] = SCHEDULER
    for name, content in files.items():
        if source is not None and (source / name).exists():
            shutil.copyfile(source / name, folder / name)
        else:
            (folder / name).write_text(json.dumps(content, indent=2) + "\n")
    return folder
