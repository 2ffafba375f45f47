"""Reads the small files of a model folder with every value checked, and keeps the SHA-256 of an export's files.

An export's `edit_rl.json` lists the SHA-256 of the files beside it, under `sha256`, and one of its own content, under
`self_sha256`. `python -m edit_rl_jax.nn.model_files FOLDER` lists them anew, after a change that was meant. No JAX.
"""

import dataclasses
import hashlib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from etils import epath

from edit_rl_jax import json_files
from edit_rl_jax.nn.safetensors_io import INDEX, WeightsError, listing, weight_files

METADATA = "edit_rl.json"  # what inference must share with training, and the hashes
FILES, SELF = "sha256", "self_sha256"
MADE_BY = f"edit_rl_jax, see {METADATA}"  # in preprocessor_config.json: says that the other file must be there
INLINE = "config key 'model.config'"  # where a config may stand as text
OFF = "EDIT_RL_VERIFY"  # environment variable; "0": hashes are not compared
_DECIDE = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer.json", METADATA)
# what a loader reads where it finds it: in an export none of these may stand beside the list
_READ = set(
    "config.json adapter_config.json preprocessor_config.json tokenizer.json tokenizer_config.json vocab.json "
    "merges.txt special_tokens_map.json added_tokens.json scheduler_config.json".split()
)


def read_json(path: Any) -> dict[str, Any]:
    """The object in a JSON file. Raises WeightsError, one line that names the file, also where there is none."""
    try:
        return json_files.read_object(epath.Path(path))
    except json_files.JSONError as e:
        raise WeightsError(str(e)) from None
    except OSError as e:
        raise WeightsError(f"{path}: {e.strerror or e}") from None


def read_config(source: Any, name: str = "config.json") -> tuple[Mapping[str, Any], str]:
    """(content, what messages call it) of a config: a mapping, JSON text, a file, or a folder that holds `name`."""
    if isinstance(source, Mapping):
        return source, "config"
    if isinstance(source, str) and source.lstrip().startswith("{"):
        try:
            return json_files.loads(source, INLINE), INLINE
        except json_files.JSONError as e:
            raise WeightsError(str(e)) from None
    path = epath.Path(source)
    path = path / name if path.is_dir() else path
    return read_json(path), str(path)


def checked(value: Any, kind: str, where: str, low: float = 1, high: float = 2**20) -> Any:
    """A JSON value that is what a config declares, lists as tuples. Raises WeightsError that begins with `where`.

    kind: as dataclasses write types: "int", "float", "bool" or "str", with "tuple[int, ...]" and "| None" beside them.
    low, high: of numbers.
    """
    kinds = [k.strip() for k in kind.split("|")]
    if value is None and "None" in kinds:
        return None
    if isinstance(value, list | tuple):
        item = next((k[6:].split(",")[0] for k in kinds if k.startswith("tuple[")), "")
        if item and len(value) <= 1024 and (value or item not in kinds):
            return tuple(checked(v, item, where, low, high) for v in value)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and ("int" in kinds and isinstance(value, int) or "float" in kinds):
        if low <= value <= high:  # before a huge integer is made a float
            return float(value) if "float" in kinds else value
        raise WeightsError(f"{where} is {short(value)}, not {low:g} to {high:g}")
    if ("bool" in kinds and isinstance(value, bool)) or ("str" in kinds and isinstance(value, str)):
        return value
    names = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text", "None": "null"}
    wanted = " or ".join(names.get(k, "a list of " + k[6:].split(",")[0]) for k in kinds)
    raise WeightsError(f"{where} is {short(value)}, not {wanted}")


def short(value: Any) -> str:
    """A JSON value as a message shows it, on one line."""
    try:
        text = json.dumps(value, ensure_ascii=True)
    except ValueError:  # an integer of more digits than Python writes
        text = "a huge number"
    return text if len(text) <= 40 else text[:37] + "..."


def fields(
    cls: type,
    given: Mapping[str, Any],
    prefix: str,
    bounds: Mapping[str, tuple[float, float]],
    skip: Sequence[str] = (),
) -> dict[str, Any]:
    """The entries of a config that are fields of the dataclass `cls` (annotations as text), each checked.

    prefix: of the names in messages, the file first. bounds: lowest and highest number of a field, where they are not 1
    and 2^20. Raises as `checked`.
    """
    kinds = {f.name: f.type for f in dataclasses.fields(cls) if f.name not in skip}
    return {k: checked(given[k], kind, prefix + k, *bounds.get(k, ())) for k, kind in kinds.items() if k in given}


def section(config: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    """The object under a key, {} where there is none or null. Raises WeightsError for anything else."""
    found = config.get(key)
    if not isinstance(found, Mapping | None):
        raise WeightsError(f"{where.rstrip(': .')}: {key} is {short(found)}, not an object")
    return found or {}


# -- SHA-256 -----------------------------------------------------------------------------------------------------------


def stamp(folder: str | Path, metadata: Mapping[str, Any] | None = None) -> None:
    """Writes `edit_rl.json`: `metadata` (default: what it says already) and the SHA-256 of every file of the folder but
    the model card. To be called last, by one process."""
    folder = Path(folder)
    found = dict(metadata if metadata is not None else stored_metadata(folder))
    names = [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*")) if p.is_file()]
    names = [n for n in names if n != METADATA and not n.endswith("README.md")]
    found[FILES] = dict(zip(names, _hashes(folder, names)))
    found[SELF] = _own_hash(found)
    part = folder / f"{METADATA}.partial"
    part.write_text(json.dumps(found, indent=2) + "\n")
    part.replace(folder / METADATA)


def stored_metadata(folder: str | Path) -> dict[str, Any]:
    """The `edit_rl.json` of a model folder without its hashes; {} where there is none (a plain Hugging Face model)."""
    path = Path(folder) / METADATA
    return {k: v for k, v in read_json(path).items() if k not in (FILES, SELF)} if path.exists() else {}


def revision(folder: Path | None) -> str:
    """Says what a base is, whether or not the config does: the commit of a hub snapshot, else "sha256:" and 16 hex
    digits over configs, indices and the names and sizes of the weight files; "" for None."""
    if folder is None or folder.parent.name == "snapshots":  # the hub cache's .../snapshots/COMMIT
        return folder.name if folder else ""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "config.json" or path.name.endswith(".safetensors.index.json"):
            digest.update(name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(f"{name} {path.stat().st_size}".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def verify(folder: str | Path, on: bool = True) -> None:
    """Compares a folder's files with the SHA-256 in its `edit_rl.json`, each read once, several at a time; a folder
    without hashes (of another maker, or old) passes.

    on: False, or EDIT_RL_VERIFY=0 in the environment: nothing is compared, for folders that are too large to be read
    twice. Raises WeightsError that names the files that differ, are missing, or stand beside the list.
    """
    folder = Path(folder)
    path = folder / METADATA
    if not folder.is_dir():  # a single file
        return
    if not on or os.environ.get(OFF) == "0":
        return
    stored = read_json(path) if path.exists() else {}
    if FILES not in stored and SELF not in stored:
        told = folder / "preprocessor_config.json"
        if told.exists() and read_json(told).get("made_by") == MADE_BY:
            raise _altered(folder, f"{METADATA} is missing, or its hashes")
        return
    if stored.get(SELF) != _own_hash(stored) or not isinstance(stored[FILES], dict):
        raise _altered(folder, f"{METADATA} is not as it was written")
    names = sorted(stored[FILES])
    if gone := [n for n in names if not (folder / n).is_file()]:
        raise _altered(folder, f"missing: {listing(gone)}")
    homes = {(folder / n).parent for n in names} | {folder}
    beside = [p for home in homes for p in home.iterdir() if p.name in _READ or ".safetensors" in p.name]
    if more := {p.relative_to(folder).as_posix() for p in beside} - set(names):
        raise _altered(folder, f"not of this export: {listing(more)}")
    if wrong := [n for n, found in zip(names, _hashes(folder, names)) if found != stored[FILES][n]]:
        raise _altered(folder, f"not as exported (SHA-256 differs): {listing(wrong)}")


def _altered(folder: Path, what: str) -> WeightsError:
    ways = f"{OFF}=0 in the environment loads it all the same, `python -m {__name__} {folder}` accepts it for good"
    return WeightsError(f"{folder}: {what}. If the change was meant: {ways}")


def _own_hash(stored: Mapping[str, Any]) -> str:
    text = json.dumps({k: v for k, v in stored.items() if k != SELF}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _hashes(folder: Path, names: Sequence[str]) -> list[str]:
    def one(name: str) -> str:
        try:
            with (folder / name).open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as e:
            raise WeightsError(f"{folder / name}: {e.strerror or e}") from None

    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:  # hashing lets other threads run
        return list(pool.map(one, names))


def fingerprint(folder: Path, base: Path | None = None) -> str:
    """SHA-256 over the files of a model folder that decide its answers, and over its base's if it is an adapter."""
    digest = hashlib.sha256()
    found = {p for pattern in _DECIDE for p in folder.glob(pattern)}
    if (folder / INDEX).exists():
        found |= set(weight_files(folder))  # shards may lie in folders below
    for path in sorted(found):
        blob = path.resolve().name  # the hub's cache names large files by their SHA-256
        linked = path.is_symlink() and len(blob) == 64
        sha256 = blob if linked else _hashes(path.parent, [path.name])[0]
        digest.update(f"{path.name} {sha256}\n".encode())
    if base:
        digest.update(fingerprint(base).encode())
    return digest.hexdigest()


def main(argv: Sequence[str]) -> int:
    if len(argv) != 1 or not Path(argv[0]).is_dir():
        sys.exit("usage: python -m edit_rl_jax.nn.model_files FOLDER")
    try:
        stamp(argv[0])
    except (OSError, ValueError) as e:
        sys.exit(str(e))
    print(f"{Path(argv[0]) / METADATA}: hashes written")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
