"""Experiment configs: one small Python file an experiment, locked, with overrides from the command line.

A config file defines `get_config()`, which starts from `default()` and changes what differs:

    from edit_rl_jax.training.config import default

    def get_config():
        c = default(kind="qwen2_5_vl", objective="editscore")
        c.optim.lr = 1e-4
        return c

`load(path, {"optim.lr": "3e-4"})` applies command-line overrides. A wrong key, in the file or on the command line,
raises `ConfigError` naming the nearest right one. Values keep the type of the default, numbers lie in their ranges.
`load("configs/rm.py:72b")` calls `get_config("72b")`.
"""

import argparse
import ast
import difflib
import functools
import importlib
import importlib.machinery
import importlib.util
import linecache
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax.names import ConfigError, portable
from edit_rl_jax.training.config_check import check, flatten
from edit_rl_jax.training.config_keys import default, elsewhere, no_key

__all__ = [
    "add_arguments", "beside", "check", "default", "difference", "flatten", "load", "portable", "split_overrides",
]  # fmt: skip

# What may differ between a run and its resumption: nothing that changes a number in the result. (Worker processes
# each keep a state of their own, so with them the workers are fixed as well: see `difference`.)
RESUME_MAY_CHANGE = (
    "log",
    "compilation_cache",
    "presets",  # what they gave stands in the other keys
    "checkpoint.keep",
    "checkpoint.max_failed",
    "checkpoint.rehearse",
    "checkpoint.deadline",
    "eval.pairs",
    "eval.passes",
    "eval.controls",
    "eval.prompts",
    "eval.sample_steps",
    "name",
    "data.workers",
    "data.worker_kind",
)


def add_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The arguments `--config FILE` and, for the help, `--config.KEY VALUE`; see `split_overrides`."""
    parser.add_argument("--config", required=required, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="override a key of the config, any number of times"
    )


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the other words, {dotted key: text}) of a command line: `--config.key=value` and `--config.key value`.

    A key that is given twice with different values ends the program with a line that names it.
    """
    rest, overrides, words = [], {}, iter(words)
    for word in words:
        if word.startswith("--config."):
            key, equals, value = word.removeprefix("--config.").partition("=")
            value = value if equals else next(words, "")
            if overrides.setdefault(key, value) != value:
                raise SystemExit(f"config key '{key}' is given twice: '{overrides[key]}' and '{value}'")
        else:
            rest.append(word)
    return rest, overrides


def _parse(key: str, text: Any, old: Any) -> Any:
    """`text` as the type of `old`."""
    if not isinstance(text, str) or isinstance(old, str):
        return text
    if isinstance(old, bool):
        if text.lower() not in ("true", "false", "1", "0"):
            raise ConfigError(f"config key '{key}' is true or false, got '{text}'")
        return text.lower() in ("true", "1")
    try:
        if isinstance(old, int):
            return int(text)
        return float(text) if isinstance(old, float) else ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        raise ConfigError(f"config key '{key}' takes {type(old).__name__}, got {text[:200]!r}") from None


def _in_file(path: Path, e: Exception) -> str:
    """An error that the code of a config file raised, as a line that names the line it came from."""
    lines = [f.lineno for f in traceback.extract_tb(e.__traceback__) if f.filename == str(path)]
    number = e.lineno if isinstance(e, SyntaxError) and e.filename == str(path) else lines[-1] if lines else None
    at = f" (line {number}: {linecache.getline(str(path), number).strip()})" if number else ""
    named = re.search(r'Key "([^"]+)"', str(e))  # ml_collections' words, as those of the cast
    cast = re.search(r"field '(.+?)' .*\. (.*) is of original type .*'(.*)'> and .*'(?:.*\.)?(.*)'>", str(e), re.DOTALL)
    if isinstance(e, (AttributeError, KeyError)) and named:
        what = str(no_key(named[1], [k for k, _ in flatten(default())]))
    elif isinstance(e, TypeError) and cast:
        what = f"config key '{cast[1]}' takes {cast[4]}, got {cast[3]} {cast[2]}"
    else:
        what = f"{type(e).__name__}: {e.msg if isinstance(e, SyntaxError) else e}"
    return " ".join(f"{path}: {what}{at}".split())


def _run(path: Path, argument: str) -> ConfigDict:
    """Gives what `get_config()` of a file makes."""
    loader = importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"{path}: a config file defines get_config(), this one does not")
        config = module.get_config(*[argument] * bool(argument))
    except ConfigError:
        raise
    except Exception as e:  # it is the user's code
        raise ConfigError(_in_file(path, e)) from e
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() returns a config, see training/config.py; got {type(config).__name__}")
    return config


def _made(path: str | Path) -> ConfigDict:
    """Runs the config file FILE or FILE:ARGUMENT. Raises ConfigError."""
    path, _, argument = str(path).partition(":") if not Path(path).exists() else (path, "", "")
    path = Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise ConfigError(f"no config file {path}" + (f" (did you mean '{path.with_name(near[0])}'?)" if near else ""))
    return _run(path, argument)


def beside(file: str, name: str) -> Callable[[], ConfigDict]:
    """Gives the `get_config` of a file that is another's: of FILE or FILE:ARGUMENT in its folder."""
    return functools.partial(_made, str(Path(file).with_name(name)))


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Runs `get_config()` of FILE or FILE:ARGUMENT, applies overrides {dotted key: value or text}, checks the result.

    Of the config's `presets` those of the topology are applied, too, unless an override says otherwise.
    Raises `ConfigError`, of one line, for a file that cannot be run, an unknown key, a value of the wrong type or out
    of its range, or values that do not fit together.
    """
    config = _made(path)
    known, overrides = dict(flatten(config)), overrides or {}
    fitting = config.get("presets", {}).get(overrides.get("topology", config.get("topology")))
    for key, text in {**dict(flatten(fitting or {})), **overrides}.items():
        inside = [k for k in known if k.startswith(key + ".")]
        whole = next((k for k in known if key.startswith(k + ".") and isinstance(known[k], dict)), None)
        if inside or whole:
            how = (
                f"a section: set one of its keys, {', '.join(inside)}" if inside else f"within '{whole}': set it whole"
            )
            raise ConfigError(f"config key '{key}' is {how}")
        if key not in known:
            raise no_key(key, list(known))
        value = _parse(key, text, known[key])
        if isinstance(known[key], dict) and not isinstance(value, dict):
            raise ConfigError(f"config key '{key}' takes dict, got '{text}'")
        with config.unlocked():
            try:
                config.update_from_flattened_dict({key: value})
            except (TypeError, OverflowError):
                kind = type(known[key]).__name__
                raise ConfigError(f"config key '{key}' takes {kind}, got {type(value).__name__} {value}") from None
    check(config)
    return config


def difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} where two configs would not give the same run; `RESUME_MAY_CHANGE` is left out."""
    a, b = dict(flatten(old)), dict(flatten(new))
    may = RESUME_MAY_CHANGE
    if "process" in (a.get("data.worker_kind"), b.get("data.worker_kind")):
        may = tuple(key for key in may if not key.startswith("data.worker"))
    if a.keys() - b.keys():  # an earlier version wrote every key into every config
        a = {key: value for key, value in a.items() if key in b or key not in elsewhere()}
    norm = lambda v: [norm(x) for x in v] if isinstance(v, (tuple, list)) else portable(v)
    return {
        k: (a.get(k), b.get(k))
        for k in sorted(a.keys() | b.keys())
        if norm(a.get(k)) != norm(b.get(k)) and not any(k == p or k.startswith(p + ".") for p in may)
    }
