"""Writes a trained VLM as other tools read it: a Hugging Face folder (full) or a PEFT adapter (lora), with its card."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from edit_rl_jax.names import portable
from edit_rl_jax.nn import exports, model_files, peft
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.weights import check_finite
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.patches import ImageSettings

LICENCES = {
    hub_id: licence for kind in map(family.named, family.FAMILIES) for hub_id, (_, licence) in kind.PUBLISHED.items()
}
card = functools.partial(exports.card, title="A reward model of image edits", licences=LICENCES)


def image_settings(config: Any, cfg: Architecture) -> ImageSettings:
    """Says how images become patches: the model's geometry, the config's pixel budget."""
    return cfg.images(min_pixels=config.data.min_pixels, max_pixels=config.data.max_pixels)


def export(
    program: Any,
    trainable: st.Flat,
    folder: Path,
    *,
    tokenizer: Any,
    prompts: Any,
    facts: dict[str, Any],
    revision: str = "",
    **_: Any,
) -> Path:
    """Writes the model (`trainable: full`) or the adapter (`lora`) with tokenizer, processor, metadata and card.

    facts: of the card: `steps`, final figures. revision: of the base (`model_files.revision`); a packaged base is
    written by its name in the package. Every process must call; the first writes. Raises WeightsError naming weights
    that are not finite, or that are trained beside an adapter.
    """
    config, state = program.config, st.unflatten(program.trainable_state, trainable)
    kind = family.of(program.model_config)
    budget = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    with exports.writing(folder, exports.metadata(config, prompts, images=budget)) as part:
        if config.model.trainable == "full":
            kind.save(state, program.model_config, part, dtype=jnp.dtype(config.model.save_dtype))
        else:
            lora = config.model.lora
            base = portable(config.model.init_from) or None
            adapter = peft.make_adapter(state, kind.NAMING, lora.rank, lora.alpha, base, task_type="CAUSAL_LM")
            if revision and ":" not in revision:  # a commit of the hub, which PEFT can ask for
                adapter.config["revision"] = revision
            check_finite(state)
            peft.save(state, adapter, part)
        if jax.process_index() == 0:
            write_side_files(part, tokenizer, image_settings(config, program.model_config), program.model_config)
            (part / "README.md").write_text(card(config, prompts, facts, revision))
    return folder


def write_side_files(folder: Path, tokenizer: Any, images: ImageSettings, cfg: Architecture) -> None:
    """Writes the tokenizer's files and `preprocessor_config.json`."""
    tokenizer.save_pretrained(str(folder))
    settings = images.to_hf(cfg.processor) | {"made_by": model_files.MADE_BY}
    (folder / "preprocessor_config.json").write_text(json.dumps(settings, indent=2) + "\n")
