"""Experiment configs: defaults in one place, one small Python file an experiment, locked.

A config file defines `get_config()`, which starts from `default()` and changes what differs:

    from edit_rl_jax.training.config import default

    def get_config():
        c = default()
        c.optim.lr = 1e-4
        return c

`load(path, {"optim.lr": "3e-4"})` applies command-line overrides. A wrong key, in the file or on the command line,
raises `ConfigError` naming the nearest right one. Values keep the type of the default, numbers lie in `RANGES`.
"""

import argparse
import ast
import difflib
import importlib
import importlib.machinery
import importlib.util
import linecache
import math
import re
import traceback
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax import json_files
from edit_rl_jax.names import ConfigError, nearest
from edit_rl_jax.ranges import INT32, INT32_OR_0, problem
from edit_rl_jax.training.config_check import AXIS, check_buckets, check_mesh, check_values, flatten


def default() -> ConfigDict:
    """Every key that exists, with its default. Locked: a new key cannot be added."""
    c = ConfigDict()
    c.name = ""
    c.seed = 0
    c.objective = "editscore"  # a name of `training.registry`, or "my_pkg.mod:Class"
    c.epochs = 0.0  # passes over the data; used when steps is 0
    c.steps = 0  # optimizer steps; 0 = from epochs
    c.rows = 8  # rows of one microbatch over all devices and processes
    c.accum = 1  # microbatches a step

    c.model = ConfigDict()
    c.model.kind = "qwen2_5_vl"  # qwen2_5_vl | omnigen2 | autoencoder | "my_pkg.mod" (training.registry)
    c.model.init_from = ""  # Hugging Face folder or hub id; "" = random weights from model.config
    c.model.revision = ""  # hub revision (commit) of init_from
    c.model.init_adapter = ""  # PEFT folder whose LoRA weights are the start
    c.model.prompts = ""  # named prompt texts; "" = those stored with init_from, else "standard"
    c.model.tokenizer = ""  # folder, hub id, or "editworld" (trained on the spot, in a second); "" = init_from's
    c.model.config = ""  # a Hugging Face config.json's content as JSON, or a path; only when init_from is ""
    c.model.vae = ""  # folder of the autoencoder of an editor that is trained from scratch
    c.model.trainable = "lora"  # lora | full
    c.model.train_text = False  # an editor's language model too, all weights
    c.model.lora = ConfigDict(dict(rank=32, alpha=64.0, vision=False, merger=False))
    c.model.dtype = "auto"  # frozen weights and activations; auto = bfloat16 on accelerators, float32 on CPU
    c.model.save_dtype = "float32"  # of an exported model; adapters are float32
    c.model.remat = "nothing_saveable"
    c.model.attention = ""  # "" = chosen by platform; else xla | cudnn | splash | splash_interpret

    c.data = ConfigDict()
    # editworld | editworld_perception | editworld_edits | a folder written by prepare_data.py | "my_pkg.mod:function"
    c.data.train = "editworld"
    c.data.validation = ""  # as train; "" = the same source's validation split (built-in worlds only)
    c.data.options = ConfigDict()  # further arguments of a built-in world, any keys
    c.data.shuffle = True
    c.data.size = 100_000  # records of a built-in world
    c.data.validation_size = 256
    c.data.resolution = 84  # pixels of a built-in world
    c.data.min_pixels = 56 * 56
    c.data.max_pixels = 512 * 512  # a larger image is shrunk to this many pixels
    c.data.buckets = (
        (1024, 1, 1024, 128),
    )  # of a row, at most 8: (tokens, vision rows, patch slots a vision row, answer tokens), or of an editor (text
    # tokens, references, height, width in pixels)
    c.data.workers = 0  # 0 = inline
    c.data.worker_kind = "thread"  # thread: one runs ahead, `workers` decode | process: `workers` processes
    c.data.on_bad_record = "error"  # error | skip (counted)

    c.optim = ConfigDict()
    c.optim.name = "adamw"  # adamw | muon (matrices; embeddings, norms and biases by adamw)
    c.optim.lr = 1e-4  # peak
    c.optim.adam_lr = 0.0  # muon only: peak for what is not a matrix; 0 = lr
    c.optim.schedule = "cosine"  # cosine | linear | constant
    c.optim.warmup = 0.1  # below 1: share of the steps; else steps
    c.optim.end = 0.0  # final learning rate as a share of the peak
    c.optim.b1 = 0.9
    c.optim.b2 = 0.999
    c.optim.eps = 1e-8
    c.optim.weight_decay = 0.0  # matrices only
    c.optim.clip = 1.0  # global norm; 0 = off
    c.optim.momentum = 0.95  # muon
    c.optim.ns_steps = 5  # muon
    c.optim.ema = 0.0  # decay of the average of the weights that is validated and exported; 0 = none

    c.flow = ConfigDict()  # of the objective flow_matching
    c.flow.times = "lognormal"  # lognormal | uniform
    c.flow.shift = "linear"  # none | linear | sqrt | a number: see flow.matching.Times
    c.flow.drop_text = 1e-4  # probability that the instruction is left out
    c.flow.drop_references = 0.5  # given that, that each reference is, too
    c.flow.sample_latents = True  # of the autoencoder's posterior; else its mean
    c.flow.changed = 0.0  # added weight of what differs from the first reference
    c.autoencoder = ConfigDict(dict(kl=3e-4))  # weight of the KL divergence, of the objective autoencoder

    c.mesh = ConfigDict(dict(data=1, fsdp=-1, tensor=1))  # -1 = what is left of the devices
    c.mesh_presets = ConfigDict()  # topology name ("v5p:4x4x4") -> mesh, used by `--config.topology` and plan.py
    c.topology = ""  # name of a preset to use instead of `mesh`

    c.checkpoint = ConfigDict(dict(every=250, keep=3, max_failed=10))  # max_failed: saves in a row that may fail
    c.eval = ConfigDict(dict(every=0, batches=8))  # validation loss every so many steps; 0 = only at the end
    c.eval.pairs = 0  # at the end, pairs scored by generation for eval.json; 0 = no pairs
    c.eval.passes = 1  # sampled answers a question, averaged; 1 = greedy
    c.eval.prompts = 0  # at the end, of an editor: held-out prompts of EditWorld edited and scored; 0 = none
    c.eval.sample_steps = 20  # of those edits, Euler, without guidance
    c.log = ConfigDict(dict(every=1, tensorboard=True, wandb=False, profile_steps=""))  # profile_steps "10:13"
    c.log.peak_flops = 0.0  # of one device, for MFU; 0 = by device kind, no MFU where unknown
    c.max_bad_steps = 10  # stop after this many non-finite steps in a row
    c.compilation_cache = "~/.cache/edit_rl_jax/xla"  # "" = none
    return c.lock()


# What the numbers of `default` may be (see `ranges`). On the devices steps are int32 and floats are float32, where less
# than 1e-30 is nothing.
RANGES = {
    "seed": INT32_OR_0,
    "epochs": "[0, 1000000]",
    "steps": INT32_OR_0,
    "rows": "[1, 65536]",
    "accum": "[1, 65536]",
    "model.lora.rank": "[1, 8192]",
    "model.lora.alpha": "[1e-6, 1e6]",
    "data.size": "[1, 1000000000]",
    "data.validation_size": "[1, 1000000000]",
    "data.resolution": "[1, 4096]",
    "data.min_pixels": "[1, 1000000000]",
    "data.max_pixels": "[784, 1000000000]",  # one place of 28 x 28 pixels in the model's text
    "data.workers": "[0, 512]",
    "optim.lr": "[1e-30, 1000]",
    "optim.adam_lr": "0 or [1e-30, 1000]",
    "optim.warmup": INT32_OR_0,
    "optim.end": "[0, 1]",
    "optim.b1": "[0, 1)",
    "optim.b2": "[0, 1)",
    "optim.eps": "[1e-30, 1]",
    "optim.weight_decay": "[0, 1000]",
    "optim.clip": "0 or [1e-30, 1e30]",
    "optim.momentum": "[0, 1)",
    "optim.ns_steps": "[1, 100]",
    "optim.ema": "[0, 1)",
    "flow.drop_text": "[0, 1]",
    "flow.drop_references": "[0, 1]",
    "flow.changed": "[0, 1e6]",
    "autoencoder.kl": "[0, 1e6]",
    "mesh.data": AXIS,
    "mesh.fsdp": AXIS,
    "mesh.tensor": AXIS,
    "checkpoint.every": INT32,
    "checkpoint.keep": INT32,
    "checkpoint.max_failed": INT32,
    "eval.every": INT32_OR_0,
    "eval.batches": "[0, 1000000]",
    "eval.pairs": "[0, 1000000]",
    "eval.passes": "[1, 1000]",
    "eval.prompts": "[0, 1000000]",
    "eval.sample_steps": "[1, 1000]",
    "log.every": INT32,
    "log.peak_flops": "[0, 1e18]",
    "max_bad_steps": INT32,
}

CHOICES = {
    "model.trainable": ("lora", "full"),
    "optim.name": ("adamw", "muon"),
    "optim.schedule": ("cosine", "linear", "constant"),
    "data.on_bad_record": ("error", "skip"),
    "data.worker_kind": ("thread", "process"),
    "model.dtype": ("auto", "float32", "bfloat16"),
    "model.save_dtype": ("float32", "bfloat16"),
    "model.remat": ("nothing_saveable", "dots", "everything_saveable", "none"),
    "model.attention": ("", "xla", "cudnn", "splash", "splash_interpret"),
    "flow.times": ("lognormal", "uniform"),
}

# What may differ between a run and its resumption: nothing that changes a number in the result. (Worker processes
# each keep a state of their own, so with them the workers are fixed as well: see `difference`.)
RESUME_MAY_CHANGE = (
    "log",
    "compilation_cache",
    "checkpoint.keep",
    "checkpoint.max_failed",
    "eval.pairs",
    "eval.passes",
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


def portable(value: Any) -> Any:
    """The path of a packaged asset without the folder that the package lies in; anything else as it is."""
    return re.sub(r"^.*/(?=edit_rl_jax/assets/[^/]+/?$)", "", value) if isinstance(value, str) else value


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
        what = f"no config key '{named[1]}'{nearest(named[1], [k for k, _ in flatten(default())])}"
    elif isinstance(e, TypeError) and cast:
        what = f"config key '{cast[1]}' takes {cast[4]}, got {cast[3]} {cast[2]}"
    else:
        what = f"{type(e).__name__}: {e.msg if isinstance(e, SyntaxError) else e}"
    return " ".join(f"{path}: {what}{at}".split())


def _run(path: Path) -> ConfigDict:
    """What `get_config()` of a file gives."""
    loader = importlib.machinery.SourceFileLoader(f"config_{path.stem}", str(path))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    try:
        loader.exec_module(module)
        if not callable(getattr(module, "get_config", None)):
            raise ConfigError(f"{path}: a config file defines get_config(), this one does not")
        config = module.get_config()
    except ConfigError:
        raise
    except Exception as e:  # it is the user's code
        raise ConfigError(_in_file(path, e)) from e
    if not isinstance(config, ConfigDict):
        raise ConfigError(f"{path}: get_config() returns a config, see training/config.py; got {type(config).__name__}")
    return config


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Runs `get_config()` of the file, applies overrides {dotted key: value or text} and checks the result.

    Raises `ConfigError`, of one line, for a file that cannot be run, an unknown key, a value of the wrong type or out
    of its range, or values that do not fit together.
    """
    path = Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise ConfigError(f"no config file {path}" + (f" (did you mean '{path.with_name(near[0])}'?)" if near else ""))
    config = _run(path)
    known = dict(flatten(config))
    for key, text in (overrides or {}).items():
        inside = [k for k in known if k.startswith(key + ".")]
        whole = next((k for k in known if key.startswith(k + ".") and isinstance(known[k], dict)), None)
        if inside or whole:
            how = (
                f"a section: set one of its keys, {', '.join(inside)}" if inside else f"within '{whole}': set it whole"
            )
            raise ConfigError(f"config key '{key}' is {how}")
        if key not in known:
            raise ConfigError(f"no config key '{key}'{nearest(key, list(known))}")
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


def check(config: ConfigDict) -> None:
    """Raises `ConfigError` for values that cannot work, before anything is loaded."""
    check_values(config, default(), RANGES, CHOICES)
    if config.steps <= 0 and config.epochs <= 0:
        raise ConfigError("one of config keys 'steps' and 'epochs' must be above 0")
    d = config.data
    check_buckets(d.buckets, config.model.kind)
    if d.min_pixels > d.max_pixels:
        raise ConfigError(f"config key 'data.min_pixels' is {d.min_pixels}, above data.max_pixels={d.max_pixels}")
    if d.resolution < 24 and "editworld" in (d.train, d.validation):
        raise ConfigError(f"config key 'data.resolution' must be at least 24 for editworld, got {d.resolution}")
    check_mesh("mesh", config.mesh.to_dict())
    for name, mesh in config.mesh_presets.items():
        check_mesh(f"mesh_presets.{name}", mesh.to_dict() if isinstance(mesh, ConfigDict) else mesh)
    if config.topology and config.topology not in config.mesh_presets:
        have = list(config.mesh_presets)
        raise ConfigError(
            f"no mesh preset '{config.topology}'{nearest(config.topology, have)}; presets: {', '.join(have)}"
        )
    if config.model.config.lstrip().startswith("{"):
        try:
            json_files.loads(config.model.config, "config key 'model.config'")
        except json_files.JSONError as e:
            raise ConfigError(str(e)) from None
    if bool(config.model.init_from) == bool(config.model.config):
        raise ConfigError("exactly one of config keys 'model.init_from' and 'model.config' must be set")
    if config.model.init_adapter and not (config.model.init_from and config.model.trainable == "lora"):
        raise ConfigError("config key 'model.init_adapter' needs model.trainable=lora and a base in model.init_from")
    if config.model.train_text and config.model.trainable == "lora":
        raise ConfigError("config key 'model.train_text' needs model.trainable=full: a LoRA is the transformer's alone")
    try:
        m = 1.0 if config.flow.shift in ("none", "linear", "sqrt") else float(config.flow.shift)
    except ValueError:
        m = math.nan
    if problem(m, "[1e-6, 1e6]"):
        shift = config.flow.shift
        raise ConfigError(f"config key 'flow.shift' is none, linear, sqrt or a number from 1e-6 to 1e6, got '{shift}'")
    profile = re.fullmatch(r"(?:(\d{1,10}):(\d{1,10}))?", config.log.profile_steps)
    if not profile or profile[1] and not 1 <= int(profile[1]) <= int(profile[2]):
        raise ConfigError(
            f"config key 'log.profile_steps' is 'first:last', steps from 1 on, got '{config.log.profile_steps}'"
        )


def difference(old: Any, new: Any) -> dict[str, tuple[Any, Any]]:
    """{key: (old, new)} where two configs would not give the same run; `RESUME_MAY_CHANGE` is left out."""
    a, b = dict(flatten(old)), dict(flatten(new))
    may = RESUME_MAY_CHANGE
    if "process" in (a.get("data.worker_kind"), b.get("data.worker_kind")):
        may = tuple(key for key in may if not key.startswith("data.worker"))
    norm = lambda v: [norm(x) for x in v] if isinstance(v, (tuple, list)) else portable(v)
    return {
        k: (a.get(k), b.get(k))
        for k in sorted(a.keys() | b.keys())
        if norm(a.get(k)) != norm(b.get(k)) and not any(k == p or k.startswith(p + ".") for p in may)
    }
