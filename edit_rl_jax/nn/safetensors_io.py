"""Folders of safetensors files: which tensor lies where, and slices of one without keeping its file in memory."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import ml_dtypes
import numpy as np

from edit_rl_jax import json_files

_DTYPES = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": ml_dtypes.bfloat16}
_COUNTS = {"I64": np.int64, "I32": np.int32, "U8": np.uint8, "BOOL": np.bool_}  # buffers that no weight is read from
STEM = "model"
INDEX, SINGLE = f"{STEM}.safetensors.index.json", f"{STEM}.safetensors"


class WeightsError(ValueError):
    """A model folder that is damaged or does not fit the model. The message is one line, names the file and every
    tensor concerned (the first 20)."""

    def __init__(self, message: str):
        shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in message[:4000])  # names come from the file
        super().__init__(shown)


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

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self, index=()) -> np.ndarray:
        """Copy of `tensor[index]`. The file is mapped for this call only, so its pages leave the resident memory.

        Raises WeightsError for whole numbers: no weight is stored so.
        """
        if self.dtype in map(np.dtype, _COUNTS.values()):
            raise WeightsError(f"{self.file}: {self.name} has dtype {self.dtype}; readable are {', '.join(_DTYPES)}")
        if not self.nbytes:  # nothing can be mapped
            return np.zeros(self.shape, self.dtype)[index]
        mapped = np.memmap(self.file, mode="r", dtype=self.dtype, offset=self.offset, shape=self.shape)
        return np.array(mapped[index])


def read_header(file: Path) -> dict[str, Tensor]:
    """The tensors of one safetensors file. Raises WeightsError for a damaged or truncated file or an unknown dtype."""
    return read_file(file)[0]


def read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of one safetensors file and its metadata. Raises as `read_header`."""
    try:
        size = file.stat().st_size
        with file.open("rb") as f:
            length = int.from_bytes(f.read(8), "little")
            if not 2 <= length <= min(size - 8, 100 * 2**20):
                raise WeightsError(
                    f"{file}: not a safetensors file, or truncated (header of {length} bytes, file of {size})"
                )
            text = f.read(length)
    except OSError as e:
        raise WeightsError(f"{file}: {e.strerror or e}") from None
    try:
        header = json_files.loads(text, f"{file}: damaged header")
    except json_files.JSONError as e:
        raise WeightsError(str(e)) from None
    if not isinstance(header, dict):
        raise WeightsError(f"{file}: damaged header: an object wanted, not {type(header).__name__}")
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise WeightsError(f"{file}: damaged header: __metadata__ is no object of texts")
    tensors = {name: _tensor(file, name, info, 8 + length, size) for name, info in header.items()}
    at, before = 8 + length, "the header"  # no byte belongs to two tensors, or to none
    for t in sorted(tensors.values(), key=lambda t: (t.offset, t.nbytes)):
        if t.offset != at:
            what = "shares bytes with" if t.offset < at else "is not stored right after"
            raise WeightsError(f"{file}: damaged header: {t.name} {what} {before}")
        at, before = at + t.nbytes, t.name
    if at != size:
        raise WeightsError(f"{file}: {size - at} bytes after the last tensor belong to none")
    return tensors, metadata


def write_file(file: Path, tensors: Sequence[tuple[str, Any, tuple[int, ...], Callable[[], np.ndarray]]]) -> None:
    """Writes one safetensors file of (name, dtype, shape, what gives the numbers), one tensor in memory at a time."""
    header, at = {"__metadata__": {"format": "pt"}}, 0
    kinds = {np.dtype(v): k for k, v in _DTYPES.items()}
    for name, dtype, shape, _ in tensors:
        size = math.prod(shape) * np.dtype(dtype).itemsize
        header[name] = {"dtype": kinds[np.dtype(dtype)], "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with file.open("wb") as f:
        f.write(len(text).to_bytes(8, "little") + text)
        for name, dtype, shape, give in tensors:
            value = np.ascontiguousarray(give(), np.dtype(dtype))
            assert value.shape == tuple(shape), (name, value.shape, shape)
            f.write(value.view(np.uint8).data)


def _tensor(file: Path, name: str, info: Any, data: int, size: int) -> Tensor:
    whole = lambda x, n: isinstance(x, list) and len(x) <= n and all(type(i) is int and 0 <= i < 2**63 for i in x)
    if not isinstance(info, dict) or not info.keys() >= {"dtype", "shape", "data_offsets"}:
        raise WeightsError(f"{file}: damaged header: {name} lacks dtype, shape or data_offsets")
    kind, shape, offsets = info["dtype"], info["shape"], info["data_offsets"]
    if not whole(shape, 64) or not whole(offsets, 2) or len(offsets) != 2:
        raise WeightsError(f"{file}: damaged header: shape or data_offsets of {name} are no whole numbers")
    known = _DTYPES | _COUNTS
    if not isinstance(kind, str) or kind not in known:
        raise WeightsError(f"{file}: {name} has dtype {str(kind)[:40]}; readable are {', '.join(_DTYPES)}")
    start, stop = (data + o for o in offsets)
    found = Tensor(name, file, tuple(shape), np.dtype(known[kind]), start)
    if stop - start != found.nbytes or not data <= start <= stop <= size:
        said = str(found.shape)[:80]
        raise WeightsError(f"{file}: {name} {said} does not lie within the file (bytes {start}-{stop} of {size})")
    return found


def open_folder(folder: Path, stem: str = STEM) -> list[Tensor]:
    """All tensors of `{stem}.safetensors`, or of the shards that `{stem}.safetensors.index.json` names.

    Of both, the single file is taken, as transformers does. Shards may lie in folders below, never elsewhere. Raises
    WeightsError when there is neither, or when the index and the shards disagree.
    """
    single = folder / f"{stem}.safetensors"
    if single.exists():
        return list(read_header(single).values())
    place = _weight_map(folder, stem)
    if gone := {f for f in place.values() if not (folder / f).is_file()}:
        raise WeightsError(f"{folder}: the index names shards that are not there: {listing(gone)}")
    shards = {f: read_header(folder / f) for f in sorted(set(place.values()))}
    if lost := {n for n, f in place.items() if n not in shards[f]}:
        raise WeightsError(f"{folder}: the index names tensors missing from their shard: {listing(lost)}")
    if extra := {n for f, ts in shards.items() for n in ts if place.get(n) != f}:
        raise WeightsError(f"{folder}: tensors unknown to the index, or doubled in another shard: {listing(extra)}")
    return [t for ts in shards.values() for t in ts.values()]


def weight_files(folder: Path, stem: str = STEM) -> list[Path]:
    """The safetensors files that `open_folder` reads, sorted. Raises as it does for the index."""
    single = folder / f"{stem}.safetensors"
    return [single] if single.exists() else sorted({folder / f for f in _weight_map(folder, stem).values()})


def _weight_map(folder: Path, stem: str) -> dict[str, str]:
    index = folder / f"{stem}.safetensors.index.json"
    if not index.exists():
        raise WeightsError(f"{folder}: neither {stem}.safetensors nor {index.name}")
    try:
        place = json_files.read_object(index).get("weight_map")
    except json_files.JSONError as e:
        raise WeightsError(str(e)) from None
    except OSError as e:
        raise WeightsError(f"{index}: {e.strerror or e}") from None
    if not isinstance(place, dict) or not place or not all(isinstance(f, str) for f in place.values()):
        raise WeightsError(f"{index}: weight_map is no object that names the shard of each tensor")
    if outside := {f for f in place.values() if not _inside(f)}:
        raise WeightsError(f"{index}: weight_map leads out of the folder, or to no shard: {listing(outside)}")
    return place


def _inside(name: str) -> bool:
    path = PurePosixPath(name)
    plain = not path.is_absolute() and ".." not in path.parts and "\\" not in name and "\0" not in name
    return plain and len(name) < 1024 and name.endswith(".safetensors")
