"""Qwen-Image-Edit as a kind of model (see `training.interfaces`): fine-tuned from its folder."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors import finetuning
from edit_rl_jax.editors.finetuning import Adapter, batch_format
from edit_rl_jax.editors.qwen_image_edit import weights
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.editor import Configs, QwenImageEdit
from edit_rl_jax.editors.qwen_image_edit.weights import FOLDER, local_folder
from edit_rl_jax.editors.rows import Editing
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports
from edit_rl_jax.ranges import knob

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip

RELEASED = {
    "Qwen/Qwen-Image-Edit": Configs(),
    "Qwen/Qwen-Image-Edit-2509": Configs(plus=True),
    "Qwen/Qwen-Image-Edit-2511": Configs(plus=True, transformer=QwenImageConfig(zero_cond_t=True)),
}
card = partial(exports.card, title="An image editor", licences=dict.fromkeys(RELEASED, "Apache-2.0"))
initial_weights = partial(finetuning.initial_weights, files=FOLDER)
export = partial(finetuning.export, files=FOLDER, card=card)
check = partial(finetuning.check_sees, name="Qwen-Image-Edit")
tokenizer = partial(finetuning.chat_tokenizer, load=weights.folder_tokenizer, name="Qwen-Image-Edit")


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start


SECTIONS = {"model": Options, "model.lora": Adapter, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 1, "height": 1, "width": 1}


def model_config(config: Any) -> Configs:
    """Reads the configurations of `model.init_from`; those of the released models need no download."""
    name = config.model.init_from
    if name in RELEASED and not Path(name).exists():
        return RELEASED[name]
    if not name:
        raise ConfigError("config key 'model.init_from': Qwen-Image-Edit is trained from a folder")
    return FOLDER.configs(FOLDER.local_folder(name, config.model.revision or None))


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    return partial(QwenImageEdit, cfg, targets=config.model.lora.targets, **finetuning.options(config, dtype))
