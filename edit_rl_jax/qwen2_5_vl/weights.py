"""Qwen2.5-VL weights between Hugging Face folders and sharded JAX arrays: strict, one stacked tensor at a time.

`load` and `save` work on the state of a `Qwen25VL` (or on the Trainable or Frozen part that holds its base weights);
the names in the tree are Hugging Face's, so the mapping below is all there is. Both key styles are read (`visual.*`,
`model.layers.*` of hub files; `model.visual.*`, `model.language_model.*` of transformers 5); hub names are written,
as transformers 5 does. Adapters are in `peft.py`.
"""

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.numpy
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from edit_rl_jax.qwen2_5_vl.checkpoint_files import INDEX, SINGLE, Tensor, WeightsError, listing, open_folder

STACKED = ("blocks", "layers")
LORA = ("lora_a", "lora_b")
# what a model folder holds beside weights and config.json
SIDE_FILES = (
    "generation_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json "
    "added_tokens.json chat_template.json chat_template.jinja preprocessor_config.json processor_config.json "
    "video_preprocessor_config.json edit_rl.json"
).split()


def local_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or the snapshot of a hub id: config, safetensors and tokenizer files only, no code."""
    if Path(path_or_hub_id).is_dir():
        return Path(path_or_hub_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_hub_id)):
        raise FileNotFoundError(f"{path_or_hub_id} is neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    wanted = ["config.json", "*.safetensors", INDEX, "adapter_config.json", *SIDE_FILES]
    return Path(snapshot_download(str(path_or_hub_id), revision=revision, allow_patterns=wanted))


def hf_name(path: Sequence[str]) -> str:
    """transformers 5's name of a leaf, `{}` standing for the layer: ("visual", "blocks", "norm1", "scale") ->
    "model.visual.blocks.{}.norm1.weight"."""
    *modules, leaf = path
    names = []
    for m in modules:
        names += [m, "{}"] if m in STACKED else [m.replace("mlp_", "mlp.")]
    names += ["proj"] if modules[-1] == "patch_embed" else []
    names += ["bias" if leaf == "bias" else "weight"]
    return ".".join(names if modules[0] == "lm_head" else ["model", *names])


def canonical(name: str) -> str:
    """A checkpoint's tensor name in transformers 5's style."""
    name = re.sub(r"^visual\.", "model.visual.", name)
    return re.sub(r"^model\.(?=(layers|embed_tokens|norm)\.)", "model.language_model.", name)


def hub_name(name: str) -> str:
    """The inverse of `canonical`: the style of the files on the hub."""
    return name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)


def flatten(state) -> tuple[list[tuple[str, ...]], list[nnx.Variable], Any]:
    """Paths (attribute names), variables and tree structure of a model state, in one order."""
    flat, tree = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [tuple(str(k.key) for k in path) for path, _ in flat], [v for _, v in flat], tree


def hf_shape(path: Sequence[str], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of one layer's tensor in the checkpoint, matrices as [out, in]; a patch embedding as [out, C*T*H*W]."""
    shape = tuple(shape[1:] if set(STACKED) & set(path) else shape)
    return shape[::-1] if path[-1] == "kernel" else shape


def sources(path: Sequence[str], shape: tuple[int, ...]) -> list[str]:
    """Names of the checkpoint tensors that make up a leaf: one, or one a layer."""
    name = hf_name(path)
    return [name.format(i) for i in range(shape[0])] if "{}" in name else [name]


def load(path_or_hub_id: str | Path, abstract, shardings=None, *, revision: str | None = None):
    """Loads every base weight of a model from a Hugging Face folder or hub id.

    abstract: state with the shapes and dtypes wanted (`nnx.state` / a part of `nnx.split` of `nnx.eval_shape(...)`),
        which must hold all base weights; LoRA leaves in it are handed back as they came.
    shardings: same tree of `jax.sharding.Sharding`; without it, those of `abstract` or else the first device.

    Returns the state with arrays of `abstract`'s dtypes. Each process reads only the slices that its devices hold.
    Peak host memory is the arrays plus about one stacked tensor, largest first. Raises WeightsError naming the tensors
    that are unknown, missing, doubled or misshapen, before anything is read. A tied model accepts an `lm_head.weight`
    that equals its embedding.
    """
    folder = local_folder(path_or_hub_id, revision)
    paths, variables, tree = flatten(abstract)
    places = placements(variables, shardings)
    found = _by_name(folder)
    todo = [i for i, p in enumerate(paths) if p[-1] not in LORA]
    _check(folder, [(paths[i], tuple(variables[i].shape)) for i in todo], found)
    default = SingleDeviceSharding(jax.local_devices()[0])
    todo.sort(key=lambda i: -variables[i].size)
    for i in tqdm(todo, desc="weights", unit="tensor", disable=None):
        path, v = paths[i], variables[i]
        tensors = [found[n] for n in sources(path, v.shape)]
        variables[i] = v.replace(_read(path, tensors, tuple(v.shape), v.dtype, places[i] or default))
    return jax.tree.unflatten(tree, variables)


def placements(variables: list, shardings) -> list:
    """The sharding of each variable, in order: from a tree of shardings, else the variable's own, else None."""
    if shardings is None:
        return [getattr(v.get_value(), "sharding", None) for v in variables]
    return jax.tree.leaves(shardings, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding))


def _by_name(folder: Path) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for t in open_folder(folder):
        if canonical(t.name) in found:
            raise WeightsError(f"{folder}: doubled: {t.name} and {found[canonical(t.name)].name} are the same weight")
        found[canonical(t.name)] = t
    return found


def _check(folder: Path, leaves: list[tuple[tuple[str, ...], tuple[int, ...]]], found: dict[str, Tensor]) -> None:
    wanted = {name: hf_shape(path, shape) for path, shape in leaves for name in sources(path, shape)}
    problems = []
    if missing := wanted.keys() - found.keys():
        problems.append(f"missing: {listing(missing)}")
    unknown = found.keys() - wanted.keys()
    if "lm_head.weight" in unknown and (embed := found.get("model.language_model.embed_tokens.weight")):
        if _same(found["lm_head.weight"], embed):
            unknown.remove("lm_head.weight")
        else:
            problems.append("lm_head.weight differs from the embedding although the config ties them")
            unknown.remove("lm_head.weight")
    if unknown:
        problems.append(f"unknown: {listing(found[n].name for n in unknown)}")
    flat = lambda t, name: (t.shape[0], int(np.prod(t.shape[1:]))) if "patch_embed" in name else t.shape
    if bad := {n for n in wanted.keys() & found.keys() if flat(found[n], n) != wanted[n]}:
        problems.append("misshapen: " + listing(f"{found[n].name} {found[n].shape}, not {wanted[n]}" for n in bad))
    if problems:
        raise WeightsError(f"{folder}: " + "; ".join(problems))


def _same(a: Tensor, b: Tensor, rows: int = 4096) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    chunks = (np.s_[i : i + rows] for i in range(0, a.shape[0], rows))
    return all(np.array_equal(a.read(c).view(np.uint8), b.read(c).view(np.uint8)) for c in chunks)


def _read(path, tensors: list[Tensor], shape, dtype, sharding) -> jax.Array:
    stacked, matrix = len(hf_shape(path, shape)) < len(shape), path[-1] == "kernel"

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        out = np.empty([len(range(*s.indices(n))) for s, n in zip(index, shape)], dtype)
        rest = index[1:] if stacked else index
        for tensor, target in zip(tensors[index[0]], out) if stacked else [(tensors[0], out)]:
            flat = len(tensor.shape) > 2  # the patch embedding, a convolution in the checkpoint
            part = tensor.read(rest[::-1] if matrix and not flat else () if flat else rest)
            part = part.reshape(len(part), -1)[rest[::-1]] if flat else part
            np.copyto(target, part.T if matrix else part, casting="unsafe")
        return out

    return jax.make_array_from_callback(shape, sharding, piece)


def save(
    state,
    cfg,
    folder: str | Path,
    *,
    dtype: Any = None,
    max_shard_bytes: int = 4 * 10**9,
    files_from: str | Path | None = None,
) -> Path:
    """Writes a folder that `transformers` loads: config.json and safetensors, sharded above `max_shard_bytes`.

    state: all base weights, on any mesh; every process must call, the first one writes. dtype: of the files, default
    each weight's own. files_from: folder whose tokenizer, processor and generation files are copied along. Raises
    WeightsError if the state holds LoRA leaves (`peft.merge` first, or `peft.save` the adapter).
    """
    folder, lead = Path(folder), jax.process_index() == 0
    paths, variables, _ = flatten(state)
    if adapters := [".".join(p) for p in paths if p[-1] in LORA]:
        raise WeightsError(f"not base weights, merge or save them as an adapter: {listing(adapters)}")
    pieces = [  # (name, variable, layer, path) of each file tensor, in the order of names
        (hub_name(name), v, layer if len(names) > 1 or "{}" in hf_name(p) else None, p)
        for p, v in zip(paths, variables)
        for names in [sources(p, v.shape)]
        for layer, name in enumerate(names)
    ]
    shards: list[list] = [[]]
    room = max_shard_bytes
    for item in sorted(pieces, key=lambda x: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", x[0])]):
        v = item[1]
        size = int(np.prod(hf_shape(item[3], v.shape))) * np.dtype(dtype or v.dtype).itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(item)
        room -= size
    if lead:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob("model*.safetensors"), folder / INDEX, folder / "config.json"]:
            old.unlink(missing_ok=True)
    names = (
        [SINGLE]
        if len(shards) == 1
        else [f"model-{i + 1:05}-of-{len(shards):05}.safetensors" for i in range(len(shards))]
    )
    place, total = {}, 0
    for file, items in zip(names, shards):
        tensors = {}
        for name, v, layer, path in items:
            value = host_value(v.get_value() if layer is None else v.get_value()[layer])
            if "patch_embed" in name:
                p = cfg.vision
                value = value.T.reshape(-1, p.in_channels, p.temporal_patch_size, p.patch_size, p.patch_size)
            elif path[-1] == "kernel":
                value = value.T
            tensors[name] = np.ascontiguousarray(value, dtype=np.dtype(dtype or v.dtype))
            place[name], total = file, total + tensors[name].nbytes
        if lead:
            safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    if lead:
        if len(shards) > 1:
            index = {"metadata": {"total_size": total}, "weight_map": place}
            (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n")
        kinds = {np.dtype(dtype or v.dtype).name for v in variables}
        config = {**cfg.to_hf(), "dtype": kinds.pop() if len(kinds) == 1 else "float32"}
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
        copy_side_files(files_from, folder)
    return folder


def host_value(x: jax.Array) -> np.ndarray:
    """The whole of an array on this host, whatever devices and processes hold it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def copy_side_files(source: str | Path | None, folder: Path) -> None:
    """Copies tokenizer, processor and generation files from one model folder to another."""
    for name in SIDE_FILES if source is not None and Path(source) != folder else ():
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)
