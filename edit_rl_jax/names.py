"""Finds what a name stands for: in a registry, by an import path, as a folder, or as the nearest there is."""

import difflib
import importlib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and, where one is near, the right one."""


# Other projects' words for our keys, for the hints of errors.
ALIASES = {
    "learning_rate": "optim.lr",
    "batch_size": "rows",
    "gradient_accumulation_steps": "accum",
    "grad_accum": "accum",
    "num_epochs": "epochs",
    "num_train_epochs": "epochs",
    "max_steps": "steps",
    "wd": "optim.weight_decay",
    "max_grad_norm": "optim.clip",
    "rank": "model.lora.rank",
    "alpha": "model.lora.alpha",
    "save_steps": "checkpoint.every",
    "eval_steps": "eval.every",
}


def nearest(key: str, keys: list[str]) -> str:
    """A hint, " (did you mean 'x'?)", for the key nearest to `key` by full path or last part; "" when none is near."""
    alias = ALIASES.get(key.rsplit(".", 1)[-1])
    near = [alias] if alias in keys else difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if near:
        return f" (did you mean '{near[0]}'?)"
    last = {k.rsplit(".", 1)[-1]: k for k in reversed(keys)}
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
    return f" (did you mean '{last[near[0]]}'?)" if near else ""


def resolve(name: str, registry: Mapping[str, str]) -> Any:
    """The object a name stands for: a registered name, "pkg.mod:Attr", or "pkg.mod" (a module).

    Raises `ConfigError` naming the nearest registered name.
    """
    target = registry.get(name, name)
    if target == name and ":" not in name and "." not in name:
        raise ConfigError(f"unknown name '{name}'{nearest(name, list(registry))}; known: {', '.join(registry)}")
    module, _, attribute = target.partition(":")
    try:
        found = importlib.import_module(module)
        return getattr(found, attribute) if attribute else found
    except (ImportError, AttributeError, TypeError, ValueError) as e:
        raise ConfigError(f"cannot load '{name}': {e}") from e


def has_all(found: Any, protocol: type, key: str, name: str) -> Any:
    """Gives `found` back. Raises ConfigError that names the members of the Protocol that it lacks."""
    members = [m for m in {**vars(protocol), **protocol.__annotations__} if m[0] != "_"]
    if missing := [m for m in members if not hasattr(found, m)]:
        raise ConfigError(f"config key '{key}': '{name}' is no {protocol.__name__}, it lacks {', '.join(missing)}")
    return found


def model_folder(model: Any, key: str, find: Callable[..., Path], revision: str | None = None) -> Path:
    """Finds the local folder of the path or hub id under a key of the section `model` of a config.

    find: of the kind of model: (name, revision) -> folder, or OSError. Raises ConfigError where there is none.
    """
    try:
        return find(model[key], revision)
    except OSError as e:  # the hub's errors are of this kind too
        raise ConfigError(f"config key 'model.{key}', '{model[key]}': {str(e).splitlines()[0]}") from e


def base_folder(model: Any, find: Callable[..., Path]) -> Path | None:
    """Finds the local folder of `model.init_from`, as `model_folder`; None for random weights."""
    return model_folder(model, "init_from", find, model.revision or None) if model.init_from else None


def portable(value: Any) -> Any:
    """Shortens the path of a packaged asset by the folder that the package lies in; leaves anything else as it is."""
    return re.sub(r"^.*/(?=edit_rl_jax/assets/[^/]+/?$)", "", value) if isinstance(value, str) else value
