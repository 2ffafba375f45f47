"""LoRA adapters as PEFT writes them: `adapter_config.json` + `adapter_model.safetensors`, in and out, and merging.

What the config says is read by `peft_config`; the tensors must be exactly the layers that it targets. A linear layer
that the model adapts but the adapter does not gets A = B = 0, and a lower rank than the others' is padded with zeros:
both are exact and stay so in training (the gradients are 0).
"""

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.sharding import SingleDeviceSharding

from edit_rl_jax.nn import peft_config, weights
from edit_rl_jax.nn.params import Trainable
from edit_rl_jax.nn.safetensors_io import Tensor, WeightsError, listing, read_header
from edit_rl_jax.nn.weights import Naming

CONFIG, FILE, PICKLE = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"
# with the adapter's name or without it; PEFT writes neither a name nor a doubled or missing prefix, others do
TENSOR = r"(?:base_model\.model\.)*(.+)\.lora_([AB])(?:\.[^.]+)?\.weight"


@dataclasses.dataclass(frozen=True)
class Adapter:
    """An adapter's arithmetic, and its whole `adapter_config.json` as it was read.

    rank: the greatest of its layers. alpha: with that rank, their common scale alpha / rank; where they have several,
    it is `rank`, and `fill` multiplies each B by its own. layers: (rank, alpha) by module, named as `naming.name` does.
    readings: whether the config's names are meant as `naming.written` gives them; both, where that is not decided.
    """

    rank: int
    alpha: float
    config: dict[str, Any]
    naming: Naming
    layers: Mapping[str, tuple[int, float]]
    readings: tuple[bool, ...] = (False,)

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    @property
    def uniform(self) -> bool:
        """Whether all layers have one rank and one alpha."""
        return len(set(self.layers.values())) == 1

    def targets(self, module: str) -> bool:
        """Whether the adapter has tensors of a linear layer; `module` as `naming.name` gives it."""
        return module in self.layers

    def missing(self, modules: Iterable[str]) -> list[str]:
        """Those of a model's modules that the config targets, but of which the adapter has no tensors."""
        left = [m for m in modules if m not in self.layers]
        ways = [[m for m in left if _targeted(self.config, m, self.naming, way)] for way in self.readings]
        return min(ways, key=len)


def _targeted(config: Mapping[str, Any], module: str, naming: Naming, written: bool) -> bool:
    inside = module.split(".")
    linear = inside[-1] not in ("lm_head", "embed_tokens") and not set(naming.flat) & set(inside)
    return peft_config.targets(config, naming.written(module) if written else module, linear=linear)


def read_adapter(folder: str | Path, naming: Naming) -> Adapter:
    """Reads `adapter_config.json` and the header of the tensors. Raises WeightsError for anything that is not plain
    LoRA of linear layers, naming the options, and for tensors that the config does not target."""
    config, file = peft_config.read(Path(folder) / CONFIG), weights_file(folder)
    return describe(config, file, TENSOR, naming)


def weights_file(folder: str | Path) -> Path:
    """The file of an adapter folder's tensors. Raises WeightsError where there is none that is safe to read."""
    file = Path(folder) / FILE
    if not file.is_file():
        pickled = (Path(folder) / PICKLE).exists()
        raise WeightsError(f"{file}: not there{f'; {PICKLE} is a pickle: save it as safetensors' if pickled else ''}")
    return file


def describe(config: dict[str, Any], file: Path, pattern: str, naming: Naming) -> Adapter:
    """The description of a file of LoRA tensors by its config (checked already). pattern and errors: as in `fill`."""
    found = _tensors(file, pattern, naming)
    if strange := [t for (_, leaf), t in found.items() if not leaf]:
        raise WeightsError(f"{file}: {_strange(strange)}")
    modules = sorted({m for m, _ in found})
    if not modules:
        raise WeightsError(f"{file}: no LoRA tensors")
    # the names of the tensors tell which names the config meant, unless it targets them only by the others
    old = sum(1 if f"{m}." in t.name else -1 for (m, _), t in found.items()) < 0
    left = {way: [m for m in modules if not _targeted(config, m, naming, way)] for way in (old, not old)}
    ways = [way for way in left if not left[way]]
    if not ways:
        names = [t.name for (m, _), t in found.items() if m in left[old]]
        raise WeightsError(f"{file}: unknown, or not targeted: {listing(names)}")
    by_way = {w: {m: peft_config.rank_alpha(config, naming.written(m) if w else m) for m in modules} for w in ways}
    layers = by_way[ways[0]]
    rank, scales = max(r for r, _ in layers.values()), {a / r for r, a in layers.values()}
    if len(set(layers.values())) == 1:
        alpha = next(iter(layers.values()))[1]
    else:
        alpha = rank * (scales.pop() if len(scales) == 1 else 1.0)
    return Adapter(rank, alpha, config, naming, layers, tuple(w for w in ways if by_way[w] == layers))


def _strange(tensors: list[Tensor]) -> str:
    """Why tensors are none of a linear layer's two factors."""
    kinds = {
        "it adapts embeddings, which are no linear layers": r"lora_embedding_[AB]",
        "it holds DoRA's lengths": r"lora_magnitude_vector",
        "it holds trained biases": r"\.bias$",
        "it holds whole layers": r"modules_to_save|original_module",
        "it holds whole weights, which PEFT's save_embedding_layers=False leaves out": r"^(?!.*lora_).*\.weight$",
    }
    why = [k for k, p in kinds.items() if any(re.search(p, t.name) for t in tensors)]
    return f"unknown, or not targeted: {listing(t.name for t in tensors)}" + (f" ({'; '.join(why)})" if why else "")


def _tensors(file: Path, pattern: str, naming: Naming) -> dict[tuple[str, str], Tensor]:
    """The tensors of a file by (module as `naming.name` gives it, LoRA leaf); (name, "") of other tensors."""
    found: dict[tuple[str, str], Tensor] = {}
    for t in read_header(file).values():
        m = re.fullmatch(pattern, t.name)
        key = (naming.canonical(m[1] + ".")[:-1], f"lora_{m[2].lower()}") if m else (t.name, "")
        if key in found:
            raise WeightsError(f"{file}: doubled: {t.name} and {found[key].name} are the same weight")
        found[key] = t
    return found


def make_adapter(state, naming: Naming, rank: int, alpha: float, base: str | None = None, **config: Any) -> Adapter:
    """The description of an adapter that covers exactly the LoRA leaves of a state; base: folder or hub id, config:
    further entries."""
    kinds = sorted({_module(p, naming) for p in weights.flatten(state)[0] if p[-1] in weights.LORA})
    target = "|".join(re.escape(m).replace(r"\{\}", r"\d+") for m in kinds)
    config = {"peft_type": "LORA", "base_model_name_or_path": base, "bias": "none", **config}
    config |= {"r": rank, "lora_alpha": alpha, "lora_dropout": 0.0, "target_modules": target, "inference_mode": True}
    return Adapter(rank, alpha, config, naming, {m: (rank, float(alpha)) for m in modules(state, naming)})


def _module(path: Sequence[str], naming: Naming) -> str:
    return naming.name((*path[:-1], "kernel")).removesuffix(".weight")


def modules(state, naming: Naming, leaf: str = weights.LORA[0]) -> list[str]:
    """Names in the checkpoint's canonical style of the modules that have such a leaf in a (maybe abstract) state."""
    paths, variables, _ = weights.flatten(state)
    return [n for p, v in zip(paths, variables) if p[-1] == leaf for n in _layers(p, v.shape, naming)]


def adaptable(state, naming: Naming) -> set[str]:
    """Names of the modules of a state that an adapter of PEFT could target: linear layers, embeddings, a tied head."""
    found = {m for leaf in ("kernel", "embedding", weights.LORA[0]) for m in modules(state, naming, leaf)}
    return found | {a.removesuffix(".weight") for a, b in naming.tied if b.removesuffix(".weight") in found}


def _layers(path: Sequence[str], shape: Sequence[int], naming: Naming) -> list[str]:
    """Names of the torch modules that a LoRA leaf belongs to: one, or one a layer."""
    name = _module(path, naming)
    return [name.format(i) for i in range(shape[0])] if naming.layers(path) else [name]


def load(folder: Path, abstract, naming: Naming, shardings=None):
    """Reads a PEFT adapter folder into the LoRA leaves of a state: see `fill`."""
    return fill(weights_file(folder), TENSOR, abstract, read_adapter(folder, naming), shardings)


def fill(file: Path, pattern: str, abstract, adapter: Adapter, shardings=None):
    """Reads a file of LoRA tensors into the LoRA leaves of a state, zero where they are padded.

    pattern: of the tensors' names, with groups for the module and "A" or "B". abstract: state with LoRA leaves, as the
    model built with this adapter's rank declares them (the Trainable part, or all); other leaves are handed back as
    they came. shardings: as in `weights.load`.
    Raises WeightsError naming tensors that are unknown, missing, doubled or misshapen, or targets without a LoRA leaf.
    """
    naming = adapter.naming
    found = _tensors(file, pattern, naming)
    paths, variables, tree = weights.flatten(abstract)
    places = weights.placements(variables, shardings)
    todo = [i for i, p in enumerate(paths) if p[-1] in weights.LORA]
    real = {i: weights.real_shape(variables[i], naming.layers(paths[i])) for i in todo}
    wanted: dict[tuple[str, str], tuple[int, ...]] = {}
    for i in todo:
        for name in _layers(paths[i], variables[i].shape, naming):
            if name in adapter.layers:
                rank, leaf = adapter.layers[name][0], paths[i][-1]
                wanted[name, leaf] = (rank, real[i][0]) if leaf == "lora_a" else (real[i][1], rank)
    _check(file, found, wanted, adapter.missing(sorted(adaptable(abstract, naming))), naming)
    for i in todo:
        v, leaf = variables[i], paths[i][-1]
        names = _layers(paths[i], v.shape, naming)
        value = np.zeros((len(names), *v.shape[-2:]), v.dtype)
        for name, x in zip(names, value):
            if t := found.get((name, leaf)):
                factor = t.read().reshape(t.shape[0], -1).T
                x[: factor.shape[0], : factor.shape[1]] = factor
                rank, alpha = adapter.layers[name]
                if leaf == "lora_b" and not adapter.uniform:
                    x *= np.float32(alpha / rank / adapter.scale)
                if not weights.is_finite(x):
                    raise WeightsError(f"{file}: {t.name} holds NaN or infinity")
        place = places[i] or SingleDeviceSharding(jax.local_devices()[0])
        value = value.reshape(v.shape)
        variables[i] = v.replace(jax.make_array_from_callback(value.shape, place, value.__getitem__))
    return jax.tree.unflatten(tree, variables)


def _check(file: Path, found, wanted, missing: list[str], naming: Naming) -> None:
    problems = []
    if missing := missing + [f"{m}.{leaf}" for m, leaf in wanted.keys() - found.keys()]:
        problems.append(f"missing: {listing(missing)}")
    if unknown := found.keys() - wanted.keys():
        tied = {a.removesuffix(".weight") for a, _ in naming.tied} & {m for m, _ in unknown}
        why = " (the head of this base is its embedding, which no adapter changes alone)" if tied else ""
        problems.append(f"unknown, or not targeted: {listing(found[k].name for k in unknown)}{why}")
    flat = lambda t, m: (t.shape[0], math.prod(t.shape[1:])) if set(naming.flat) & set(m.split(".")) else t.shape
    if bad := {k for k in wanted.keys() & found.keys() if flat(found[k], k[0]) != wanted[k]}:
        problems.append("misshapen: " + listing(f"{found[k].name} {found[k].shape}, not {wanted[k]}" for k in bad))
    if problems:
        raise WeightsError(f"{file}: " + "; ".join(problems))


def tensors(state, adapter: Adapter, prefix: str = "base_model.model.") -> dict[str, np.ndarray]:
    """The LoRA leaves of a state under PEFT's names and in its layout (lora_A [r, in], lora_B [out, r]), fp32.

    Raises WeightsError if a layer that the adapter does not target is not zero, and for an adapter that `fill` changed:
    one of several ranks or scales, or of a convolution.
    """
    flat = [m for m in adapter.layers if set(adapter.naming.flat) & set(m.split("."))]
    if flat or not adapter.uniform:
        raise WeightsError(f"not written back: {listing(flat) or 'the layers of this adapter differ in rank or alpha'}")
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


def check_only_lora(state) -> None:
    """Raises WeightsError that names the trained leaves which an adapter cannot hold: left out, they would be lost."""
    named = zip(*weights.flatten(state)[:2])
    if more := [".".join(map(str, p)) for p, v in named if isinstance(v, Trainable) and p[-1] not in weights.LORA]:
        raise WeightsError(f"trained, but no part of a LoRA adapter: {listing(more)}")


def save(state, adapter: Adapter, folder: str | Path) -> Path:
    """Writes the LoRA leaves of a state as a PEFT adapter folder; frozen leaves stay out. Every process must call.

    adapter: from `make_adapter`, or from `read_adapter` to keep an adapter's own config. Raises WeightsError as
    `tensors`, and naming what is trained besides.
    """
    check_only_lora(state)
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
    return _merger(kernel.ndim == 3, kernel.sharding)(kernel, a, b, scale)


@functools.cache
def _merger(stacked: bool, sharding):
    def one(kab, scale):
        k, a, b = kab
        return (k.astype(jnp.float32) + scale * jnp.matmul(a, b, precision="highest")).astype(k.dtype)

    def merged(k, a, b, scale):
        return jax.lax.map(lambda kab: one(kab, scale), (k, a, b)) if stacked else one((k, a, b), scale)

    return jax.jit(merged, out_shardings=sharding)
