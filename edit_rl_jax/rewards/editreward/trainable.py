"""A VLM with Gaussian heads as a kind of model that is trained (see `training.interfaces`): EditReward."""

import dataclasses
import logging
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from edit_rl_jax.names import ConfigError, base_folder
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files
from edit_rl_jax.ranges import knob, problem
from edit_rl_jax.rewards.editreward import objective
from edit_rl_jax.rewards.editreward.heads import FUSIONS
from edit_rl_jax.rewards.editreward.model import Reward, of
from edit_rl_jax.rewards.editreward.prompts import TOKEN
from edit_rl_jax.rewards.editreward.weights import (
    RELEASED,
    ROW,
    added,
    card,
    export,
    has_heads,
    joined,
    load_base,
    part,
    table,
)
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm import trainable as vlm
from edit_rl_jax.vlm.export import image_settings
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.rows import Packed
from edit_rl_jax.vlm.trainable import local_folder, model_config

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class HeadOptions:
    """Says how the heads read a prompt, and how their figures become one."""

    fusion: str = knob("mean", FUSIONS)  # of the dimensions; see `heads.fuse`
    positions: str = knob("mrope", ("mrope", "1d"))  # 1d: as the released weights were trained, by an oversight
    dropout: float = knob(0.05, "[0, 0.9]")  # after the first layer of a head, in training


@dataclasses.dataclass(frozen=True)
class Groups:
    """Says which weights learn at a rate of their own: vision tower, merger, decoder, heads."""

    groups: tuple = knob(())  # (beginning of weights' names, peak rate) each, as ("visual.merger.", 1e-5)


log = logging.getLogger("train")
SECTIONS = {**vlm.SECTIONS, "heads": HeadOptions, "optim": Groups}
BUCKET = vlm.BUCKET


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    vlm.check(config)
    prompts = objective.SIDES * objective.DIMENSIONS
    for bucket in config.data.buckets:
        if bucket[3] % prompts:
            raise ConfigError(f"config key 'data.buckets': {bucket[3]} answers are no multiple of a pair's {prompts}")
    for group in config.optim.groups:
        good = isinstance(group, tuple | list) and len(group) == 2 and isinstance(group[0], str)
        if not good or not isinstance(group[1], float | int) or problem(group[1], "0 or [1e-30, 1000]"):
            raise ConfigError(f"config key 'optim.groups' holds (beginning of names, rate); got {group!r}")
    if config.model.init_adapter:
        raise ConfigError("config key 'model.init_adapter': heads start from a base, or from a model with heads")
    if config.eval.passes != 1:
        raise ConfigError("config key 'eval.passes': heads read an edit once")


def token_of(config: Any, cfg: Architecture) -> int:
    """The reward token's id: that of the tokenizer with the token added. Published bases need no download for it."""
    m = config.model
    if m.init_from and not m.tokenizer and not Path(m.init_from).exists() and family.published(m.init_from):
        return family.of(cfg).ENTRIES
    base = base_folder(m, local_folder)
    if base is None and not m.tokenizer:
        return cfg.vocab_size - 1  # no text is read
    return tokenizer(config, base, cfg).convert_tokens_to_ids(TOKEN)


def make(config: Any, cfg: Architecture, mesh: Mesh, dtype: Any) -> partial:
    base = vlm.make(config, cfg, mesh, dtype)
    return partial(of(cfg), *base.args, reward=Reward(token_of(config, cfg)), **base.keywords)


def tokenizer(config: Any, base: Path | None, cfg: Architecture) -> Any:
    """The tokenizer of the base, with the reward token. Raises ConfigError as `vlm.trainable.tokenizer`, and for one
    whose table has no row left for it."""
    found = vlm.tokenizer(config, base, cfg)
    found.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
    if len(found) > cfg.vocab_size:
        raise ConfigError(f"the base's table has {cfg.vocab_size} rows, with {TOKEN} the tokenizer has {len(found)}")
    published = not config.model.tokenizer and family.published(config.model.init_from)
    if published and (token := found.convert_tokens_to_ids(TOKEN)) != (wanted := family.of(cfg).ENTRIES):
        raise ConfigError(f"{TOKEN} is {token} in the tokenizer of '{config.model.init_from}', {wanted} wanted")
    return found


def batch_format(config: Any, cfg: Architecture, tokenizer: Any) -> Packed:
    try:
        buckets, images = [Bucket(*b) for b in config.data.buckets], image_settings(config, cfg)
        options = dict(extras=objective.EXTRAS, positions=config.heads.positions)
        return Packed(tokenizer, cfg, buckets, images, **options)
    except ValueError as e:
        raise ConfigError(f"config key 'data.buckets': {e}") from e


def other_heads(config: Any, base: Path) -> str:
    """Says how the heads of a base read otherwise than the config's will; "" where they do not, or there are none."""
    if not has_heads(base):
        return ""
    stored = {**RELEASED, **(model_files.stored_metadata(base).get("heads") or {})}
    differ = {key: value for key, value in stored.items() if config.heads.get(key) != value}
    keys = ", ".join(f"config key 'heads.{key}' is {config.heads[key]}, there {value}" for key, value in differ.items())
    return keys and f"the heads of {base} were trained otherwise: {keys}"


def initial_weights(program: Any, base: Path | None) -> tuple[st.Flat, st.Flat]:
    """(trainable, frozen) on the mesh: random by `config.seed`, then the base's over them, and its heads where it has
    any. Raises WeightsError for files that do not fit."""
    config, cfg, key = program.config, program.model_config, jax.random.key(program.config.seed)
    if base is None:
        return program.init(key)
    fresh = st.unflatten(program.trainable_state, program.init_trainable(key))
    if told := other_heads(config, base):
        log.warning("%s", told)
    state = joined(fresh, program.with_shardings("frozen"))
    if config.model.trainable == "full":
        state = joined(state, part(program.with_shardings("trainable"), lambda p: not added(p)))
    loaded = st.flatten(load_base(base, state, cfg))
    row = loaded[".".join(table(state)[0])][token_of(config, cfg)]
    loaded[ROW] = jax.device_put(row.astype(jnp.float32), program.trainable[ROW].sharding)
    return tuple({k: loaded[k] for k in names} for names in (program.trainable, program.frozen))
