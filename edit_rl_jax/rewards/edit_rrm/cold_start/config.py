"""Reads the config of a job that makes training data for the verifier: who writes what, in TOML or JSON."""

import dataclasses
import functools
import os
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from edit_rl_jax import json_files
from edit_rl_jax.data.records import CATEGORIES
from edit_rl_jax.names import ConfigError, nearest
from edit_rl_jax.ranges import INT32, INT32_OR_0, knob, problem
from edit_rl_jax.rewards.edit_rrm import prompts
from edit_rl_jax.rewards.edit_rrm.writers import WANTED
from edit_rl_jax.rewards.serving import service
from edit_rl_jax.rewards.serving.chat import Chat

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class EndPoint:
    """An end point: address, model, limits, and prices for a million tokens, in any currency."""

    url: str
    model: str
    key_env: str = "OPENAI_API_KEY"  # secrets stand in the environment
    per_minute: float = knob(0.0, "[0, 1e9]")
    timeout: float = knob(600.0, "(0, 1e6]")
    tries: int = knob(10, "[1, 1000]")
    wait: float = knob(0.25, "[0, 3600]")
    longest: float = knob(20.0, "[0, 3600]")
    price_in: float = knob(0.0, "[0, 1e9]")
    price_out: float = knob(0.0, "[0, 1e9]")
    extra: dict[str, Any] = knob(dict)

    def limits(self) -> dict[str, Any]:
        """Returns the options of `rewards.serving.service.Service`."""
        return {name: getattr(self, name) for name in ("per_minute", "timeout", "tries", "wait", "longest")}


@dataclasses.dataclass(frozen=True)
class Asking:
    """How an end point is asked: sampling, and how often until a reply can be read."""

    endpoint: str = ""
    temperature: float = knob(0.7, "[0, 10]")
    top_p: float = knob(1.0, "(0, 1]")
    max_tokens: int = knob(2048, INT32)
    attempts: int = knob(3, "[1, 100]")
    seed: int = knob(0, INT32_OR_0)


@dataclasses.dataclass(frozen=True)
class Principles(Asking):
    """Principles come from an end point, from a file of sets, or stand in the records."""

    file: str = ""
    record: bool = False
    exemplars: str = ""
    shots: int = knob(4, "[0, 100]")
    wanted: dict[str, Any] = dataclasses.field(default_factory=lambda: {k: list(v) for k, v in WANTED.items()})


@dataclasses.dataclass(frozen=True)
class Candidates(Asking):
    """Replies of one kind: by an end point or by a folder of our own model."""

    name: str = ""
    model: str = ""
    base: str = ""
    replies: int = knob(1, "[1, 1000]")
    system: str = ""
    prompts: str = ""  # default: "standard", of our own model those stored with it
    rows: int = knob(32, "[1, 100000]")  # replies that our own model writes side by side
    temperature: float = knob(1.0, "[0, 10]")


@dataclasses.dataclass(frozen=True)
class Verifier(Asking):
    """Gold verdicts come from an end point, or stand in the records (EditWorld's oracle gave them)."""

    record: bool = False
    temperature: float = knob(0.0, "[0, 10]")


@dataclasses.dataclass(frozen=True)
class Filter(Asking):
    """An end point says which instructions are hard; the others are left out."""

    temperature: float = knob(0.0, "[0, 10]")
    max_tokens: int = knob(512, INT32)


@dataclasses.dataclass(frozen=True)
class Config:
    """A job: end points by name, and the parts of it. filter: None for none."""

    endpoints: dict[str, EndPoint]
    principles: Principles
    candidates: tuple[Candidates, ...]
    verifier: Verifier
    filter: Filter | None
    min_accuracy: float = 0.0

    @functools.cached_property
    def services(self) -> dict[str, service.Service]:
        """The end points, one of each for all parts. Raises ValueError for a URL or a key that cannot be used."""
        key = lambda at: os.environ.get(at.key_env, "")
        return {name: service.Service(at.url, key(at), **at.limits()) for name, at in self.endpoints.items()}

    def chat(self, part: Asking) -> Chat:
        """Makes what asks for a part. Raises as `services`."""
        at = self.endpoints[part.endpoint]
        sampling = {"temperature": part.temperature, "top_p": part.top_p, "max_tokens": part.max_tokens}
        return Chat.of(self.services[part.endpoint], at.model, sampling | at.extra)


def read(file: Path, principles_only: bool = False) -> Config:
    """Reads a config. Relative paths in it are relative to its folder. principles_only: as `from_mapping` has it.
    Raises ConfigError naming file and key, JSONError, OSError."""
    if file.suffix == ".json":
        found = json_files.read_object(file)
    elif file.suffix == ".toml":
        try:
            found = tomllib.loads(file.read_text(encoding="utf-8-sig"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ConfigError(f"{file}: {error}") from None
    else:
        raise ConfigError(f"{file}: .toml or .json wanted")
    return from_mapping(found, str(file), file.parent, principles_only)


def from_mapping(
    found: Mapping[str, Any], where: str = "config", folder: Path | None = None, principles_only: bool = False
) -> Config:
    """Makes a config of what a file holds. principles_only: without candidates and verifier, whether or not the file
    has them. Raises ConfigError."""
    _known(found, ["endpoints", "principles", "candidates", "verifier", "filter", "min_accuracy"], where)
    if principles_only:
        found = {**found, "candidates": [], "verifier": {"record": True}}
    endpoints = _table(found.get("endpoints", {}), f"{where}, 'endpoints'")
    services = {name: _section(EndPoint, told, f"{where}, 'endpoints.{name}'") for name, told in endpoints.items()}
    principles = _section(Principles, found.get("principles"), f"{where}, 'principles'", folder)
    _one_of(principles, ("endpoint", "file", "record"), f"{where}, 'principles'")
    for name, span in principles.wanted.items():
        good = isinstance(span, list) and len(span) == 2 and all(type(n) is int for n in span)
        if name not in CATEGORIES or not good or not 0 <= span[0] <= span[1]:
            raise ConfigError(f"{where}, 'principles.wanted.{name}': a category with [least, most] is wanted")
    rows = found.get("candidates")
    if not isinstance(rows, list) or not (rows or principles_only):
        raise ConfigError(f"{where}, 'candidates': a list of at least one is wanted")
    candidates = []
    for n, row in enumerate(rows):
        part = _section(Candidates, row, f"{where}, 'candidates[{n}]'", folder)
        _one_of(part, ("endpoint", "model"), f"{where}, 'candidates[{n}]'")
        for name in ("system", "attempts") if part.model else ("base", "rows"):
            if getattr(part, name) != getattr(Candidates, name):
                kind = "model" if part.model else "endpoint"
                raise ConfigError(f"{where}, 'candidates[{n}]': '{name}' has no use beside '{kind}'")
        default = part.endpoint or Path(part.model).name
        candidates.append(dataclasses.replace(part, name=part.name or f"{default}-{n}"))
    names = [c.name for c in candidates]
    if len(set(names)) < len(names):
        raise ConfigError(f"{where}, 'candidates': two have one name: {', '.join(names)}")
    verifier = _section(Verifier, found.get("verifier"), f"{where}, 'verifier'")
    _one_of(verifier, ("endpoint", "record"), f"{where}, 'verifier'")
    hard = _section(Filter, found["filter"], f"{where}, 'filter'") if "filter" in found else None
    if hard is not None:
        _one_of(hard, ("endpoint",), f"{where}, 'filter'")
    known = {"principles": principles, "verifier": verifier, "filter": hard, **dict(zip(names, candidates))}
    for name, part in known.items():
        if part is not None and part.endpoint and part.endpoint not in services:
            near = nearest(part.endpoint, list(services))
            raise ConfigError(f"{where}, '{name}': there is no end point {part.endpoint!r}{near}")
    for n, part in enumerate(candidates):
        if part.replies > 1 and _asked(part, services).temperature == 0:
            raise ConfigError(f"{where}, 'candidates[{n}]': {part.replies} replies at temperature 0 are all the same")
        for other in candidates[:n]:
            if _asked(part, services) == _asked(other, services):
                both = f"'{other.name}' and '{part.name}'"
                raise ConfigError(f"{where}, 'candidates': {both} ask for the same replies; 'replies' says how many")
    least = found.get("min_accuracy", 0.0)
    if isinstance(least, bool) or not isinstance(least, int | float) or problem(least, "[0, 1]"):
        raise ConfigError(f"{where}, 'min_accuracy': a number from 0 to 1 is wanted")
    return Config(services, principles, tuple(candidates), verifier, hard, float(least))


def _asked(part: Candidates, services: Mapping[str, EndPoint]) -> Candidates:
    """A part without what leaves its first reply as it is."""
    part = dataclasses.replace(part, name="", replies=1, rows=1, attempts=1)
    if part.model:
        return part
    extra = services[part.endpoint].extra  # wins over the part's own, see `Config.chat`
    sampling = {name: extra[name] for name in ("temperature", "top_p", "max_tokens") if name in extra}
    return dataclasses.replace(part, prompts=part.prompts or prompts.DEFAULT, **sampling)


def _table(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise ConfigError(f"{where}: a table is wanted")
    return value


def _known(found: Mapping[str, Any], keys: list[str], where: str) -> None:
    for key in found:
        if key not in keys:
            raise ConfigError(f"{where}: unknown key '{key}'{nearest(key, keys)}; known: {', '.join(keys)}")


def _section(kind: type[T], told: Any, where: str, folder: Path | None = None) -> T:
    """A dataclass of a table. A file or folder that stands beside the config is found there."""
    told = dict(_table(told, where))
    fields, hints = {f.name: f for f in dataclasses.fields(kind)}, typing.get_type_hints(kind)
    _known(told, list(fields), where)
    for name, value in told.items():
        wanted = typing.get_origin(hints[name]) or hints[name]
        if wanted is float and type(value) is int:
            told[name] = value = float(value)
        if type(value) is not wanted or isinstance(hints[name], types.UnionType):
            raise ConfigError(f"{where}: '{name}' is {value!r:.40}, {wanted.__name__} wanted")
        if (allowed := fields[name].metadata.get("allowed")) and (wrong := problem(value, allowed)):
            raise ConfigError(f"{where}: '{name}' {wrong}")
        if folder and name in ("file", "exemplars", "model", "base") and value and (folder / value).exists():
            told[name] = str(folder / value)
    missing = [
        n
        for n, f in fields.items()
        if n not in told and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: '{missing[0]}' is missing")
    return kind(**told)


def _one_of(part: Any, names: tuple[str, ...], where: str) -> None:
    if sum(bool(getattr(part, name)) for name in names) != 1:
        raise ConfigError(f"{where}: {' or '.join(names)} is wanted{', one of them' if len(names) > 1 else ''}")
