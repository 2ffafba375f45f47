"""LoRA files of an editor's transformer, in and out: PEFT's folders, and the one file of diffusers."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jax
import safetensors.numpy

from edit_rl_jax import json_files
from edit_rl_jax.nn import peft, peft_config
from edit_rl_jax.nn.model_files import checked
from edit_rl_jax.nn.safetensors_io import WeightsError, read_file
from edit_rl_jax.nn.weights import Naming

FILE, METADATA = "pytorch_lora_weights.safetensors", "lora_adapter_metadata"  # diffusers' names
DIFFUSERS = r"(?:transformer\.)?(.+)\.lora_([AB])\.weight"  # its tensors', as peft.TENSOR


def read(path: str | Path, alpha: float | None = None, *, naming: Naming) -> peft.Adapter:
    """The description of a LoRA of the transformer: a PEFT folder, a diffusers file, or a folder with one.

    alpha: needed where the file does not say. Files exported by the reference do not: they were trained with alpha 64
    and are run there at alpha = rank, so the scale is 2 or 1 and the user must choose. Raises WeightsError for a file
    without alpha, one that contradicts `alpha`, or options that are not plain LoRA.
    """
    path = Path(path)
    if (path / peft.CONFIG).exists():
        adapter = peft.read_adapter(path, naming)
        if alpha is not None and not adapter.uniform:
            raise WeightsError(f"{path}: its layers differ in rank or alpha, so alpha {alpha} is not theirs")
        _alpha(path, adapter.rank, adapter.alpha, alpha)
        return adapter
    file = path / FILE if path.is_dir() else path
    tensors, metadata = read_file(file)
    ranks = {m[1]: t.shape[0] for t in tensors.values() if (m := re.fullmatch(r"(.+)\.lora_A\.weight", t.name))}
    if not ranks:
        raise WeightsError(f"{file}: no tensor named *.lora_A.weight")
    try:
        stored = json_files.loads(metadata.get(METADATA, "{}"), f"{file}: {METADATA}")
    except json_files.JSONError as e:
        raise WeightsError(str(e)) from None
    if not isinstance(stored, dict):
        raise WeightsError(f"{file}: {METADATA} is no object")
    stored = {k.removeprefix("transformer."): v for k, v in stored.items()}
    checked(stored.get("lora_alpha"), "float | None", f"{file}: lora_alpha", 1e-9, 1e9)
    if len(set(ranks.values())) > 1:
        raise WeightsError(f"{file}: ranks {sorted(set(ranks.values()))} differ")
    rank = next(iter(ranks.values()))
    targets = sorted(m.removeprefix("transformer.") for m in ranks)
    config = {"peft_type": "LORA", "bias": "none", **stored, "r": rank, "target_modules": targets}
    peft_config.check(config, file)
    config["lora_alpha"] = _alpha(file, rank, stored.get("lora_alpha"), alpha)
    return peft.describe(config, file, DIFFUSERS, naming)


def _alpha(path: Path, rank: int, stored: float | None, given: float | None) -> float:
    if stored is None and given is None:
        raise WeightsError(f"{path}: does not say its alpha (rank {rank}): give it")
    if stored is not None and given is not None and float(stored) != float(given):
        raise WeightsError(f"{path}: alpha is {stored} in the file, not {given}")
    return float(given if stored is None else stored)


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
