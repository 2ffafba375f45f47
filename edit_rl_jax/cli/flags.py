"""What the flags of judges and of editors share."""

import dataclasses
import types
import typing
from typing import Any

from edit_rl_jax.ranges import flag
from edit_rl_jax.sharding import MESH_AXES


def mesh_shape(text: str) -> dict[str, int]:
    """Reads "fsdp=4,tensor=2" as a mapping; -1 takes the devices that are left. Raises ValueError."""
    shape = {k: int(v) for k, _, v in (part.partition("=") for part in text.split(","))}
    if not set(shape) <= set(MESH_AXES):
        raise ValueError(f"axes are {MESH_AXES}")
    return shape


def add_options(group: Any, options: type, before: str = "") -> None:
    """Adds a flag for each field of a dataclass of settings: its type, default, choices and help. before: with which
    the flags' names begin, those of the values do not."""
    hints = typing.get_type_hints(options)
    for field in dataclasses.fields(options):
        kind, told = hints[field.name], dict(default=field.default, help=field.metadata.get("help") or None)
        if typing.get_origin(kind) in (typing.Union, types.UnionType):
            kind = next(k for k in typing.get_args(kind) if k is not type(None))
        if kind is bool:
            told["action"] = "store_true"
        elif typing.get_origin(kind) is typing.Literal:
            told["choices"] = [c for c in typing.get_args(kind) if c]
        else:
            told["type"] = flag(kind, allowed) if (allowed := field.metadata.get("allowed")) else kind
        group.add_argument(f"--{before}{field.name.replace('_', '-')}", dest=field.name, **told)
