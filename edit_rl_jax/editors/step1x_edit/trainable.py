"""Step1X-Edit as a kind of model (see `training.interfaces`): fine-tuned from its folder."""

import dataclasses
from functools import partial
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors import finetuning
from edit_rl_jax.editors.finetuning import Adapter, batch_format
from edit_rl_jax.editors.rows import Editing
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.editors.step1x_edit import weights
from edit_rl_jax.editors.step1x_edit.editor import Configs, Step1XEdit
from edit_rl_jax.editors.step1x_edit.weights import FOLDER, local_folder
from edit_rl_jax.nn import exports
from edit_rl_jax.ranges import knob

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip

RELEASED = "stepfun-ai/Step1X-Edit-v1p1-diffusers"
card = partial(exports.card, title="An image editor", licences={RELEASED: "Apache-2.0"})
model_config = partial(finetuning.model_config, files=FOLDER, released=RELEASED)
initial_weights = partial(finetuning.initial_weights, files=FOLDER)
export = partial(finetuning.export, files=FOLDER, card=card)
tokenizer = partial(finetuning.chat_tokenizer, load=weights.folder_tokenizer, name="Step1X-Edit")


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    text: int = knob(640, "[1, 2048]")  # states of the language model that are seen, padding too (see Processor)


SECTIONS = {"model": Options, "model.lora": Adapter, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 1, "height": 1, "width": 1}


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    finetuning.check_text(config)
    finetuning.check_sees(config, "Step1X-Edit")


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    return partial(Step1XEdit, cfg, targets=config.model.lora.targets, **finetuning.options(config, dtype))
