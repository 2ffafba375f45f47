"""The trained model as other tools read it: a Hugging Face folder (full) or a PEFT adapter folder (lora), with card."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from edit_rl_jax.qwen2_5_vl import peft, sizes, weights
from edit_rl_jax.qwen2_5_vl.weights import METADATA
from edit_rl_jax.training import state as st
from edit_rl_jax.training.build import Program
from edit_rl_jax.training.config import portable
from edit_rl_jax.training.data import image_settings


def metadata(config: Any, prompts: Any) -> dict[str, Any]:
    """What inference must share with training: the prompt texts and the pixel budget. Stored as `edit_rl.json`."""
    return {
        "objective": config.objective,
        "prompts": prompts.to_json() if prompts is not None else None,
        "images": {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels},
    }


def stored_metadata(folder: str | Path) -> dict[str, Any]:
    """The `edit_rl.json` of a model or adapter folder; {} where there is none (a plain Hugging Face model)."""
    path = Path(folder) / METADATA
    return json.loads(path.read_text()) if path.exists() else {}


def export(
    program: Program,
    trainable: st.Flat,
    folder: Path,
    *,
    tokenizer: Any,
    prompts: Any,
    facts: dict[str, Any],
    revision: str = "",
    frozen: st.Flat | None = None,
) -> Path:
    """Writes the model (`trainable: full`) or the adapter (`lora`) with tokenizer, processor, metadata and card.

    facts: of the card: `steps`, final figures. revision: of the base (`start.revision`); a packaged base is written by
    its name in the package. frozen: not needed. Every process must call; the first writes.
    """
    config, state = program.config, st.unflatten(program.trainable_state, trainable)
    if config.model.trainable == "full":
        weights.save(state, program.model_config, folder, dtype=jnp.dtype(config.model.save_dtype))
    else:
        lora = config.model.lora
        adapter = peft.make_adapter(state, lora.rank, lora.alpha, portable(config.model.init_from) or None)
        if revision and ":" not in revision:  # a commit of the hub, which PEFT can ask for
            adapter.config["revision"] = revision
        peft.save(state, adapter, folder)
    if jax.process_index():
        return folder
    tokenizer.save_pretrained(str(folder))
    write = lambda name, value: (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    write("preprocessor_config.json", image_settings(config, program.model_config).to_hf())
    write(METADATA, metadata(config, prompts))
    (folder / "README.md").write_text(card(config, prompts, facts, revision))
    return folder


def card(
    config: Any, prompts: Any, facts: dict[str, Any], revision: str = "", title: str = "A reward model of image edits"
) -> str:
    """The model card: base and its revision, data, prompt version, figures, licence. title: where there is no name."""
    m, base = config.model, portable(config.model.init_from)
    size = {hub_id: s for s, hub_id in sizes.HUB_IDS.items()}.get(m.init_from, "")
    licence = sizes.LICENCES[size] if size else "that of the base" if m.init_from else "Apache-2.0"
    revision = revision or m.revision
    origin = f"`{base}`{f' @ {revision}' if revision else ''}" if base else "none: random weights"
    kind = f"LoRA adapter, rank {m.lora.rank}, alpha {m.lora.alpha:g}" if m.trainable == "lora" else "all weights"
    asked = f"{prompts.name} version {prompts.version}, sha256 {prompts.sha256}" if prompts is not None else "none"
    text = lambda v: (
        " to ".join(map(text, v)) if isinstance(v, list) else f"{v:.4g}" if isinstance(v, float) else str(v)
    )
    rows = "\n".join(f"| {k} | {text(v)} |" for k, v in facts.items())
    head = f"---\nbase_model: {base}\nlibrary_name: peft\n---\n" if m.trainable == "lora" and m.init_from else ""
    return f"""{head}# {config.name or title}

Trained by edit_rl_jax, objective `{config.objective}`.

| | |
|---|---|
| base | {origin} |
| trained | {kind} |
| data | {config.data.train} |
| prompts | {asked} |
| licence | {licence} |
{rows}
"""
