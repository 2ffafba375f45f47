"""OmniGen2 as a kind of model (see `training.interfaces`): fine-tuned from its folder, or small and from scratch."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors import finetuning
from edit_rl_jax.editors.finetuning import batch_format
from edit_rl_jax.editors.omnigen2 import tiny, weights
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.editor import Configs, OmniGen2
from edit_rl_jax.editors.omnigen2.weights import FOLDER, local_folder
from edit_rl_jax.editors.rows import Editing
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports
from edit_rl_jax.nn.model_files import read_config, section
from edit_rl_jax.nn.params import LoRA
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
check = finetuning.check_encoders
initial_weights = partial(finetuning.initial_weights, files=FOLDER)
export = partial(finetuning.export, files=FOLDER, card=card)
to_json = FOLDER.to_json


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base, and how much of it is trained."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    tokenizer: str = knob("")  # folder, hub id, or "editworld" (the tiny editor's own); "" = init_from's
    vae: str = knob("")  # folder of the autoencoder of an editor that is trained from scratch
    train_text: bool = knob(False)  # the language model too, all weights


SECTIONS = {"model": Options, "model.lora": LoRA, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 0, "height": 1, "width": 1}


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
