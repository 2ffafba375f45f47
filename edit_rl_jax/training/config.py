"""Experiment configs: defaults in one place, one small Python file an experiment, locked.

A config file defines `get_config()`, which starts from `default()` and changes what differs:

    from edit_rl_jax.training.config import default

    def get_config():
        c = default()
        c.optim.lr = 1e-4
        return c

`load(path, {"optim.lr": "3e-4"})` applies command-line overrides. A wrong key, in the file or on the command line,
raises `ConfigError` naming the nearest right one. Values keep the type of the default.
"""

import argparse
import ast
import difflib
import importlib
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from ml_collections import ConfigDict


class ConfigError(ValueError):
    """A config that cannot be used; the message names the key and, where one is near, the right one."""


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


def add_arguments(parser: argparse.ArgumentParser, required: bool = True) -> None:
    """The arguments `--config FILE` and, for the help, `--config.KEY VALUE`; see `split_overrides`."""
    parser.add_argument("--config", required=required, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="override a key of the config, any number of times"
    )


def split_overrides(words: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """(the other words, {dotted key: text}) of a command line: `--config.key=value` and `--config.key value`."""
    rest, overrides, words = [], {}, iter(words)
    for word in words:
        if word.startswith("--config."):
            key, equals, value = word.removeprefix("--config.").partition("=")
            overrides[key] = value if equals else next(words, "")
        else:
            rest.append(word)
    return rest, overrides


def portable(value: Any) -> Any:
    """The path of a packaged asset without the folder that the package lies in; anything else as it is."""
    return re.sub(r"^.*/(?=edit_rl_jax/assets/[^/]+/?$)", "", value) if isinstance(value, str) else value


def flatten(config: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields (dotted key, leaf value)."""
    for key, value in config.items():
        if isinstance(value, (ConfigDict, dict)) and key not in ("mesh_presets", "options"):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield prefix + key, value.to_dict() if isinstance(value, ConfigDict) else value


def nearest(key: str, keys: list[str]) -> str:
    """A hint, " (did you mean 'x'?)", for the key nearest to `key` by full path or last part; "" when none is near."""
    alias = ALIASES.get(key.rsplit(".", 1)[-1])
    near = [alias] if alias in keys else difflib.get_close_matches(key, keys, n=1, cutoff=0.6)
    if near:
        return f" (did you mean '{near[0]}'?)"
    last = {k.rsplit(".", 1)[-1]: k for k in reversed(keys)}
    near = difflib.get_close_matches(key.rsplit(".", 1)[-1], list(last), n=1, cutoff=0.6)
    return f" (did you mean '{last[near[0]]}'?)" if near else ""


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
    except (ValueError, SyntaxError):
        raise ConfigError(f"config key '{key}' takes {type(old).__name__}, got '{text}'") from None


def load(path: str | Path, overrides: Mapping[str, Any] | None = None) -> ConfigDict:
    """Runs `get_config()` of the file, applies overrides {dotted key: value or text} and checks the result.

    Raises `ConfigError` for an unknown key, a value of the wrong type, or values that do not fit together.
    """
    path = Path(path)
    if not path.exists():
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        raise ConfigError(f"no config file {path}" + (f" (did you mean '{path.with_name(near[0])}'?)" if near else ""))
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
        config = module.get_config()
    except (AttributeError, KeyError) as e:  # ml_collections raises these for a key that does not exist
        known = [k for k, _ in flatten(default())]
        named = re.search(r'Key "([^"]+)"', str(e))
        problem = f"no config key '{named[1]}'{nearest(named[1], known)}" if named else str(e)
        raise ConfigError(f"{path}: {problem}") from e
    known = dict(flatten(config))
    for key, text in (overrides or {}).items():
        if key not in known:
            raise ConfigError(f"no config key '{key}'{nearest(key, list(known))}")
        with config.unlocked():
            try:
                config.update_from_flattened_dict({key: _parse(key, text, known[key])})
            except TypeError as e:
                raise ConfigError(f"config key '{key}': {e}") from None
    check(config)
    return config


def check(config: ConfigDict) -> None:
    """Raises `ConfigError` for values that cannot work, before anything is loaded."""
    choices = {
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
    flat = dict(flatten(config))
    for key, allowed in choices.items():
        if flat[key] not in allowed:
            raise ConfigError(f"config key '{key}' is one of {', '.join(allowed)}; got '{flat[key]}'")
    for key in ("rows", "accum", "model.lora.rank", "checkpoint.every", "checkpoint.keep", "log.every"):
        if flat[key] < 1:
            raise ConfigError(f"config key '{key}' must be at least 1, got {flat[key]}")
    if config.steps <= 0 and config.epochs <= 0:
        raise ConfigError("one of config keys 'steps' and 'epochs' must be above 0")
    if not 1 <= len(config.data.buckets) <= 8 or any(len(b) != 4 for b in config.data.buckets):
        raise ConfigError("config key 'data.buckets' holds 1 to 8 entries of 4 numbers each, see training/config.py")
    if config.topology and config.topology not in config.mesh_presets:
        have = list(config.mesh_presets)
        raise ConfigError(
            f"no mesh preset '{config.topology}'{nearest(config.topology, have)}; presets: {', '.join(have)}"
        )
    if bool(config.model.init_from) == bool(config.model.config):
        raise ConfigError("exactly one of config keys 'model.init_from' and 'model.config' must be set")
    if config.model.init_adapter and not (config.model.init_from and config.model.trainable == "lora"):
        raise ConfigError("config key 'model.init_adapter' needs model.trainable=lora and a base in model.init_from")
    if config.model.train_text and config.model.trainable == "lora":
        raise ConfigError("config key 'model.train_text' needs model.trainable=full: a LoRA is the transformer's alone")
    if not re.fullmatch(r"(\d+:\d+)?", config.log.profile_steps):
        raise ConfigError(f"config key 'log.profile_steps' is 'first:last', got '{config.log.profile_steps}'")


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
    except (ImportError, AttributeError) as e:
        raise ConfigError(f"cannot load '{name}': {e}") from e
