"""FLUX.1-Kontext as a kind of model (see `training.interfaces`): fine-tuned from its folder."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors import finetuning
from edit_rl_jax.editors.finetuning import Adapter, batch_format
from edit_rl_jax.editors.flux_kontext import weights
from edit_rl_jax.editors.flux_kontext.editor import Configs, FluxKontext
from edit_rl_jax.editors.flux_kontext.processor import Tokenizers
from edit_rl_jax.editors.flux_kontext.weights import FOLDER, local_folder
from edit_rl_jax.editors.rows import Editing
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports
from edit_rl_jax.ranges import knob

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip

RELEASED = "black-forest-labs/FLUX.1-Kontext-dev"
card = partial(exports.card, title="An image editor", licences={RELEASED: "FLUX.1 [dev] Non-Commercial License"})
check = finetuning.check_text
model_config = partial(finetuning.model_config, files=FOLDER, released=RELEASED)
initial_weights = partial(finetuning.initial_weights, files=FOLDER)
export = partial(finetuning.export, files=FOLDER, card=card)


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    text: int = knob(512, "[1, 512]")  # tokens of T5's text, at least and at most: its padding is seen (see Processor)


SECTIONS = {"model": Options, "model.lora": Adapter, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 0, "height": 1, "width": 1}


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    return partial(FluxKontext, cfg, targets=config.model.lora.targets, **finetuning.options(config, dtype))


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
