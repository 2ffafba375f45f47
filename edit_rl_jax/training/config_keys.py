"""Which keys a config has: sections, made of the dataclasses that use them.

Each field of a dataclass made by `ranges.knob` is one key. Those of every run are here; a kind of model and an
objective add theirs by `SECTIONS`, {dotted section: dataclass}, so that a config of a judge has no editor's keys.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax.names import ConfigError, nearest
from edit_rl_jax.ranges import INT32, INT32_OR_0, knob
from edit_rl_jax.training import interfaces

Sections = Mapping[str, tuple[type, ...]]  # dotted name, "" for the top -> whose fields it has
REINFORCEMENT = "reinforcement"  # the objective of configs that are no supervised training
REPLIES = "reinforcement_of_replies"  # the same, of a model whose rows are packed as in supervised training
AXIS = "-1 or [1, 1048576]"


@dataclasses.dataclass(frozen=True)
class Run:
    """Says what a run is called, how long it is and on which mesh."""

    name: str = knob("")
    seed: int = knob(0, INT32_OR_0)
    objective: str = knob("")  # a name of `training.interfaces`, or "my_pkg.mod:Class"
    steps: int = knob(0, INT32_OR_0)  # optimizer steps; 0 = from epochs
    rows: int = knob(8, "[1, 65536]")  # rows of one microbatch over all devices and processes
    mesh_presets: dict = knob(dict)  # topology name ("v5p:4x4x4") -> mesh, for `--config.topology` and plan.py
    presets: dict = knob(dict)  # topology name -> what of a config fits it, where it is not said otherwise
    topology: str = knob("")  # name of a preset to use instead of `mesh`
    max_bad_steps: int = knob(10, INT32)  # stop after this many non-finite steps in a row
    compilation_cache: str = knob("~/.cache/edit_rl_jax/xla")  # "" = none


@dataclasses.dataclass(frozen=True)
class Model:
    """Says which model is trained, from what, and how."""

    kind: str = knob("")  # a name of `training.interfaces`, or "my_pkg.mod"
    init_from: str = knob("")  # Hugging Face folder or hub id; "" = random weights from model.config
    revision: str = knob("")  # hub revision (commit) of init_from
    config: str = knob("")  # a Hugging Face config.json's content as JSON, or a path; only when init_from is ""
    trainable: str = knob("lora", ("lora", "full"))
    dtype: str = knob("auto", ("auto", "float32", "bfloat16"))  # frozen weights and activations; auto = bfloat16 on
    # accelerators, float32 on CPU
    save_dtype: str = knob("float32", ("float32", "bfloat16"))  # of an exported model; adapters are float32
    # what a layer keeps for the backward pass: nothing, every product, its attention, half of a gated feed-forward or
    # the whole one besides, all of that without q, k, v and what came of them, or with the halves in the host's memory,
    # everything; "none": as everything
    remat: str = knob(
        "nothing_saveable",
        (
            *("nothing_saveable", "dots", "attention", "gate", "feed_forward", "gate_up", "offload"),
            *("everything_saveable", "none"),
        ),
    )
    attention: str = knob("", ("", "xla", "cudnn", "splash", "splash_interpret"))  # "" = chosen by platform


@dataclasses.dataclass(frozen=True)
class Data:
    """Says which records are read."""

    # editworld | editworld_perception | editworld_edits | a folder written by prepare_data.py | "my_pkg.mod:function"
    train: str = knob("editworld")
    validation: str = knob("")  # as train, a folder by its validation split or its only one; "" = the same source's
    # validation split
    options: dict = knob(dict)  # further arguments of a built-in world, any keys
    shuffle: bool = knob(True)
    size: int = knob(100_000, "[1, 1000000000]")  # records of a built-in world
    on_bad_record: str = knob("error", ("error", "skip"))  # skip: counted


@dataclasses.dataclass(frozen=True)
class Optim:
    """Says how weights change (see `optim.make`)."""

    name: str = knob("adamw", ("adamw", "muon"))  # muon: matrices; embeddings, norms and biases by adamw
    lr: float = knob(1e-4, "[1e-30, 1000]")  # peak; floats are float32, where less than 1e-30 is nothing
    adam_lr: float = knob(0.0, "0 or [1e-30, 1000]")  # muon only: peak for what is not a matrix; 0 = lr
    schedule: str = knob("cosine", ("cosine", "linear", "constant"))
    warmup: float = knob(0.1, INT32_OR_0)  # below 1: share of the steps; else steps
    end: float = knob(0.0, "[0, 1]")  # final learning rate as a share of the peak
    b1: float = knob(0.9, "[0, 1)")
    b2: float = knob(0.999, "[0, 1)")
    eps: float = knob(1e-8, "[1e-30, 1]")
    weight_decay: float = knob(0.0, "[0, 1000]")  # matrices only
    clip: float = knob(1.0, "0 or [1e-30, 1e30]")  # global norm; 0 = off
    momentum: float = knob(0.95, "[0, 1)")  # muon
    ns_steps: int = knob(5, "[1, 100]")  # muon
    ema: float = knob(0.0, "[0, 1)")  # decay of the average of the weights that is validated and exported; 0 = none


@dataclasses.dataclass(frozen=True)
class Mesh:
    """Says how many devices each axis has."""

    data: int = knob(1, AXIS)
    fsdp: int = knob(-1, AXIS)  # -1 = what is left of the devices
    tensor: int = knob(1, AXIS)


@dataclasses.dataclass(frozen=True)
class Checkpoint:
    """Says when a run is saved."""

    every: int = knob(250, INT32)
    keep: int = knob(3, INT32)
    max_failed: int = knob(10, INT32)  # saves in a row that may fail
    rehearse: bool = knob(True)  # before the first step a checkpoint is written, read and removed
    deadline: int = knob(1800, INT32)  # seconds in which all processes have read a checkpoint, or the run ends


@dataclasses.dataclass(frozen=True)
class Eval:
    """Says when a run is evaluated."""

    every: int = knob(0, INT32_OR_0)  # validation every so many steps; 0 = only at the end


@dataclasses.dataclass(frozen=True)
class Log:
    """Says what is logged."""

    every: int = knob(1, INT32)
    tensorboard: bool = knob(True)
    wandb: bool = knob(False)
    profile_steps: str = knob("")  # "10:13"
    peak_flops: float = knob(0.0, "[0, 1e18]")  # of one device, for MFU; 0 = by its kind, no MFU where unknown


RUN: Sections = {
    "": (Run,), "model": (Model,), "data": (Data,), "optim": (Optim,), "mesh": (Mesh,), "checkpoint": (Checkpoint,),
    "eval": (Eval,), "log": (Log,),
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Epochs:
    """Says how much a step reads."""

    epochs: float = knob(0.0, "[0, 1000000]")  # passes over the data; used when steps is 0
    accum: int = knob(1, "[1, 65536]")  # microbatches a step


@dataclasses.dataclass(frozen=True)
class Batches:
    """Says how records become batches."""

    validation_size: int = knob(256, "[1, 1000000000]")
    resolution: int = knob(84, "[1, 4096]")  # pixels of a built-in world
    buckets: tuple = knob(((1024, 1, 1024, 128),))  # of a row, at most 8, each of the kind's numbers
    workers: int = knob(0, "[0, 512]")  # 0 = inline
    worker_kind: str = knob("thread", ("thread", "process"))  # thread: one runs ahead, `workers` decode | process:
    # `workers` processes


@dataclasses.dataclass(frozen=True)
class Validation:
    """Says how much is held out."""

    batches: int = knob(8, "[0, 1000000]")  # of the validation loss; 0 = none


@dataclasses.dataclass(frozen=True)
class Prompts:
    """Says what an objective that asks in words asks."""

    prompts: str = knob("")  # named prompt texts; "" = those stored with init_from, else the objective's own


SUPERVISED: Sections = {"": (Epochs,), "data": (Batches,), "eval": (Validation,)}


def together(*parts: Mapping[str, Any]) -> Sections:
    """Joins sections; one that is in several has the fields of all, the first one's where they are named alike."""
    out: dict[str, tuple[type, ...]] = {}
    for part in parts:
        for name, classes in part.items():
            out[name] = out.get(name, ()) + (classes if isinstance(classes, tuple) else (classes,))
    return out


def sections(kind: str, objective: str) -> Sections:
    """Gives the sections of a config of supervised training; of another, what its kind of model adds to `RUN` for the
    model itself. Raises ConfigError for a name of nothing."""
    model = interfaces.model_named(kind).SECTIONS
    if objective == REINFORCEMENT:
        return together(RUN, {name: c for name, c in model.items() if name.split(".")[0] == "model"})
    if objective == REPLIES:
        return together(RUN, {"data": Batches}, {name: c for name, c in model.items() if name != "eval"})
    return together(RUN, SUPERVISED, model, objective_sections(objective))


def objective_sections(name: str) -> Mapping[str, Any]:
    """Gives what an objective adds: its options, and the choice of prompts where it has any."""
    found = interfaces.objective_named(name)
    words = {"model": Prompts} if hasattr(found, "choose_prompts") else {}
    return together(words, getattr(found, "SECTIONS", {}))


def knobs(parts: Sections) -> Iterator[tuple[str, Any, str | tuple[str, ...]]]:
    """Yields (dotted key, default, range or choices)."""
    for name, classes in parts.items():
        seen = set()
        for field in (f for c in classes for f in dataclasses.fields(c)):
            if "allowed" in field.metadata and field.name not in seen:
                seen.add(field.name)
                default, allowed = field.default, field.metadata["allowed"]
                default = ConfigDict() if default is dataclasses.MISSING else default
                if default is None and isinstance(allowed, str) and allowed:
                    default = 0.0  # a number that is not said: a config has no None
                yield f"{name}.{field.name}".lstrip("."), default, allowed


def make(parts: Sections) -> ConfigDict:
    """Makes the config of these sections with all defaults; not locked."""
    config = ConfigDict()
    for key, default, _ in knobs(parts):
        *inside, name = key.split(".")
        at = config
        for part in inside:
            if part not in at:
                at[part] = ConfigDict()
            at = at[part]
        at[name] = default
    return config


def default(kind: str = "qwen2_5_vl", objective: str = "editscore") -> ConfigDict:
    """Makes the config of a kind of model and an objective: every key that it has, with its default. Locked: a new key
    cannot be added."""
    config = make(sections(kind, objective))
    config.model.kind, config.objective = kind, objective
    return config.lock()


def elsewhere() -> dict[str, str]:
    """{key or section that only some configs have: which}, of the registered kinds and objectives."""
    out = {}
    found = {f"model.kind={name}": interfaces.model_named(name).SECTIONS for name in interfaces.MODELS}
    found |= {f"objective={name}": objective_sections(name) for name in interfaces.OBJECTIVES}
    for whose, parts in found.items():
        keys = [key for key, _, _ in knobs(together(parts))]
        for key in {*keys, *(name for name in parts if name)}:
            out[key] = f"{out[key]}, {whose}" if key in out else whose
    out |= {key: "supervised training" for key, _, _ in knobs(SUPERVISED)}
    return out


def no_key(key: str, known: list[str]) -> ConfigError:
    """The error of a key that a config does not have, with the nearest right one, or which configs do have it."""
    other = elsewhere()
    if key in other and key not in known:
        return ConfigError(f"no config key '{key}' in this config: one of {other[key]} has it")
    return ConfigError(f"no config key '{key}'{nearest(key, known) or nearest(key, list(other))}")
