"""A VLM of any family as a kind of model that is trained (see `training.interfaces`): reward models, the tiny base."""

import dataclasses
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from edit_rl_jax.names import ConfigError, base_folder, model_folder
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files, peft, weights
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import listing
from edit_rl_jax.ranges import knob
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.export import card, export, image_settings
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.folders import local_folder
from edit_rl_jax.vlm.loading import lora_of
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.rows import Packed
from edit_rl_jax.vlm.tokenizer import check_tokenizer, load_tokenizer

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what a VLM starts from besides its base."""

    init_adapter: str = knob("")  # PEFT folder whose LoRA weights are the start
    tokenizer: str = knob("")  # folder, hub id, or "editworld" (trained on the spot, in a second); "" = init_from's


@dataclasses.dataclass(frozen=True)
class Images:
    """Bounds the pixels of an image."""

    min_pixels: int = knob(56 * 56, "[1, 1000000000]")
    max_pixels: int = knob(512 * 512, "[784, 1000000000]")  # a larger image is shrunk to that; 784: 28 x 28 pixels are
    # one place in the model's text


@dataclasses.dataclass(frozen=True)
class Judging:
    """Says how the trained model is judged at the end."""

    pairs: int = knob(0, "[0, 1000000]")  # at the end, pairs scored by generation for eval.json; 0 = no pairs
    passes: int = knob(1, "[1, 1000]")  # sampled answers a question, averaged; 1 = greedy
    controls: bool = knob(True)  # the same pairs with images blanked and with instructions shuffled, too


SECTIONS = {"model": Options, "model.lora": LoRAConfig, "data": Images, "eval": Judging}
BUCKET = {"tokens": 1, "vision rows": 1, "patch slots a vision row": 1, "answer tokens": 1}


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    d = config.data
    for bucket in d.buckets:
        if bucket[3] > bucket[0]:
            raise ConfigError(f"config key 'data.buckets': more answer tokens than tokens in {tuple(bucket)}")
    if d.min_pixels > d.max_pixels:
        raise ConfigError(f"config key 'data.min_pixels' is {d.min_pixels}, above data.max_pixels={d.max_pixels}")


def model_config(config: Any) -> Architecture:
    """The architecture that `config.model` names. Published sizes need no download."""
    m, source = config.model, config.model.config
    if not source:
        known = None if Path(m.init_from).exists() else family.published(m.init_from)
        source = known[0] if known else base_folder(m, local_folder)
    return family.of(source).architecture(source)


def make(config: Any, cfg: Architecture, mesh: Mesh, dtype: Any) -> partial:
    m = config.model
    if none := [k for k in ("vision", "merger", "deepstack") if m.lora[k] and k not in family.of(cfg).LORA_PARTS]:
        raise ConfigError(f"config key 'model.lora.{none[0]}': {cfg.model_type} has no such part")
    return partial(
        family.of(cfg).model,
        cfg,
        lora=LoRAConfig(**m.lora.to_dict()) if m.trainable == "lora" else None,
        trainable=m.trainable,
        dtype=dtype,
        remat=m.remat,
        attention=m.attention or None,
    )


def tokenizer(config: Any, base: Path | None, cfg: Architecture) -> Any:
    """The tokenizer that `config.model.tokenizer` names, else the base's. ConfigError if the model is another's."""
    if config.model.tokenizer == "editworld":
        from edit_rl_jax.editworld import tokenizer as world

        with tempfile.TemporaryDirectory() as folder:
            world.save(folder)
            found = load_tokenizer(folder)
    else:
        try:
            found = load_tokenizer(config.model.tokenizer or base)
        except (OSError, ValueError) as e:
            name = config.model.tokenizer or base
            raise ConfigError(f"no tokenizer in '{name}': {str(e).splitlines()[0]}") from e
    try:
        check_tokenizer(found, cfg)
    except ValueError as e:
        raise ConfigError(str(e)) from e
    return found


def batch_format(config: Any, cfg: Architecture, tokenizer: Any) -> Packed:
    try:
        return Packed(tokenizer, cfg, [Bucket(*b) for b in config.data.buckets], image_settings(config, cfg))
    except ValueError as e:
        raise ConfigError(f"config key 'data.buckets': {e}") from e


def initial_weights(program: Any, base: Path | None) -> tuple[st.Flat, st.Flat]:
    """(trainable, frozen) on the mesh: random by `config.seed`, then the base's and the adapter's weights over them.

    Raises WeightsError for files that do not fit and for what a LoRA run trains but could not export, ConfigError for
    an adapter that is not what `model.lora` describes.
    """
    m, key = program.config.model, jax.random.key(program.config.seed)
    naming = family.of(program.model_config).NAMING
    if m.trainable == "lora":
        peft.check_only_lora(program.trainable_state)
    if base is None:
        return program.init(key)
    if m.trainable == "full":
        return st.flatten(weights.load(base, program.with_shardings("trainable"), naming)), {}
    if m.init_adapter:
        folder = model_folder(m, "init_adapter", local_folder)
        model_files.verify(folder)
        check_adapter(program, peft.read_adapter(folder, naming))
        trainable = st.flatten(peft.load(folder, program.with_shardings("trainable"), naming))
    else:
        trainable = program.init_trainable(key)
    return trainable, st.flatten(weights.load(base, program.with_shardings("frozen"), naming))


def check_adapter(program: Any, adapter: peft.Adapter) -> None:
    """Raises ConfigError naming each key of `model.lora` in which the adapter differs: another alpha would change what
    it computes, and a layer that it does not cover would start at zero and stay there. An rsLoRA's alpha is that of
    plain LoRA, alpha * sqrt(rank)."""
    lora, kind = program.config.model.lora, family.of(program.model_config)
    found = lora_of(adapter, kind)
    if not adapter.uniform:
        raise ConfigError(
            "config key 'model.init_adapter': its layers differ in rank or alpha; model.lora has one each"
        )
    wrong = [
        f"model.lora.{key} is {lora[key]}, the adapter's {getattr(found, key)}"
        for key in ("rank", "alpha", "vision", "merger", "deepstack")
        if lora[key] != getattr(found, key)
    ]
    left = [m for m in peft.modules(program.trainable_state, kind.NAMING) if not adapter.targets(m)]
    if not wrong and left:
        wrong = [f"the adapter does not cover {', '.join(left[:5])}{' and more' if len(left) > 5 else ''}"]
    states = (program.trainable_state, program.frozen_state)
    everything = set().union(*(peft.adaptable(s, kind.NAMING) for s in states))
    if missing := adapter.missing(sorted(everything)):
        wrong.append(f"it targets layers of which it has no tensors: {listing(missing)}")
    if wrong:
        raise ConfigError("config key 'model.init_adapter': " + "; ".join(wrong))
