"""Step1X-Edit as a kind of model (see `training.interfaces`): fine-tuned from its folder."""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from edit_rl_jax.editors.flux_kontext import trainable as flux
from edit_rl_jax.editors.flux_kontext.trainable import Adapter, batch_format
from edit_rl_jax.editors.rows import Editing
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.editors.step1x_edit import weights
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.editor import Configs, Step1XEdit
from edit_rl_jax.editors.step1x_edit.prompt import Tokenizer
from edit_rl_jax.editors.step1x_edit.weights import local_folder
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports
from edit_rl_jax.nn.model_files import read_config, section
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.ranges import knob
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.tokenizer import check_tokenizer

__all__ = [
    "BUCKET", "SECTIONS", "Bucket", "batch_format", "card", "check", "export", "initial_weights", "local_folder",
    "make", "model_config", "tokenizer",
]  # fmt: skip

RELEASED = "stepfun-ai/Step1X-Edit-v1p1-diffusers"
card = partial(exports.card, title="An image editor", licences={RELEASED: "Apache-2.0"})
initial_weights = partial(flux.initial_weights, weights=weights)
export = partial(flux.export, weights=weights, card=card)


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what an editor starts from besides its base."""

    init_adapter: str = knob("")  # folder whose LoRA weights are the start
    text: int = knob(640, "[1, 2048]")  # states of the language model that are seen, padding too (see Processor)


SECTIONS = {"model": Options, "model.lora": Adapter, "eval": Editing}
BUCKET = {"text tokens": 1, "references": 1, "height": 1, "width": 1}


def check(config: Any) -> None:
    """Raises ConfigError for values that do not fit together."""
    flux.check(config)
    flow = config.get("flow", {})
    if flow.get("drop_text", 0) and flow.get("drop_references", 0):
        raise ConfigError(
            f"config key 'flow.drop_references': {flow.drop_references}; Step1X-Edit always sees the image: set it to 0"
        )


def model_config(config: Any) -> Configs:
    """Of `model.init_from` (the released model needs no download), or the JSON {"text_encoder", "transformer", "vae"}
    of `model.config`."""
    m = config.model
    if m.init_from == RELEASED and not Path(RELEASED).exists():
        return Configs(text=m.text)
    if m.init_from:
        return weights.configs(local_folder(m.init_from, m.revision or None), m.text)
    given, where = read_config(m.config)
    parts = {"text_encoder": Config, "transformer": Step1XConfig, "vae": VAEConfig}
    return Configs(**{part: cls.from_hf(section(given, part, where)) for part, cls in parts.items()}, text=m.text)


def make(config: Any, cfg: Configs, mesh: Mesh, dtype: Any) -> partial:
    m = config.model
    return partial(
        Step1XEdit,
        cfg,
        lora=LoRAConfig(m.lora.rank, m.lora.alpha) if m.trainable == "lora" else None,
        targets=m.lora.targets,
        trainable=m.trainable,
        dtype=dtype,
        remat=m.remat,
        attention=m.attention or None,
    )


def tokenizer(config: Any, base: Path | None, cfg: Configs) -> Tokenizer:
    """That of the base, with the prompt's prefix."""
    if base is None:
        raise ConfigError("config key 'model.init_from': Step1X-Edit is trained from a folder, which has a tokenizer")
    found = weights.folder_tokenizer(base)
    check_tokenizer(found.text, cfg.text_encoder)
    return found
