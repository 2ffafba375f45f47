"""LoRA adapters as PEFT writes them: `adapter_config.json` + `adapter_model.safetensors`, in and out, and merging.

Strict: rank, alpha and targets come from the file and are kept; an option that would change the arithmetic and is not
plain LoRA (rsLoRA, DoRA, rank patterns, trained biases, ...) is an error that names it. A linear layer that the model
adapts but the adapter does not target gets A = B = 0, which is exact and stays so in training (both gradients are 0).
"""

import dataclasses
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.sharding import SingleDeviceSharding

from edit_rl_jax.nn import weights
from edit_rl_jax.nn.checkpoint_files import WeightsError, listing, read_header
from edit_rl_jax.nn.weights import Naming

CONFIG, FILE = "adapter_config.json", "adapter_model.safetensors"
TENSOR = r"base_model\.model\.(.+)\.lora_([AB])(?:\.default)?\.weight"
# fields of adapter_config.json that do not change what a finished adapter computes
_HARMLESS = set(
    "auto_mapping base_model_name_or_path corda_config eva_config ensure_weight_tying inference_mode init_lora_weights "
    "loftq_config lora_alpha lora_dropout lora_ga_config megatron_core peft_type peft_version qalora_group_size r "
    "revision target_modules task_type".split()
)
_NEUTRAL = (None, False, {}, [], "none")
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter's arithmetic (`rank`, `alpha`) and its whole `adapter_config.json` as it was read."""

    rank: int
    alpha: float
    config: dict[str, Any]
    naming: Naming

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def targets(self, module: str) -> bool:
        """Whether the adapter covers a linear layer, by PEFT's rules; `module` as `naming.name` gives it."""
        target = self.config["target_modules"]
        names = (module, self.naming.written(module))
        if target == "all-linear":
            return module != "lm_head"
        if isinstance(target, str):
            return any(re.fullmatch(target, n) for n in names)
        return any(n == t or n.endswith(f".{t}") for n in names for t in target)


def read_adapter(folder: str | Path, naming: Naming) -> Adapter:
    """Reads `adapter_config.json`. Raises WeightsError for anything that is not plain LoRA, naming the options."""
    path = Path(folder) / CONFIG
    config = json.loads(path.read_text())
    if config.get("peft_type") != "LORA" or not config.get("target_modules"):
        raise WeightsError(f"{path}: peft_type {config.get('peft_type')!r}, target_modules must be LORA and not empty")
    check_plain(config, path)
    return Adapter(int(config["r"]), float(config["lora_alpha"]), config, naming)


def check_plain(config: dict[str, Any], path: Path) -> None:
    """Raises WeightsError if an adapter's config has an option that is not plain LoRA."""
    bad = {k for k, v in config.items() if k not in _HARMLESS and v not in _NEUTRAL}
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGES_BASE):
        bad.add("init_lora_weights")  # these initialisers also rewrite the base's weights
    if bad:
        raise WeightsError(f"{path}: unsupported options: {listing(f'{k}={config[k]!r}' for k in bad)}")


def make_adapter(state, naming: Naming, rank: int, alpha: float, base: str | None = None, **config: Any) -> Adapter:
    """The description of an adapter that covers exactly the LoRA leaves of a state; base: folder or hub id, config:
    further entries."""
    modules = sorted({_module(p, naming) for p in weights.flatten(state)[0] if p[-1] in weights.LORA})
    target = "|".join(re.escape(m).replace(r"\{\}", r"\d+") for m in modules)
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "bias": "none", **config}
    config |= {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": target, "inference_mode": True}
    return Adapter(rank, alpha, config, naming)


def _module(path: Sequence[str], naming: Naming) -> str:
    return naming.name((*path[:-1], "kernel")).removesuffix(".weight")


def modules(state, naming: Naming) -> list[str]:
    """Names in the checkpoint's canonical style of the linear layers with LoRA leaves in a (maybe abstract) state."""
    paths, variables, _ = weights.flatten(state)
    return [n for p, v in zip(paths, variables) if p[-1] == weights.LORA[0] for n in _layers(p, v.shape, naming)]


def _layers(path: Sequence[str], shape: Sequence[int], naming: Naming) -> list[str]:
    """Names of the torch modules that a LoRA leaf belongs to: one, or one a layer."""
    name = _module(path, naming)
    return [name.format(i) for i in range(shape[0])] if naming.layers(path) else [name]


def load(folder: Path, abstract, naming: Naming, shardings=None):
    """Reads a PEFT adapter folder into the LoRA leaves of a state: see `fill`."""
    adapter = read_adapter(folder, naming)
    return fill(folder / FILE, TENSOR, abstract, adapter, shardings)


def fill(file: Path, pattern: str, abstract, adapter: Adapter, shardings=None):
    """Reads a file of LoRA tensors into the LoRA leaves of a state, zero where they are padded.

    pattern: of the tensors' names, with groups for the module and "A" or "B". abstract: state with LoRA leaves, as the
    model built with this adapter's rank declares them (usually the Trainable part); other leaves are handed back as
    they came. shardings: as in `weights.load`.
    Raises WeightsError naming tensors that are unknown, missing, doubled or misshapen, or targets without a LoRA leaf.
    """
    naming = adapter.naming
    found: dict[tuple[str, str], Any] = {}
    for t in read_header(file).values():
        m = re.fullmatch(pattern, t.name)
        key = (naming.canonical(m[1] + "."), f"lora_{m[2].lower()}") if m else (t.name, "")
        if key in found:
            raise WeightsError(f"{file}: doubled: {t.name} and {found[key].name} are the same weight")
        found[key] = t
    paths, variables, tree = weights.flatten(abstract)
    places = weights.placements(variables, shardings)
    todo = [i for i, p in enumerate(paths) if p[-1] in weights.LORA]
    real = {i: weights.real_shape(variables[i], naming.layers(paths[i])) for i in todo}
    wanted = {}
    for i in todo:
        for name in _layers(paths[i], variables[i].shape, naming):
            if adapter.targets(name):
                wanted[name + ".", paths[i][-1]] = real[i][::-1]
    problems = []
    if missing := wanted.keys() - found.keys():
        problems.append(f"missing: {listing(m + leaf for m, leaf in missing)}")
    if unknown := found.keys() - wanted.keys():
        problems.append(f"unknown, or not targeted: {listing(found[k].name for k in unknown)}")
    if bad := {k for k in wanted.keys() & found.keys() if found[k].shape != wanted[k]}:
        problems.append("misshapen: " + listing(f"{found[k].name} {found[k].shape}, not {wanted[k]}" for k in bad))
    if problems:
        raise WeightsError(f"{file}: " + "; ".join(problems))
    for i in todo:
        v, leaf = variables[i], paths[i][-1]
        layers = [found.get((n + ".", leaf)) for n in _layers(paths[i], v.shape, naming)]
        value = np.zeros((len(layers), *v.shape[-2:]), v.dtype)
        for t, x in zip(layers, value):
            if t:
                x[: real[i][0], : real[i][1]] = t.read().T
        place = places[i] or SingleDeviceSharding(jax.local_devices()[0])
        value = value.reshape(v.shape)
        variables[i] = v.replace(jax.make_array_from_callback(value.shape, place, value.__getitem__))
    return jax.tree.unflatten(tree, variables)


def tensors(state, adapter: Adapter, prefix: str = "base_model.model.") -> dict[str, np.ndarray]:
    """The LoRA leaves of a state under PEFT's names and in its layout (lora_A [r, in], lora_B [out, r]), fp32.

    Raises WeightsError if a layer that the adapter does not target is not zero.
    """
    out, untargeted = {}, []
    for path, v in zip(*weights.flatten(state)[:2]):
        if path[-1] not in weights.LORA:
            continue
        rows, columns = weights.real_shape(v, adapter.naming.layers(path))
        value = weights.host_value(v.get_value())[..., :rows, :columns]
        for name, x in zip(_layers(path, v.shape, adapter.naming), value if value.ndim == 3 else [value]):
            if adapter.targets(name):
                key = f"{prefix}{name}.lora_{path[-1][-1].upper()}.weight"
                out[key] = np.ascontiguousarray(x.T, np.float32)
            elif x.any():
                untargeted.append(name)
    if untargeted:
        raise WeightsError(f"not zero, but not targeted by the adapter: {listing(untargeted)}")
    return out


def save(state, adapter: Adapter, folder: str | Path) -> Path:
    """Writes the LoRA leaves of a state as a PEFT adapter folder, other leaves ignored. Every process must call.

    adapter: from `make_adapter`, or from `read_adapter` to keep an adapter's own config. Raises as `tensors`.
    """
    named = tensors(state, adapter)
    if jax.process_index() == 0:
        Path(folder).mkdir(parents=True, exist_ok=True)
        safetensors.numpy.save_file(named, Path(folder) / FILE, metadata={"format": "pt"})
        (Path(folder) / CONFIG).write_text(json.dumps(adapter.config, indent=2) + "\n")
    return Path(folder)


def merge(state, scale: float):
    """Base weights with the adapter folded in, kernel + scale * A @ B, and no LoRA leaves.

    state: base and LoRA leaves together (`nnx.state(model)`); scale: alpha / rank. The sum is made in fp32 and rounded
    once to the kernel's dtype; shardings are kept.
    """
    flat = dict(nnx.to_flat_state(state))
    for path, v in flat.items():
        a, b = (flat.get((*path[:-1], leaf)) for leaf in weights.LORA)
        if path[-1] == "kernel" and a is not None and b is not None:
            flat[path] = v.replace(_merged(v.get_value(), a.get_value(), b.get_value(), scale))
    return nnx.State.from_flat_path({p: v for p, v in flat.items() if p[-1] not in weights.LORA})


def _merged(kernel, a, b, scale: float):
    def one(kab):
        k, a, b = kab
        return (k.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")).astype(k.dtype)

    whole = (lambda *kab: jax.lax.map(one, kab)) if kernel.ndim == 3 else (lambda *kab: one(kab))
    return jax.jit(whole, out_shardings=kernel.sharding)(kernel, a, b)
