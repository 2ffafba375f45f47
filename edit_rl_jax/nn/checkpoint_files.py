"""Folders of safetensors files: which tensor lies where, and slices of one without keeping its file in memory."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
STEM = "model"
INDEX, SINGLE = f"{STEM}.safetensors.index.json", f"{STEM}.safetensors"


class WeightsError(ValueError):
    """A checkpoint that does not fit the model; the message names every tensor concerned (the first 20)."""


def listing(names) -> str:
    names = sorted(names)
    return ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


@dataclasses.dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file. `name` is as in the file."""

    name: str
    file: Path
    shape: tuple[int, ...]
    dtype: Any
    offset: int

    def read(self, index=()) -> np.ndarray:
        """Copy of `tensor[index]`. The file is mapped for this call only, so its pages leave the resident memory."""
        mapped = np.memmap(self.file, mode="r", dtype=self.dtype, offset=self.offset, shape=self.shape)
        return np.array(mapped[index])


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises WeightsError for a damaged or truncated file or an unknown dtype."""
    return read_file(file)[0]


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one safetensors file and its metadata. Raises as `read_header`."""
    size = file.stat().st_size
    with file.open("rb") as f:
        length = int.from_bytes(f.read(8), "little")
        if not 2 <= length <= min(size - 8, 100 * 2**20):
            raise WeightsError(
                f"{file}: not a safetensors file, or truncated (header of {length} bytes, file of {size})"
            )
        try:
            header = json.loads(f.read(length), object_pairs_hook=_unique)
        except ValueError as e:
            raise WeightsError(f"{file}: damaged header: {e}") from e
    tensors, metadata = {}, header.pop("__metadata__", {})
    for name, info in header.items():
        if info["dtype"] not in _DTYPES:
            raise WeightsError(f"{file}: {name} has dtype {info['dtype']}; readable are {', '.join(_DTYPES)}")
        shape, dtype = tuple(info["shape"]), np.dtype(_DTYPES[info["dtype"]])
        start, stop = (8 + length + o for o in info["data_offsets"])
        if (
            stop - start != int(np.prod(shape, dtype=np.int64)) * dtype.itemsize
            or not 8 + length <= start <= stop <= size
        ):
            raise WeightsError(f"{file}: {name} {shape} does not lie within the file (bytes {start}-{stop} of {size})")
        tensors[name] = Tensor(name, file, shape, dtype, start)
    return tensors, metadata


def _unique(pairs):
    names = [k for k, _ in pairs]
    if len(set(names)) < len(names):
        raise ValueError(f"doubled entries: {listing({n for n in names if names.count(n) > 1})}")
    return dict(pairs)


def open_folder(folder: Path, stem: str = STEM) -> list[Tensor]:
    """All tensors of `{stem}.safetensors`, or of the shards that `{stem}.safetensors.index.json` names.

    Raises WeightsError when there is neither or both, or when the index and the shards disagree.
    """
    index, single = folder / f"{stem}.safetensors.index.json", folder / f"{stem}.safetensors"
    if index.exists() == single.exists():
        raise WeightsError(f"{folder}: {'both' if single.exists() else 'neither'} {single.name} and {index.name}")
    if single.exists():
        return list(read_header(single).values())
    place = json.loads(index.read_text(), object_pairs_hook=_unique)["weight_map"]
    gone = {f for f in place.values() if Path(f).name != f or not (folder / f).exists()}
    if gone:
        raise WeightsError(f"{folder}: the index names shards that are not there: {listing(gone)}")
    shards = {f: read_header(folder / f) for f in sorted(set(place.values()))}
    if lost := {n for n, f in place.items() if n not in shards[f]}:
        raise WeightsError(f"{folder}: the index names tensors missing from their shard: {listing(lost)}")
    if extra := {n for f, ts in shards.items() for n in ts if place.get(n) != f}:
        raise WeightsError(f"{folder}: tensors unknown to the index, or doubled in another shard: {listing(extra)}")
    return [t for ts in shards.values() for t in ts.values()]
