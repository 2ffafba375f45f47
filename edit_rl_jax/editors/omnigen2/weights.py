"""OmniGen2's released folder (`mllm`, `processor`, `transformer`, `vae`, `scheduler`) and LoRA files, in and out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.folders import STEM, EditorFolder
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs, OmniGen2
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.nn.model_files import checked, read_json
from edit_rl_jax.nn.weights import Naming
from edit_rl_jax.vlm.qwen2_5_vl import weights as qwen
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.tokenizer import Tokenizer, load_tokenizer

STACKED = ("noise_refiner", "ref_image_refiner", "context_refiner", "layers")


def name(path: Sequence[str]) -> str:
    """The checkpoint's name of a leaf of the transformer, `{}` standing for the layer."""
    *modules, leaf = path
    names = [n for m in modules for n in ([m, "{}"] if m in STACKED else [m])]
    if not modules:  # image_index_embedding
        return leaf
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


TRANSFORMER = Naming(name, stacked=STACKED, stem=STEM)
_CLASSES = {
    "mllm": ["transformers", "Qwen2_5_VLForConditionalGeneration"],
    "processor": ["transformers", "Qwen2_5_VLProcessor"],
    "scheduler": ["scheduling_flow_match_euler_discrete", "FlowMatchEulerDiscreteScheduler"],
    "transformer": ["transformer_omnigen2", "OmniGen2Transformer2DModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}
SCHEDULER = {
    "_class_name": "FlowMatchEulerDiscreteScheduler",
    "num_train_timesteps": 1000,
    "dynamic_time_shift": True,
    "time_shift_base_res": 320,
}


def folder_tokenizer(folder: Path) -> Tokenizer:
    """Loads the tokenizer of a released folder."""
    return load_tokenizer(folder / "processor")


def schedule(folder: Path, steps: int) -> Schedule:
    """The schedule that a released folder asks for, at that many steps."""
    file = folder / "scheduler" / "scheduler_config.json"
    stored = SCHEDULER | (read_json(file) if file.exists() else {})
    dynamic = checked(stored["dynamic_time_shift"], "bool", f"{file}: dynamic_time_shift")
    base = checked(stored["time_shift_base_res"], "int", f"{file}: time_shift_base_res", 1, 2**16)
    return Schedule(steps, "dynamic" if dynamic else "linear", base_res=base)


class OmniGen2Folder(EditorFolder):
    """The folder, whose language model may have no vision tower, and whose editor is padded to a mesh."""

    def naming(self, part: str, state: Any) -> Naming:
        """As `EditorFolder`, of a language model alone too."""
        return qwen.TEXT_NAMING if part == "mllm" and "visual" not in state else super().naming(part, state)

    def on_mesh(self, mesh: Mesh) -> dict[str, Any]:
        """Pads heads and hidden size to what the mesh divides."""
        return {"tensor_parallel": mesh.shape.get("tensor", 1), "hidden_multiple": mesh.shape.get("fsdp", 1)}


FOLDER = OmniGen2Folder(
    OmniGen2,
    Configs,
    networks={
        "mllm": (Config, qwen.NAMING),
        "transformer": (OmniGen2Config, TRANSFORMER),
        "vae": (flux_vae.VAEConfig, flux_vae.NAMING),
    },
    classes=_CLASSES,
    pipeline="OmniGen2Pipeline",
    scheduler=SCHEDULER,
    encoders=("mllm",),
    tokenizers=("processor",),
    unshifted={"dynamic_time_shift": False},
)
local_folder, configs, load, from_folder = FOLDER.local_folder, FOLDER.configs, FOLDER.load, FOLDER.from_folder
save, read_lora, save_lora = FOLDER.save, FOLDER.read_lora, FOLDER.save_lora
load_lora, LORA_FILE, PARTS = lora_files.load, lora_files.FILE, tuple(FOLDER.networks)
