"""FLUX.1-Kontext as a kind of model (see `training.interfaces`): fine-tuned from its folder, or from scratch."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors import finetuning
from edit_rl_jax.editors.finetuning import Adapter, batch_format
from edit_rl_jax.editors.flux_kontext import tiny, weights
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
model_config = partial(finetuning.model_config, files=FOLDER, released=RELEASED)
initial_weights = partial(finetuning.initial_weights, files=FOLDER)
export = partial(finetuning.export, files=FOLDER, card=card)


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base, and how much of it is trained."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    tokenizer: str = knob("")  # folder of both, or "editworld" (the tiny editor's own); "" = init_from's
    vae: str = knob("")  # folder of the autoencoder of an editor that is trained from scratch
    train_text: bool = knob(False)  # T5 and CLIP too, all weights
    text: int = knob(512, "[1, 512]")  # tokens of T5's text, at least and at most: its padding is seen (see Processor)


SECTIONS = {"model": Options, "model.lora": Adapter, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 0, "height": 1, "width": 1}


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    finetuning.check_text(config)
    finetuning.check_encoders(config)


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    m = config.model
    return partial(
        FluxKontext, cfg, targets=m.lora.targets, train_text=m.train_text, **finetuning.options(config, dtype)
    )


def tokenizer(config: Any, base: Path | None, cfg: Configs) -> Tokenizers:
    """Those of the base, or those that `model.tokenizer` names; "editworld": the tiny editor's own."""
    name = config.model.tokenizer
    if base is None and not name:
        raise ConfigError("config key 'model.tokenizer': without model.init_from it must be given")
    found = tiny.tokenizers() if name == "editworld" else weights.folder_tokenizer(Path(name) if name else base)
    sizes = {"tokenizer": cfg.text_encoder.vocab_size, "tokenizer_2": cfg.text_encoder_2.vocab_size}
    for (name, size), one in zip(sizes.items(), found):
        if len(one) > size:
            raise ConfigError(f"{name} of {len(one)} entries, its encoder has {size}")
    return found
