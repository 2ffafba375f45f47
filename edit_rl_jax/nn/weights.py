"""Weights between Hugging Face folders and sharded JAX arrays: strict, one stacked tensor at a time.

`load` and `save` work on the state of any model (or on the Trainable or Frozen part that holds its base weights); a
`Naming` says what its leaves are called in files. Adapters are in `peft.py`.
"""

import dataclasses
import fnmatch
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from etils import epath
from flax import nnx
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding
from tqdm import tqdm

from edit_rl_jax.nn.safetensors_io import STEM, Tensor, WeightsError, listing, open_folder

LORA = ("lora_a", "lora_b")
# axes of a kernel in the order of its tensor: matrices [in, out] -> [out, in], convolutions [h, w, in, out] -> OIHW
_FILE_ORDER = {2: (1, 0), 4: (3, 2, 0, 1)}


@dataclasses.dataclass(frozen=True)
class Naming:
    """What a model's leaves are called in its checkpoint.

    name: path of a leaf (attribute names) -> tensor name, `{}` standing for the layer of a stacked one.
    stacked: modules whose arrays have a leading layers axis.
    canonical, written: name in a file -> name as `name` gives it, and what is written of that.
    stem: of the file names. optional: pattern of tensors that a file may hold though the model has no place for them.
    tied: tensors that a file may hold if they equal another one.
    flat: modules whose kernels are convolutions in files, [out, in * receptive field] here.
    convert: a file's tensors -> those that `canonical` names, for files of another layout (fused matrices).
    unwritten: why `save` refuses, where `convert` leaves out what cannot be made again.
    """

    name: Callable[[Sequence[str]], str]
    stacked: tuple[str, ...] = ()
    canonical: Callable[[str], str] = str
    written: Callable[[str], str] = str
    stem: str = STEM
    optional: str = r"(?!)"
    tied: tuple[tuple[str, str], ...] = ()
    flat: tuple[str, ...] = ()
    convert: Callable[[list[Tensor]], list[Tensor]] = list
    unwritten: str = ""

    def layers(self, path: Sequence[str]) -> bool:
        return bool(set(self.stacked) & set(path))

    def folded(self, path: Sequence[str]) -> bool:
        """Whether a leaf is the kernel of a convolution, flat here."""
        return path[-1] == "kernel" and bool(set(self.flat) & set(path))

    def sources(self, path: Sequence[str], shape: Sequence[int]) -> list[str]:
        """Names of the checkpoint tensors that make up a leaf: one, or one a layer."""
        name = self.name(path)
        return [name.format(i) for i in range(shape[0])] if self.layers(path) else [name]

    def file_shape(self, path: Sequence[str], v) -> tuple[int, ...]:
        """Shape of one layer's tensor in the checkpoint: kernels transposed, padding (metadata `valid`) cut off."""
        shape = real_shape(v, self.layers(path))
        return tuple(shape[i] for i in _order(path, len(shape)))


def real_shape(v, stacked: bool) -> tuple[int, ...]:
    """Shape of one layer of a variable without its padding."""
    return tuple(v.get_metadata().get("valid") or v.shape[1 if stacked else 0 :])


def _order(path: Sequence[str], ndim: int) -> tuple[int, ...]:
    return _FILE_ORDER[ndim] if path[-1] == "kernel" else tuple(range(ndim))


def local_folder(
    path_or_hub_id: str | Path, revision: str | None = None, allow: Sequence[str] = ("*.json", "*.safetensors")
) -> Path:
    """A local folder as it is, a copy of one in a bucket (`gs://...`), or the snapshot of a hub id: the files that
    `allow` names only, no code. Raises FileNotFoundError."""
    if "://" in str(path_or_hub_id):
        return _copied(str(path_or_hub_id).rstrip("/"), allow)
    if Path(path_or_hub_id).is_dir():
        return Path(path_or_hub_id)
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(path_or_hub_id)):
        raise FileNotFoundError(f"{path_or_hub_id} is neither a folder nor a hub id (owner/name)")
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(str(path_or_hub_id), revision=revision, allow_patterns=list(allow)))


def _copied(url: str, allow: Sequence[str]) -> Path:
    """The copy of a bucket's folder on this machine's disk, by what stands there: it is made once."""
    there, files = epath.Path(url), []
    folders = [there] if there.is_dir() else []
    while folders:
        for one in folders.pop().iterdir():
            name = str(one).removeprefix(str(there)).strip("/")
            if one.is_dir():
                folders.append(one)
            elif any(fnmatch.fnmatch(name, pattern) for pattern in allow):
                files.append((name, one, one.stat()))
    if not files:
        raise FileNotFoundError(f"{url} is no folder with {', '.join(allow)}")
    state = sorted((name, stat.length, stat.mtime) for name, _, stat in files)
    digest = hashlib.sha256(json.dumps([url, state]).encode()).hexdigest()[:16]
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "edit_rl_jax" / "folders" / digest
    target = home / url.rpartition("/")[2]
    if not target.is_dir():
        part = home.with_name(f"{digest}.{os.getpid()}")
        for name, file, _ in files:
            (part / target.name / name).parent.mkdir(parents=True, exist_ok=True)
            with file.open("rb") as source, (part / target.name / name).open("wb") as out:
                shutil.copyfileobj(source, out, 1 << 24)
        try:
            part.rename(home)
        except OSError:
            shutil.rmtree(part)
            if not target.is_dir():  # no other process was first
                raise
    return target


def flatten(state) -> tuple[list[tuple[str, ...]], list[nnx.Variable], Any]:
    """Paths (attribute names), variables and tree structure of a model state, in one order."""
    flat, tree = jax.tree_util.tree_flatten_with_path(state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    return [tuple(str(k.key) for k in path) for path, _ in flat], [v for _, v in flat], tree


def load(folder: Path, abstract, naming: Naming, shardings=None):
    """Loads every base weight of a model from a folder of safetensors.

    abstract: state with the shapes and dtypes wanted (`nnx.state` / a part of `nnx.split` of `nnx.eval_shape(...)`),
        which must hold all base weights; LoRA leaves in it are handed back as they came.
    shardings: same tree of `jax.sharding.Sharding`; without it, those of `abstract` or else the first device.

    Returns the state with arrays of `abstract`'s dtypes, padding zero. Each process reads only the slices that its
    devices hold. Peak host memory is the arrays plus about one stacked tensor, largest first. Raises WeightsError
    naming the tensors that are unknown, missing, doubled or misshapen, before anything is read.
    """
    paths, variables, tree = flatten(abstract)
    places = placements(variables, shardings)
    found = _by_name(folder, naming)
    todo = [i for i, p in enumerate(paths) if p[-1] not in LORA]
    _check(folder, [(paths[i], variables[i]) for i in todo], found, naming)
    default = SingleDeviceSharding(jax.local_devices()[0])
    todo.sort(key=lambda i: -variables[i].size)
    for i in tqdm(todo, desc="weights", unit="tensor", disable=None):
        path, v = paths[i], variables[i]
        tensors = [found[n] for n in naming.sources(path, v.shape)]
        variables[i] = v.replace(_read(path, tensors, v, places[i] or default, naming))
    return jax.tree.unflatten(tree, variables)


def placements(variables: list, shardings) -> list:
    """The sharding of each variable, in order: from a tree of shardings, else the variable's own, else None."""
    if shardings is None:
        return [getattr(v.get_value(), "sharding", None) for v in variables]
    return jax.tree.leaves(shardings, is_leaf=lambda x: isinstance(x, jax.sharding.Sharding))


def _by_name(folder: Path, naming: Naming) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for t in naming.convert(open_folder(folder, naming.stem)):
        name = naming.canonical(t.name)
        if name in found:
            raise WeightsError(f"{folder}: doubled: {t.name} and {found[name].name} are the same weight")
        found[name] = t
    return found


def _check(folder: Path, leaves: list[tuple[tuple[str, ...], Any]], found: dict[str, Tensor], naming: Naming) -> None:
    wanted = {name: naming.file_shape(path, v) for path, v in leaves for name in naming.sources(path, v.shape)}
    folded = {name for path, v in leaves if naming.folded(path) for name in naming.sources(path, v.shape)}
    for name, other in naming.tied:  # of a tied pair either may be the one that was saved
        if other in wanted and name not in wanted and name in found and other not in found:
            found[other] = found.pop(name)
    problems = []
    if missing := wanted.keys() - found.keys():
        problems.append(f"missing: {listing(missing)}")
    unknown = {n for n in found.keys() - wanted.keys() if not re.match(naming.optional, n)}
    for name, other in naming.tied:
        if name in unknown and other in found:
            unknown.remove(name)
            if not same(found[name], found[other]):
                problems.append(f"{name} differs from the embedding although the config ties them")
    if unknown:
        problems.append(f"unknown: {listing(found[n].name for n in unknown)}")
    flat = lambda t, name: (t.shape[0], int(np.prod(t.shape[1:]))) if name in folded else t.shape
    if bad := {n for n in wanted.keys() & found.keys() if flat(found[n], n) != wanted[n]}:
        problems.append("misshapen: " + listing(f"{found[n].name} {found[n].shape}, not {wanted[n]}" for n in bad))
    if problems:
        raise WeightsError(f"{folder}: " + "; ".join(problems))


def same(a: Tensor, b: Tensor, rows: int = 4096) -> bool:
    """Whether two tensors hold the same numbers, whatever dtypes they are stored in."""
    if a.shape != b.shape or not a.shape:
        return False
    wide = np.float64 if np.float64 in (a.dtype, b.dtype) else np.float32  # holds the values of both exactly
    chunks = (np.s_[i : i + rows] for i in range(0, a.shape[0], rows))
    return all(np.array_equal(a.read(c).astype(wide), b.read(c).astype(wide), equal_nan=True) for c in chunks)


def _read(path, tensors: list[Tensor], v, sharding, naming: Naming) -> jax.Array:
    shape, stacked, flat = tuple(v.shape), naming.layers(path), naming.folded(path)
    real = real_shape(v, stacked)
    order = _order(path, len(real))

    def piece(index: tuple[slice, ...]) -> np.ndarray:
        out = np.zeros([len(range(*s.indices(n))) for s, n in zip(index, shape)], v.dtype)
        bounds = [s.indices(n)[:2] for s, n in zip(index, shape)][1 if stacked else 0 :]
        rest = [slice(min(a, n), min(b, n)) for (a, b), n in zip(bounds, real)]  # what is not padding
        inside = tuple(slice(0, s.stop - s.start) for s in rest)
        here = tuple(rest[i] for i in order)
        for tensor, target in zip(tensors[index[0]], out) if stacked else [(tensors[0], out)]:
            part = tensor.read().reshape(tensor.shape[0], -1)[here] if flat else tensor.read(here)
            with np.errstate(over="ignore"):  # what overflows is infinite then, and found
                np.copyto(target[inside], part.transpose(np.argsort(order)), casting="unsafe")
            if not is_finite(target):
                raise WeightsError(f"{tensor.file}: {tensor.name} holds NaN or infinity as {np.dtype(v.dtype).name}")
        return out

    # without the wait a busy host holds the copies of several tensors at once
    return jax.block_until_ready(jax.make_array_from_callback(shape, sharding, piece))


_EXPONENT = {2: {"bfloat16": 0x7F80, "float16": 0x7C00}, 4: {"float32": 0x7F800000}}


def is_finite(x: np.ndarray, chunk: int = 2**22) -> bool:
    """Whether no number is NaN or infinite; fast for bf16 too, in little memory. x: contiguous."""
    mask = _EXPONENT.get(x.itemsize, {}).get(x.dtype.name)
    if mask is None:
        return bool(np.isfinite(x).all())
    bits = x.reshape(-1).view(f"u{x.itemsize}")
    return all(((bits[i : i + chunk] & mask) != mask).all() for i in range(0, bits.size, chunk))


def check_finite(state, dtype: Any = None) -> None:
    """Raises WeightsError naming the weights of a state that are not finite in the dtype that they are written in
    (default: their own). Looks at them where they are; every process must call."""
    paths, variables, _ = flatten(state)
    bad = [
        ".".join(p)
        for p, v in zip(paths, variables)
        if not bool(_all_finite(v.get_value(), np.dtype(dtype or v.dtype)))
    ]
    if bad:
        raise WeightsError(f"weights that are NaN or infinite are not exported: {listing(bad)}")


@partial(jax.jit, static_argnums=1)
def _all_finite(x: jax.Array, dtype: np.dtype) -> jax.Array:
    return jnp.isfinite(x.astype(dtype)).all()


def save(
    state,
    config: dict[str, Any] | None,
    folder: str | Path,
    naming: Naming,
    *,
    dtype: Any = None,
    max_shard_bytes: int = 4 * 10**9,
    unflat: tuple[int, ...] = (),
) -> Path:
    """Writes config.json and safetensors, sharded above `max_shard_bytes`; the inverse of `load`.

    state: all base weights, on any mesh; every process must call, the first one writes. config: of config.json,
    None = none is written.
    dtype: of the files, default each weight's own. unflat: shape [in, ...] of one filter of `naming.flat`.
    Raises WeightsError if the state holds LoRA leaves (`peft.merge` first, or `peft.save` the adapter) or numbers that
    are not finite, or if the naming is not for writing, before anything is written.
    """
    if naming.unwritten:
        raise WeightsError(f"{folder}: not written: {naming.unwritten}")
    folder, lead = Path(folder), jax.process_index() == 0
    paths, variables, _ = flatten(state)
    if adapters := [".".join(p) for p in paths if p[-1] in LORA]:
        raise WeightsError(f"not base weights, merge or save them as an adapter: {listing(adapters)}")
    check_finite(state, dtype)
    pieces = [  # (name, variable, layer, path) of each file tensor, in the order of names
        (naming.written(name), v, layer if naming.layers(p) else None, p)
        for p, v in zip(paths, variables)
        for layer, name in enumerate(naming.sources(p, v.shape))
    ]
    shards: list[list] = [[]]
    room = max_shard_bytes
    for item in sorted(pieces, key=lambda x: [int(s) if s.isdigit() else s for s in re.split(r"(\d+)", x[0])]):
        v = item[1]
        size = int(np.prod(naming.file_shape(item[3], v))) * np.dtype(dtype or v.dtype).itemsize
        if size > room and shards[-1]:
            shards.append([])
            room = max_shard_bytes
        shards[-1].append(item)
        room -= size
    stem, index = naming.stem, folder / f"{naming.stem}.safetensors.index.json"
    if lead:
        folder.mkdir(parents=True, exist_ok=True)
        for old in [*folder.glob(f"{stem}*.safetensors"), index, *([folder / "config.json"] if config else [])]:
            old.unlink(missing_ok=True)
    n = len(shards)
    names = [f"{stem}{f'-{i + 1:05}-of-{n:05}' if n > 1 else ''}.safetensors" for i in range(n)]
    place, total = {}, 0
    for file, items in zip(names, shards):
        tensors = {}
        for name, v, layer, path in items:
            value = file_value(path, v, layer)
            value = value.reshape(-1, *unflat) if naming.folded(path) else value
            tensors[name] = np.ascontiguousarray(value, dtype=np.dtype(dtype or v.dtype))
            place[name], total = file, total + tensors[name].nbytes
        if lead:
            safetensors.numpy.save_file(tensors, folder / file, metadata={"format": "pt"})
    if lead:
        if n > 1:
            index.write_text(json.dumps({"metadata": {"total_size": total}, "weight_map": place}, indent=2) + "\n")
        if config is not None:
            (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    return folder


def file_value(path: Sequence[str], v, layer: int | None) -> np.ndarray:
    """A leaf, or one layer of a stacked one, as its tensor in files: transposed, padding cut off. All must call."""
    value = host_value(v.get_value() if layer is None else v.get_value()[layer])
    value = value[tuple(slice(n) for n in real_shape(v, layer is not None))]
    return value.transpose(_order(path, value.ndim))


def host_value(x: jax.Array) -> np.ndarray:
    """The whole of an array on this host, whatever devices and processes hold it."""
    return np.asarray(x if x.is_fully_addressable else multihost_utils.process_allgather(x, tiled=True))


def copy_files(source: str | Path | None, folder: Path, names: Sequence[str]) -> None:
    """Copies the files of those names that are in `source`; nothing without one."""
    for name in names if source is not None and Path(source) != folder else ():
        if (Path(source) / name).exists():
            shutil.copyfile(Path(source) / name, folder / name)
