"""Parts of the check of a config: keys and their hints, types, choices, ranges, the forms of buckets and meshes."""

from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax.names import ConfigError, nearest
from edit_rl_jax.ranges import problem

# The numbers of a bucket of `data.buckets` by kind of model; those of other kinds only must not be negative.
LARGEST = 2**24
AXIS = "-1 or [1, 1048576]"
BUCKETS = {
    "qwen2_5_vl": {"tokens": 1, "vision rows": 1, "patch slots a vision row": 1, "answer tokens": 1},
    "omnigen2": {"text tokens": 1, "references": 0, "height": 1, "width": 1},
    "autoencoder": {"text tokens": 0, "references": 0, "height": 1, "width": 1},
}


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, leaf value)."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and key not in ("mesh_presets", "options"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value.to_dict() if isinstance(value, ConfigDict) else value


def check_values(
    config: ConfigDict, defaults: ConfigDict, ranges: Mapping[str, str], choices: Mapping[str, tuple[str, ...]]
) -> None:
    """Raises ConfigError where a key of `defaults` is missing or its sections have another, and where a value is not of
    the default's type, no choice of `choices`, or not in its range of `ranges`."""
    flat, known = dict(flatten(config)), dict(flatten(defaults))
    sections = {key.partition(".")[0] for key in known}
    for key in flat:  # a section of one's own, for an objective or model of one's own, is left alone
        if key not in known and (key.partition(".")[0] in sections or "." not in key):
            raise ConfigError(f"no config key '{key}'{nearest(key, list(known))}")
    for key, old in known.items():
        if key not in flat:
            raise ConfigError(f"config key '{key}' is missing: set single keys of a section, not the whole")
        value, kinds = flat[key], {float: (float, int), tuple: (tuple, list)}.get(type(old), (type(old),))
        if not isinstance(value, kinds) or isinstance(value, bool) and not isinstance(old, bool):
            raise ConfigError(f"config key '{key}' takes {type(old).__name__}, got {type(value).__name__} {value}")
        if key in choices and value not in choices[key]:
            raise ConfigError(f"config key '{key}' is one of {', '.join(choices[key])}; got '{value}'")
        if key in ranges and (wrong := problem(value, ranges[key])):
            raise ConfigError(f"config key '{key}' {wrong}")


def check_buckets(buckets: Any, kind: str) -> None:
    """Raises ConfigError for a `data.buckets` that models of that kind cannot take, whatever their geometry."""
    least = BUCKETS.get(kind, dict.fromkeys(("1st number", "2nd number", "3rd number", "4th number"), 0))
    form = f"config key 'data.buckets' holds 1 to 8 entries ({', '.join(least)}), as ((512, 1, 256, 64),)"
    numbers = lambda b: isinstance(b, (tuple, list)) and len(b) == 4 and all(type(n) is int for n in b)
    if not 1 <= len(buckets) <= 8 or not all(map(numbers, buckets)):
        raise ConfigError(f"{form}; got {buckets}")
    for bucket in buckets:
        for number, (name, low) in zip(bucket, least.items()):
            if wrong := problem(number, f"[{low}, {LARGEST}]"):
                raise ConfigError(f"config key 'data.buckets': {name} of {tuple(bucket)} {wrong}")
        if kind == "qwen2_5_vl" and bucket[3] > bucket[0]:
            raise ConfigError(f"config key 'data.buckets': more answer tokens than tokens in {tuple(bucket)}")
    if len(set(map(tuple, buckets))) < len(buckets):
        raise ConfigError(f"config key 'data.buckets' holds an entry twice: {buckets}")


def check_mesh(key: str, mesh: Any) -> None:
    """Raises ConfigError for a mesh that no devices could have, or for what is no {axis: size}."""
    if not isinstance(mesh, dict):
        raise ConfigError(f"config key '{key}' gives the axes data, fsdp and tensor whole numbers, got {mesh}")
    for axis, size in mesh.items():
        if axis not in ("data", "fsdp", "tensor") or type(size) is not int:
            raise ConfigError(
                f"config key '{key}' gives the axes data, fsdp and tensor whole numbers, got {dict(mesh)}"
            )
        if wrong := problem(size, AXIS):
            raise ConfigError(f"config key '{key}.{axis}' {wrong}")
    if list(mesh.values()).count(-1) > 1:
        raise ConfigError(f"config key '{key}': -1 is what the others leave, on one axis only; got {dict(mesh)}")
