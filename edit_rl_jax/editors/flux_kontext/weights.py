"""FLUX.1-Kontext's released folder (diffusers') and LoRA files, in and out; the transformer and the autoencoder also
from the files of Black Forest Labs that lie beside it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.editor import Configs, FluxKontext
from edit_rl_jax.editors.flux_kontext.processor import Tokenizers
from edit_rl_jax.editors.folders import STEM, TEXT, EditorFolder
from edit_rl_jax.editors.mmdit import bfl
from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.editors.mmdit.blocks import TARGETS
from edit_rl_jax.editors.text import clip, t5
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.nn.model_files import checked, read_json
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.weights import Naming
from edit_rl_jax.vlm.tokenizer import load_tokenizer

__all__ = ["TEXT", "configs", "from_folder", "load", "local_folder", "read_lora", "save", "save_lora"]

TRANSFORMER = Naming(mmdit.name, stacked=mmdit.STACKED, stem=STEM, convert=bfl.transformer)
_CLASSES = {
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "text_encoder_2": ["transformers", "T5EncoderModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "tokenizer_2": ["transformers", "T5TokenizerFast"],
    "transformer": ["diffusers", "FluxTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
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


def folder_tokenizer(folder: Path) -> Tokenizers:
    """Loads the tokenizers of a released folder."""
    return Tokenizers(load_tokenizer(folder / "tokenizer"), load_tokenizer(folder / "tokenizer_2"))


def schedule(folder: Path, steps: int, released: Mapping[str, Any] = SCHEDULER) -> Schedule:
    """The schedule that a folder asks for, at that many steps; what it does not say is as released."""
    file = folder / "scheduler" / "scheduler_config.json"
    stored = {**released} | (read_json(file) if file.exists() else {})
    number = lambda key, kind: checked(stored[key], kind, f"{file}: {key}", 0, 2**20)
    terminal = checked(stored.get("shift_terminal") or 0.0, "float", f"{file}: shift_terminal", 0, 0.999)
    if not checked(stored["use_dynamic_shifting"], "bool", f"{file}: use_dynamic_shifting"):
        return Schedule(steps, "static", shift=number("shift", "float"), terminal=terminal)
    base = {k: stored[k] for k in ("base_shift", "base_image_seq_len", "time_shift_type") if k in stored}
    if not base.items() <= {**SCHEDULER, "time_shift_type": "exponential"}.items():
        raise WeightsError(f"{file}: not implemented: {base}")
    top = {"max_shift": number("max_shift", "float"), "max_tokens": number("max_image_seq_len", "int")}
    return Schedule(steps, "exponential", terminal=terminal, **top)


def targets(modules: Iterable[str]) -> str:
    """The narrowest of `mmdit.blocks.TARGETS` in which the modules of an adapter lie."""
    kinds = (r"_blocks\.\d+\.attn\.", r"_blocks\.\d+\.(ff|ff_context|proj_mlp|img_mlp|txt_mlp)\b", "")
    return TARGETS[max((next(i for i, k in enumerate(kinds) if re.search(k, m)) for m in modules), default=0)]


FOLDER = EditorFolder(
    FluxKontext,
    Configs,
    networks={
        "text_encoder": (clip.CLIPConfig, clip.NAMING),
        "text_encoder_2": (t5.T5Config, t5.NAMING),
        "transformer": (FluxConfig, TRANSFORMER),
        "vae": (flux_vae.VAEConfig, dataclasses.replace(flux_vae.NAMING, convert=bfl.autoencoder)),
    },
    classes=_CLASSES,
    pipeline="FluxKontextPipeline",
    scheduler=SCHEDULER,
    targets=targets,
    text=(512, 512),
    single={"transformer": "flux1-*kontext*.safetensors", "vae": "ae.safetensors"},  # BFL's
    patterns=("*.json", "*/*.safetensors", "*.txt", "*.model"),  # weights once: in diffusers' folders
    encoders=("text_encoder", "text_encoder_2"),
    tokenizers=("tokenizer", "tokenizer_2"),
    unshifted={"use_dynamic_shifting": False, "shift": 1.0},
)
local_folder, configs, load, from_folder = FOLDER.local_folder, FOLDER.configs, FOLDER.load, FOLDER.from_folder
save, read_lora, save_lora = FOLDER.save, FOLDER.read_lora, FOLDER.save_lora
