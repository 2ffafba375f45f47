"""Writes a trained VLM as other tools read it: a Hugging Face folder (full) or a PEFT adapter (lora), with its card."""

import functools
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from edit_rl_jax.data.images import ImageSettings
from edit_rl_jax.names import portable
from edit_rl_jax.nn import exports, model_files
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.weights import check_finite
from edit_rl_jax.vlm.qwen2_5_vl import peft, sizes, weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

LICENCES = {hub_id: sizes.LICENCES[size] for size, hub_id in sizes.HUB_IDS.items()}
card = functools.partial(exports.card, title="A reward model of image edits", licences=LICENCES)


def image_settings(config: Any, cfg: Config) -> ImageSettings:
    """Says how images become patches: the model's geometry, the config's pixel budget."""
    d, v = config.data, cfg.vision
    return ImageSettings(
        v.patch_size, v.temporal_patch_size, v.spatial_merge_size, min_pixels=d.min_pixels, max_pixels=d.max_pixels
    )


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
    budget = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    with exports.writing(folder, exports.metadata(config, prompts, images=budget)) as part:
        if config.model.trainable == "full":
            weights.save(state, program.model_config, part, dtype=jnp.dtype(config.model.save_dtype))
        else:
            lora = config.model.lora
            adapter = peft.make_adapter(state, lora.rank, lora.alpha, portable(config.model.init_from) or None)
            if revision and ":" not in revision:  # a commit of the hub, which PEFT can ask for
                adapter.config["revision"] = revision
            check_finite(state)
            peft.save(state, adapter, part)
        if jax.process_index() == 0:
            tokenizer.save_pretrained(str(part))
            images = image_settings(config, program.model_config).to_hf() | {"made_by": model_files.MADE_BY}
            (part / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
            (part / "README.md").write_text(card(config, prompts, facts, revision))
    return folder
