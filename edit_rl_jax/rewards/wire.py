"""Judgements as JSON and back, without loss: for result caches, recorded predictions and the reward server."""

import dataclasses
import types
import typing
from typing import Any

from edit_rl_jax.rewards.editscore.judge import Judgement


def to_wire(judgement: Judgement) -> dict[str, Any]:
    """`valid` and every field; replies as they were written."""
    return {"valid": judgement.valid, **dataclasses.asdict(judgement)}


def from_wire(stored: Any) -> Judgement:
    """Inverse of `to_wire`. Raises ValueError for anything else."""
    if not isinstance(stored, dict):
        raise ValueError(f"not a judgement: {type(stored).__name__}")
    try:
        fields = {k: v for k, v in stored.items() if k != "valid"}
        judgement = _typed(Judgement, fields)
    except (TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"not a judgement: {error}") from None
    if stored.get("valid") is not judgement.valid:
        raise ValueError("not a judgement: valid and problem disagree")
    return judgement


def _typed(kind: Any, value: Any) -> Any:
    """JSON as an annotation says: tuples, numbers and nested dataclasses."""
    origin, args = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _typed(next(a for a in args if a is not type(None)), value)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise TypeError(f"a list is wanted, not {value!r:.60}")
        kinds = [args[0]] * len(value) if args[-1] is Ellipsis else args
        return tuple(_typed(k, v) for k, v in zip(kinds, value, strict=True))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        if not isinstance(value, dict) or not set(value) <= set(hints):
            raise TypeError(f"{kind.__name__} is wanted, not {value!r:.60}")
        return kind(**{k: _typed(hints[k], v) for k, v in value.items()})
    if kind in (float, int, str, bool):
        if not isinstance(value, float | int if kind is float else kind) or isinstance(value, bool) != (kind is bool):
            raise TypeError(f"{kind.__name__} is wanted, not {value!r:.60}")
        return kind(value)
    return value
