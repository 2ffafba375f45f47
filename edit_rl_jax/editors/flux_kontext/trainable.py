"""FLUX.1-Kontext as a kind of model (see `training.interfaces`): fine-tuned from its folder."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.flux_kontext import weights
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.editor import Configs, FluxKontext
from edit_rl_jax.editors.flux_kontext.processor import Tokenizers
from edit_rl_jax.editors.flux_kontext.weights import local_folder
from edit_rl_jax.editors.mmdit.blocks import TARGETS
from edit_rl_jax.editors.rows import Editing, EditRows
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.editors.text.clip import CLIPConfig
from edit_rl_jax.editors.text.t5 import T5Config
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.model_files import read_config, section, verify
from edit_rl_jax.nn.params import LoRA, LoRAConfig
from edit_rl_jax.nn.peft import check_only_lora
from edit_rl_jax.nn.weights import check_finite
from edit_rl_jax.ranges import knob

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip

RELEASED = "black-forest-labs/FLUX.1-Kontext-dev"
card = partial(exports.card, title="An image editor", licences={RELEASED: "FLUX.1 [dev] Non-Commercial License"})


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    text: int = knob(512, "[1, 512]")  # tokens of T5's text, at least and at most: its padding is seen (see Processor)


@dataclasses.dataclass(frozen=True)
class Adapter(LoRA):
    """Says how large the LoRA is and what it adapts."""

    targets: str = knob("attention", TARGETS)


SECTIONS = {"model": Options, "model.lora": Adapter, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 0, "height": 1, "width": 1}


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    for bucket in config.data.get("buckets", ()):
        if bucket[0] < config.model.text:
            raise ConfigError(
                f"config key 'data.buckets': {bucket[0]} text tokens are fewer than model.text={config.model.text}"
            )


def model_config(config: Any) -> Configs:
    """Of `model.init_from` (the released model needs no download), or the JSON {"text_encoder", "text_encoder_2",
    "transformer", "vae"} of `model.config`."""
    m = config.model
    if m.init_from == RELEASED and not Path(RELEASED).exists():
        return Configs(text=m.text)
    if m.init_from:
        return weights.configs(local_folder(m.init_from, m.revision or None), m.text)
    given, where = read_config(m.config)
    parts = {"text_encoder": CLIPConfig, "text_encoder_2": T5Config, "transformer": FluxConfig, "vae": VAEConfig}
    return Configs(**{part: cls.from_hf(section(given, part, where)) for part, cls in parts.items()}, text=m.text)


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    m = config.model
    return partial(
        FluxKontext,
        cfg,
        lora=LoRAConfig(m.lora.rank, m.lora.alpha) if m.trainable == "lora" else None,
        targets=m.lora.targets,
        trainable=m.trainable,
        dtype=dtype,
        remat=m.remat,
        attention=m.attention or None,
    )


def tokenizer(config: Any, base: Path | None, cfg: Configs) -> Tokenizers:
    """Those of the base."""
    if base is None:
        raise ConfigError("config key 'model.init_from': FLUX.1-Kontext is trained from a folder, which has tokenizers")
    found = weights.folder_tokenizer(base)
    sizes = {"tokenizer": cfg.text_encoder.vocab_size, "tokenizer_2": cfg.text_encoder_2.vocab_size}
    for (name, size), one in zip(sizes.items(), found):
        if len(one) > size:
            raise ConfigError(f"{name} of {len(one)} entries, its encoder has {size}")
    return found


def batch_format(config: Any, cfg: Configs, tokenizer: Tokenizers | None) -> EditRows:
    buckets = [Bucket(*b) for b in config.data.buckets]
    try:
        return EditRows(cfg.processor, tokenizer, buckets)
    except ValueError as e:
        raise ConfigError(f"config key 'data.buckets': {e}") from e


def initial_weights(program: Any, base: Path | None, weights: Any = weights) -> tuple[st.Flat, st.Flat]:
    """Everything from the base, with a fresh or a given LoRA; without one, random. weights: the editor's module.

    Raises WeightsError for files that do not fit, and for what a LoRA run trains but could not export.
    """
    m, key = program.config.model, jax.random.key(program.config.seed)
    if m.trainable == "lora":
        check_only_lora(program.trainable_state)
    if base is None:
        return program.init(key)
    abstract = program.with_shardings("trainable")
    frozen = st.flatten(weights.load(base, program.with_shardings("frozen")))
    if m.trainable == "full":
        return st.flatten(weights.load(base, abstract)), frozen
    if not m.init_adapter:
        return program.init_trainable(key), frozen
    verify(m.init_adapter)
    found = weights.read_lora(m.init_adapter, m.lora.alpha)
    if found.rank != m.lora.rank:
        raise ConfigError(f"config key 'model.init_adapter': rank {found.rank}; model.lora.rank is {m.lora.rank}")
    if TARGETS.index(weights.targets(found.layers)) > TARGETS.index(m.lora.targets):
        raise ConfigError(
            f"config key 'model.init_adapter': it adapts more than model.lora.targets={m.lora.targets!r} says"
        )
    adapter = lora_files.load(m.init_adapter, abstract["transformer"], found)
    return st.flatten(nnx.State({"transformer": adapter})), frozen


def export(program, trainable, folder: Path, *, prompts, facts, revision="", weights=weights, card=card, **_) -> Path:
    """Writes the released folder layout, or the LoRA files; with card and metadata. Every process must call. Raises
    WeightsError naming weights that are not finite. weights, card: the editor's."""
    config, m = program.config, program.config.model
    state = st.unflatten(program.trainable_state, trainable)
    with exports.writing(folder, exports.metadata(config, prompts, **{weights.TEXT: m.text})) as part:
        if m.trainable == "lora":
            check_finite(state["transformer"])
            base = m.init_from or None
            weights.save_lora(state["transformer"], m.lora.rank, m.lora.alpha, part, base)
        else:
            base = weights.local_folder(m.init_from, m.revision or None)
            weights.save(state, program.model_config, part, files_from=base, dtype=jnp.dtype(m.save_dtype))
        if jax.process_index() == 0:
            (part / "README.md").write_text(card(config, prompts, facts, revision))
    return folder
