"""OmniGen2 as a kind of model (see `training.interfaces`): fine-tuned from its folder, or small and from scratch."""

import dataclasses
import json
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from edit_rl_jax.editors import finetuning
from edit_rl_jax.editors.finetuning import batch_format
from edit_rl_jax.editors.omnigen2 import tiny, weights
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs, OmniGen2
from edit_rl_jax.editors.omnigen2.weights import FOLDER, local_folder
from edit_rl_jax.editors.rows import Editing
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.model_files import read_config, section, verify
from edit_rl_jax.nn.params import LoRA
from edit_rl_jax.nn.weights import check_finite, load
from edit_rl_jax.ranges import knob
from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.tokenizer import load_tokenizer

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip

RELEASED = "OmniGen2/OmniGen2"
card = partial(exports.card, title="An image editor")


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base, and how much of it is trained."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    tokenizer: str = knob("")  # folder, hub id, or "editworld" (the tiny editor's own); "" = init_from's
    vae: str = knob("")  # folder of the autoencoder of an editor that is trained from scratch
    train_text: bool = knob(False)  # the language model too, all weights


SECTIONS = {"model": Options, "model.lora": LoRA, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 0, "height": 1, "width": 1}


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    if config.model.train_text and config.model.trainable == "lora":
        raise ConfigError("config key 'model.train_text' needs model.trainable=full: a LoRA is the transformer's alone")


def model_config(config: Any) -> Configs:
    """Of `model.init_from` (the released model needs no download), or the JSON {"mllm", "transformer", "vae"} of
    `model.config`; with `model.vae`, that folder's autoencoder."""
    m = config.model
    if m.init_from == RELEASED and not Path(RELEASED).exists():
        return Configs(Config.from_hf(sizes.config("3B")), OmniGen2Config(), VAEConfig())
    if m.init_from:
        return weights.configs(local_folder(m.init_from, m.revision or None))
    parts, where = read_config(m.config)
    mllm, transformer = (section(parts, part, where) for part in ("mllm", "transformer"))
    vae = VAEConfig.from_hf(m.vae or section(parts, "vae", where))
    return Configs(Config.from_hf(mllm), OmniGen2Config.from_hf(transformer), vae)


def to_json(cfg: Configs) -> str:
    """What `model_config` reads."""
    return json.dumps({part: getattr(cfg, part).to_hf() for part in weights.PARTS})


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    more = {"train_mllm": config.model.train_text, **FOLDER.on_mesh(mesh)}
    return partial(OmniGen2, cfg, **finetuning.options(config, dtype), **more)


def tokenizer(config: Any, base: Path | None, cfg: Configs) -> Any:
    """That of the base's processor, or the one that `model.tokenizer` names; "editworld": the tiny editor's own."""
    if config.model.tokenizer == "editworld":
        found = tiny.transformers_tokenizer()
    else:
        found = load_tokenizer(config.model.tokenizer or base / "processor")
    if len(found) > cfg.mllm.text.vocab_size:
        raise ConfigError(f"tokenizer of {len(found)} entries, the language model has {cfg.mllm.text.vocab_size}")
    return found


def initial_weights(program: Any, base: Path | None) -> tuple[st.Flat, st.Flat]:
    """As `finetuning.initial_weights`; without a base, random but for `model.vae`."""
    trainable, frozen = finetuning.initial_weights(program, base, files=FOLDER)
    if base is None and (folder := program.config.model.vae):
        verify(folder)
        vae = load(Path(folder), program.with_shardings("frozen")["vae"], flux_vae.NAMING)
        frozen |= st.flatten(nnx.State({"vae": vae}))
    return trainable, frozen


def export(program, trainable, folder: Path, *, tokenizer, prompts, facts, revision="", frozen=None, **_) -> Path:
    """Writes the released folder layout, or the LoRA files; with card and metadata. Every process must call. Raises
    WeightsError naming weights that are not finite."""
    with exports.writing(folder, exports.metadata(program.config, prompts)) as part:
        _write(program, trainable, part, tokenizer, prompts, facts, revision, frozen)
    return folder


def _write(program, trainable, folder: Path, tokenizer, prompts, facts, revision: str, frozen) -> None:
    config, m = program.config, program.config.model
    base = local_folder(m.init_from, m.revision or None) if m.init_from else None
    state, dtype = st.unflatten(program.trainable_state, trainable), jnp.dtype(m.save_dtype)
    if m.trainable == "lora":
        check_finite(state["transformer"])
        weights.save_lora(state["transformer"], m.lora.rank, m.lora.alpha, folder, m.init_from or None)
    elif base:
        parts = ("transformer", "mllm") if m.train_text else ("transformer",)
        weights.save(state, program.model_config, folder, files_from=base, parts=parts, dtype=dtype)
    else:
        both = (state, st.unflatten(program.frozen_state, frozen))
        whole = [pair for part in both for pair in nnx.to_flat_state(part)]
        # A fixed shift is the training's alone: the folder cannot say one, and "dynamic" is another.
        shift = {"dynamic_time_shift": "flow" in config and config.flow.shift in ("linear", "sqrt")}
        weights.save(nnx.from_flat_state(whole), program.model_config, folder, dtype=m.save_dtype, scheduler=shift)
    if jax.process_index() == 0:
        if m.trainable == "full":
            tokenizer.save_pretrained(str(folder / "processor"))
        (folder / "README.md").write_text(card(config, prompts, facts, revision))
