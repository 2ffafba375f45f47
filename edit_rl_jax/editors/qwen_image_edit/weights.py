"""Qwen-Image-Edit's released folder (diffusers') and LoRA files, in and out. The language model is read and written
without its head; the autoencoder's file is taken along as it is."""

from __future__ import annotations

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from edit_rl_jax.editors.flux_kontext import weights as flux
from edit_rl_jax.editors.flux_kontext.weights import targets
from edit_rl_jax.editors.folders import EditorFolder
from edit_rl_jax.editors.qwen_image_edit import prompt
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.editor import Configs, QwenImageEdit
from edit_rl_jax.editors.qwen_image_edit.transformer import TRANSFORMER
from edit_rl_jax.editors.vae import qwen_vae
from edit_rl_jax.nn.model_files import checked, read_config
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.qwen2_5_vl import weights as qwen
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

__all__ = ["configs", "folder_tokenizer", "from_folder", "load", "local_folder", "read_lora", "save", "save_lora"]
__all__ += ["schedule", "targets"]

PIPELINES = {"QwenImageEditPipeline": False, "QwenImageEditPlusPipeline": True}
"""Classes that a folder's model_index.json names -> `plus`."""
SCHEDULER = flux.SCHEDULER | {
    "shift": 1.0,
    "max_shift": 0.9,
    "max_image_seq_len": 8192,
    "shift_terminal": 0.02,
    "time_shift_type": "exponential",
}
_CLASSES = {
    "processor": ["transformers", "Qwen2VLProcessor"],
    "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"],
    "text_encoder": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "tokenizer": ["transformers", "Qwen2Tokenizer"],
    "transformer": ["diffusers", "QwenImageTransformer2DModel"],
    "vae": ["diffusers", "AutoencoderKLQwenImage"],
}
schedule = partial(flux.schedule, released=SCHEDULER)


def is_plus(source: Any) -> bool:
    """Whether a folder, or the content of its model_index.json, is that of 2509 or 2511. Raises WeightsError."""
    index, where = read_config(source, "model_index.json")
    name = checked(index.get("_class_name"), "str", f"{where}: _class_name")
    if name not in PIPELINES:
        raise WeightsError(f"{where}: _class_name is {name}, not one of {', '.join(PIPELINES)}")
    return PIPELINES[name]


def folder_tokenizer(folder: Path) -> prompt.Tokenizer:
    """Loads the tokenizer of a released folder, with the template of its version."""
    return prompt.folder_tokenizer(folder, is_plus(folder))


class QwenFolder(EditorFolder):
    """The folder, whose model_index.json says which version it is."""

    def beside(self, source: Any) -> dict[str, Any]:
        found: dict[str, Any] = {"plus": is_plus(source)}
        file = Path(source) / "processor" / "preprocessor_config.json" if isinstance(source, Path) else None
        if file is not None and file.exists():
            default = {k: getattr(Configs().images, k) for k in ("min_pixels", "max_pixels")}
            given, _ = read_config(file)
            said = any(given.get(k) for k in ("min_pixels", "max_pixels", "size"))
            found["images"] = ImageSettings.from_hf(given, **({} if said else default))
        return found

    def pipeline_of(self, cfg: Configs) -> str:
        return next(name for name, plus in PIPELINES.items() if plus == cfg.plus)


FOLDER = QwenFolder(
    QwenImageEdit,
    Configs,
    networks={
        "text_encoder": (Config, dataclasses.replace(qwen.NAMING, optional=rf"lm_head\.|{qwen.BUFFERS}", tied=())),
        "transformer": (QwenImageConfig, TRANSFORMER),
        "vae": (qwen_vae.VAEConfig, qwen_vae.NAMING),
    },
    classes=_CLASSES,
    pipeline="QwenImageEditPipeline",
    scheduler=SCHEDULER,
    targets=targets,
    files=tuple(prompt.SOURCES.values()),
)
local_folder, configs, load, from_folder = FOLDER.local_folder, FOLDER.configs, FOLDER.load, FOLDER.from_folder
save, read_lora, save_lora = FOLDER.save, FOLDER.read_lora, FOLDER.save_lora
