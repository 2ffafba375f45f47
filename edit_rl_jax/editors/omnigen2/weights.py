"""OmniGen2's released folder (`mllm`, `processor`, `transformer`, `vae`, `scheduler`) and LoRA files, in and out."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs, OmniGen2
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.model_files import checked, read_json, verify
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError
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


TRANSFORMER = Naming(name, stacked=STACKED, stem="diffusion_pytorch_model")
read_lora, save_lora = partial(lora_files.read, naming=TRANSFORMER), partial(lora_files.save, naming=TRANSFORMER)
load_lora, LORA_FILE = lora_files.load, lora_files.FILE
PARTS = ("mllm", "transformer", "vae")
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


def local_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or the snapshot of a hub id: weights, configs and tokenizer files, no code."""
    return weights.local_folder(path_or_hub_id, revision, ("*.json", "*.safetensors", "*.txt", "*.jinja"))


def configs(folder: Path) -> Configs:
    """The configurations of a released folder."""
    read = {"mllm": Config, "transformer": OmniGen2Config, "vae": flux_vae.VAEConfig}
    found = {part: cls.from_hf(folder / part) for part, cls in read.items()}
    try:
        return Configs(**found)
    except ValueError as e:
        raise WeightsError(f"{folder}/*/config.json do not fit together: {e}") from None


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


def _naming(part: str, state) -> Naming:
    if part == "mllm":
        return qwen.NAMING if "visual" in state else qwen.TEXT_NAMING
    return TRANSFORMER if part == "transformer" else flux_vae.NAMING


def _has_base(state) -> bool:
    return any(path[-1] not in weights.LORA for path in weights.flatten(state)[0])


def load(folder: Path, abstract, shardings=None):
    """Loads every base weight of an `OmniGen2` from its folder.

    abstract: state of the editor, or the Trainable or Frozen part of one: of each of its three networks it must hold
    all base weights or none. LoRA leaves come back as they are. shardings and errors: as in `nn.weights.load`.
    """
    out = {}
    for part, state in abstract.items():
        if not _has_base(state):
            out[part] = state
            continue
        places = None if shardings is None else shardings[part]
        out[part] = weights.load(folder / part, state, _naming(part, state), places)
    return nnx.State(out)


def from_folder(
    path_or_hub_id: str | Path,
    *,
    revision: str | None = None,
    lora: str | Path | None = None,
    alpha: float | None = None,
    mesh: Mesh | None = None,
    **options: Any,
) -> OmniGen2:
    """An editor with its weights, on one device or sharded over a mesh; `options` are OmniGen2's.

    lora, alpha: a LoRA of the transformer and its alpha, see `lora_files.read`; without one the editor has no adapter.
    On a mesh, heads and hidden size are padded to what it divides, unless `options` say otherwise.
    """
    folder = local_folder(path_or_hub_id, revision)
    for home in (folder, lora):
        if home is not None:
            verify(home)
    cfg = configs(folder)
    adapter = None if lora is None else read_lora(lora, alpha)
    if adapter is not None:
        options["lora"] = LoRAConfig(rank=adapter.rank, alpha=adapter.alpha)
    if mesh is not None:
        sizes = {"tensor_parallel": mesh.shape.get("tensor", 1), "hidden_multiple": mesh.shape.get("fsdp", 1)}
        options = sizes | options
    graphdef, state = nnx.split(nnx.eval_shape(lambda: OmniGen2(cfg, rngs=nnx.Rngs(0), **options)))
    places = None if mesh is None else sharding.shardings(state, mesh)
    state = load(folder, state, places)
    if adapter is not None:
        place = None if places is None else places["transformer"]
        state["transformer"] = load_lora(lora, state["transformer"], adapter, place)
    return nnx.merge(graphdef, state)


def save(
    state,
    cfg: Configs,
    folder: str | Path,
    *,
    files_from: str | Path | None = None,
    parts: Sequence[str] | None = None,
    dtype: Any = None,
    scheduler: Mapping[str, Any] | None = None,
) -> Path:
    """Writes a folder in the released layout; every process must call, the first one writes.

    state: base weights of the editor (`peft.merge` adapters first). files_from: a released folder that gives everything
    else. parts: networks written from `state`; by default only the transformer where there is `files_from`, else all. A
    language model without its vision tower is written without it. scheduler: what differs from `SCHEDULER`.
    """
    folder, lead = Path(folder), jax.process_index() == 0
    source = None if files_from is None else Path(files_from)
    parts = parts or (PARTS if source is None else ("transformer",))
    state = {part: state[part] for part in parts}
    for part, network in state.items():
        if part == "mllm":
            qwen.save(network, cfg.mllm, folder / part, dtype=dtype)
        else:
            weights.save(network, getattr(cfg, part).to_hf(), folder / part, _naming(part, network), dtype=dtype)
    if not lead:
        return folder
    for part in _CLASSES:
        if source is not None and part not in state and (source / part).is_dir():
            shutil.copytree(source / part, folder / part, dirs_exist_ok=True)
    index = folder / "model_index.json"
    if source is not None and (source / index.name).exists():
        shutil.copyfile(source / index.name, index)
    else:
        index.write_text(json.dumps({"_class_name": "OmniGen2Pipeline", **_CLASSES}, indent=2) + "\n")
    if not (folder / "scheduler").is_dir():
        (folder / "scheduler").mkdir(parents=True)
        (folder / "scheduler" / "scheduler_config.json").write_text(
            json.dumps({**SCHEDULER, **(scheduler or {})}, indent=2) + "\n"
        )
    return folder
