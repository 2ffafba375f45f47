"""Parts of the check of a config: keys and their hints, types, choices, ranges, the forms of buckets and meshes."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax import json_files
from edit_rl_jax.names import ConfigError, nearest
from edit_rl_jax.ranges import problem
from edit_rl_jax.training import interfaces
from edit_rl_jax.training.config_keys import AXIS, REINFORCEMENT, REPLIES, Sections, knobs, no_key, sections

# of `nn.stack.REMAT_POLICIES`: by names of a layer's parts
NAMED = ("attention", "gate", "feed_forward", "gate_up", "offload")
LARGEST = 2**24  # number of a bucket


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, leaf value)."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and key not in ("mesh_presets", "presets", "options"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value.to_dict() if isinstance(value, ConfigDict) else value


def check_values(config: ConfigDict, parts: Sections) -> None:
    """Raises ConfigError where a key of the sections is missing or the config has another in them, and where a value is
    not of the default's type, no choice, or not in its range."""
    flat, known = dict(flatten(config)), {key: (old, allowed) for key, old, allowed in sorted(knobs(parts))}
    tops = {key.partition(".")[0] for key in known}
    if missing := sorted(tops - set(config)):
        made = f"kind='{config.model.kind}', objective='{config.objective}'"
        raise ConfigError(f"the config has no section '{missing[0]}': start from config.default({made})")
    for key in flat:  # a section of one's own is left alone
        if key not in known and (key.partition(".")[0] in tops or "." not in key):
            raise no_key(key, list(known))
    for key, (old, allowed) in known.items():
        if key not in flat:
            raise ConfigError(f"config key '{key}' is missing: set single keys of a section, not the whole")
        old = {} if isinstance(old, ConfigDict) else old
        value, kinds = flat[key], {float: (float, int), tuple: (tuple, list)}.get(type(old), (type(old),))
        if not isinstance(value, kinds) or isinstance(value, bool) and not isinstance(old, bool):
            raise ConfigError(f"config key '{key}' takes {type(old).__name__}, got {type(value).__name__} {value}")
        if isinstance(allowed, tuple) and value not in allowed:
            raise ConfigError(f"config key '{key}' is one of {', '.join(allowed)}; got '{value}'")
        if allowed and isinstance(allowed, str) and (wrong := problem(value, allowed)):
            raise ConfigError(f"config key '{key}' {wrong}")
    if flat.get("model.remat") in NAMED and config.objective == "autoencoder":
        raise ConfigError(f"config key 'model.remat': '{flat['model.remat']}' names parts of a transformer's layer")


def check_buckets(buckets: Any, least: Mapping[str, int]) -> None:
    """Raises ConfigError for a `data.buckets` that models of a kind cannot take, whatever their geometry; least: its
    `BUCKET`."""
    form = f"config key 'data.buckets' holds 1 to 8 entries ({', '.join(least)}), as ((512, 1, 256, 64),)"
    numbers = lambda b: isinstance(b, (tuple, list)) and len(b) == len(least) and all(type(n) is int for n in b)
    if not 1 <= len(buckets) <= 8 or not all(map(numbers, buckets)):
        raise ConfigError(f"{form}; got {buckets}")
    for bucket in buckets:
        for number, (name, low) in zip(bucket, least.items()):
            if wrong := problem(number, f"[{low}, {LARGEST}]"):
                raise ConfigError(f"config key 'data.buckets': {name} of {tuple(bucket)} {wrong}")
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


def check(config: ConfigDict) -> None:
    """Raises ConfigError for values that cannot work, before anything is loaded."""
    check_values(config, sections(config.model.kind, config.objective))
    known = [key for key, _ in flatten(config)]
    check_mesh("mesh", config.mesh.to_dict())
    for name, mesh in config.mesh_presets.items():
        check_mesh(f"mesh_presets.{name}", mesh.to_dict() if isinstance(mesh, ConfigDict) else mesh)
    for name, values in config.presets.items():
        if not isinstance(values, (ConfigDict, dict)):
            raise ConfigError(f"config key 'presets.{name}' takes a part of a config, as {{'rows': 32}}; got {values}")
        if wrong := [key for key, _ in flatten(values) if key not in known]:
            raise ConfigError(f"config key 'presets.{name}': no key '{wrong[0]}'{nearest(wrong[0], known)}")
    if config.topology and config.topology not in config.mesh_presets:
        have = list(config.mesh_presets)
        raise ConfigError(
            f"no mesh preset '{config.topology}'{nearest(config.topology, have)}; presets: {', '.join(have)}"
        )
    m = config.model
    if m.config.lstrip().startswith("{"):
        try:
            json_files.loads(m.config, "config key 'model.config'")
        except json_files.JSONError as e:
            raise ConfigError(str(e)) from None
    if bool(m.init_from) == bool(m.config):
        raise ConfigError("exactly one of config keys 'model.init_from' and 'model.config' must be set")
    if m.get("init_adapter") and not (m.init_from and m.trainable == "lora"):
        raise ConfigError("config key 'model.init_adapter' needs model.trainable=lora and a base in model.init_from")
    profile = re.fullmatch(r"(?:(\d{1,10}):(\d{1,10}))?", config.log.profile_steps)
    if not profile or profile[1] and not 1 <= int(profile[1]) <= int(profile[2]):
        raise ConfigError(
            f"config key 'log.profile_steps' is 'first:last', steps from 1 on, got '{config.log.profile_steps}'"
        )
    kind, d = interfaces.model(config), config.data
    if config.objective not in (REINFORCEMENT, REPLIES):
        if config.steps <= 0 and config.epochs <= 0:
            raise ConfigError("one of config keys 'steps' and 'epochs' must be above 0")
        check_buckets(d.buckets, kind.BUCKET)
        if d.resolution < 24 and "editworld" in (d.train, d.validation):
            raise ConfigError(f"config key 'data.resolution' must be at least 24 for editworld, got {d.resolution}")
        interfaces.objective(config)
    kind.check(config)
