"""LoRA files of an editor's transformer, in and out: PEFT's folders, and the one file of diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import jax
import safetensors.numpy

from edit_rl_jax import json_files
from edit_rl_jax.nn import peft, peft_config
from edit_rl_jax.nn.model_files import checked
from edit_rl_jax.nn.safetensors_io import WeightsError, read_file
from edit_rl_jax.nn.weights import Naming

FILE, METADATA = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"  # diffusers' names
# its tensors', as peft.TENSOR: as a pipeline saves them, as a model does, or as PEFT does
DIFFUSERS = r"(?:transformer\.|(?:base_model\.model\.)+)?(.+)\.lora_([AB])(?:\.[^.]+)?\.weight"
_WHERE = ("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern")
"""Entries of the metadata that diffusers does not read: which modules are adapted, the tensors say."""


def read(path: str | Path, alpha: float | None = None, *, naming: Naming) -> peft.Adapter:
    """The description of a LoRA of the transformer: a PEFT folder, a diffusers file, or a folder with one.

    alpha: needed where the file does not say. Files exported by the reference do not: they were trained with alpha 64
    and are run there at alpha = rank, so the scale is 2 or 1 and the user must choose. Raises WeightsError for a file
    without alpha, one that contradicts `alpha`, or options that are not plain LoRA.
    """
    path = Path(path)
    if (path / peft.CONFIG).exists():
        adapter = peft.read_adapter(path, naming)
    else:
        file = path / FILE if path.is_dir() else path
        adapter = peft.describe(_config(file, alpha, naming), file, DIFFUSERS, naming)
    if alpha is not None and not adapter.uniform:
        raise WeightsError(f"{path}: its layers differ in rank or alpha, so alpha {alpha} is not theirs")
    if alpha is not None and adapter.alpha != alpha:
        raise WeightsError(f"{path}: alpha is {adapter.alpha} in the file, not {alpha}")
    return adapter


def _config(file: Path, alpha: float | None, naming: Naming) -> dict[str, Any]:
    """The adapter_config.json that a diffusers file stands for: its metadata, for exactly the modules that it holds."""
    tensors, metadata = read_file(file)
    found = {m[1]: t.shape[0] for t in tensors.values() if (m := re.fullmatch(DIFFUSERS, t.name)) and m[2] == "A"}
    if not found:
        raise WeightsError(f"{file}: no tensor named *.lora_A.weight")
    try:
        stored = json_files.loads(metadata.get(METADATA, "{}"), f"{file}: {METADATA}")
    except json_files.JSONError as e:
        raise WeightsError(str(e)) from None
    if not isinstance(stored, dict):
        raise WeightsError(f"{file}: {METADATA} is no object")
    stored = {key.removeprefix("transformer."): v for key, v in stored.items() if v is not None}
    stored = {k: v for k, v in stored.items() if k not in _WHERE}
    checked(stored.get("lora_alpha"), "float | None", f"{file}: lora_alpha", 1e-9, 1e9)
    ranks = sorted(set(found.values()))
    if "r" not in stored and len(ranks) > 1:
        raise WeightsError(f"{file}: ranks {ranks} differ, and it does not say their alphas")
    if "lora_alpha" not in stored and alpha is None:
        raise WeightsError(f"{file}: does not say its alpha (rank {', '.join(map(str, ranks))}): give it")
    modules = sorted(naming.canonical(m + ".")[:-1] for m in found)
    config = {"peft_type": "LORA", "bias": "none", "r": ranks[0], "lora_alpha": alpha, **stored}
    config["target_modules"] = "|".join(map(re.escape, modules))  # a list would reach all modules that end so
    peft_config.check(config, file)
    return config


def load(path: str | Path, abstract, adapter: peft.Adapter, shardings=None):
    """Reads a LoRA into the LoRA leaves of a state of the transformer: see `nn.peft.fill`. adapter: of `read`."""
    path = Path(path)
    if (path / peft.CONFIG).exists():
        return peft.fill(path / peft.FILE, peft.TENSOR, abstract, adapter, shardings)
    file = path / FILE if path.is_dir() else path
    return peft.fill(file, DIFFUSERS, abstract, adapter, shardings)


def save(state, rank: int, alpha: float, folder: str | Path, base: str | None = None, *, naming: Naming) -> Path:
    """Writes the LoRA leaves of a state of the transformer for `diffusers` (`pytorch_lora_weights.safetensors`, alpha
    in its metadata) and for `peft` (an adapter folder), together. Every process must call."""
    adapter = peft.make_adapter(state, naming, rank, alpha, base)
    folder = peft.save(state, adapter, folder)
    named = peft.tensors(state, adapter, prefix="transformer.")
    modules = sorted({n.removeprefix("transformer.").rsplit(".lora_", 1)[0] for n in named})
    stored = {"r": rank, "lora_alpha": alpha, "target_modules": modules}
    text = json.dumps({f"transformer.{k}": v for k, v in stored.items()}, sort_keys=True)
    if jax.process_index() == 0:
        safetensors.numpy.save_file(named, folder / FILE, metadata={"format": "pt", METADATA: text})
    return folder
