"""What the flags of judges and of editors share."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from edit_rl_jax.nn.model_files import METADATA
from edit_rl_jax.sharding import MESH_AXES

FILES = ("*.safetensors", "*.safetensors.index.json", "*config.json", "tokenizer.json", METADATA)


def mesh_shape(text: str) -> dict[str, int]:
    """Reads "fsdp=4,tensor=2" as a mapping; -1 takes the devices that are left. Raises ValueError."""
    shape = {k: int(v) for k, _, v in (part.partition("=") for part in text.split(","))}
    if not set(shape) <= set(MESH_AXES):
        raise ValueError(f"axes are {MESH_AXES}")
    return shape


def digest(folder: Path, more: Iterable[Path] = (), then: str = "") -> str:
    """Hashes names and contents of a folder's files that decide what its model does; `more` files, and a text after."""
    digest = hashlib.sha256()
    for path in sorted({p for pattern in FILES for p in folder.glob(pattern)} | set(more)):
        blob = path.resolve().name  # the hub's cache names large files by their SHA-256
        if path.is_symlink() and len(blob) == 64:
            sha256 = blob
        else:
            with path.open("rb") as file:
                sha256 = hashlib.file_digest(file, "sha256").hexdigest()
        digest.update(f"{path.name} {sha256}\n".encode())
    digest.update(then.encode())
    return digest.hexdigest()
