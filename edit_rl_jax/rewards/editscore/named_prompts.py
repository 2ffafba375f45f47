"""Finds prompt texts: by name, those of the released adapters among them, or as they are stored with a model."""

import dataclasses
from typing import Any

from edit_rl_jax.rewards.editscore import upstream
from edit_rl_jax.rewards.editscore.prompts import PROMPTS, Prompts

DEFAULT = "standard"  # where neither a config nor a model's folder says


def get(prompts: str | Prompts) -> Prompts:
    """A named set of prompts; those of the released adapters are read from the installed package `editscore`.

    Raises KeyError that lists the names, and as `upstream.texts`.
    """
    if isinstance(prompts, Prompts):
        return prompts
    if prompts in upstream.NAMES:
        return upstream.load(prompts)
    if prompts not in PROMPTS:
        raise KeyError(f"no prompts {prompts!r}; there are {sorted(PROMPTS) + list(upstream.NAMES)}")
    return PROMPTS[prompts]


def choose(name: str = "", stored: dict | None = None) -> Prompts:
    """The prompts of that name, else those stored in a model's folder (`Prompts.to_json`), else the default ones.

    Raises KeyError for a name that there is not, ValueError for stored texts that were altered.
    """
    return from_json(stored) if stored and not name else get(name or DEFAULT)


def from_json(stored: Any) -> Prompts:
    """Reads what `Prompts.to_json` made. Raises ValueError where it is malformed or does not match its hash."""
    names = [f.name for f in dataclasses.fields(Prompts)] if isinstance(stored, dict) and "sc" in stored else ["name"]
    wanted = dict.fromkeys([*names, "sha256"], str) | ({"version": int} if "version" in names else {})
    good = isinstance(stored, dict) and all(type(stored.get(k)) is kind for k, kind in wanted.items())
    if not good or not 0 <= stored.get("version", 0) < 2**31:
        raise ValueError(f"prompts are no object with {', '.join(wanted)}")
    try:
        prompts = Prompts(*(stored[k] for k in names)) if "sc" in stored else get(stored["name"])
    except KeyError as e:
        raise ValueError(e.args[0]) from None
    if stored["sha256"] != prompts.sha256:
        raise ValueError(f"prompts {prompts.name!r} were altered: sha256 {prompts.sha256} != {stored['sha256']}")
    return prompts
