"""The trained model as other tools read it: a Hugging Face folder (full) or a PEFT adapter folder (lora), with card."""

import contextlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.weights import check_finite
from edit_rl_jax.training.config import portable
from edit_rl_jax.training.program import Program
from edit_rl_jax.training.sources import image_settings
from edit_rl_jax.vlm.qwen2_5_vl import peft, sizes, weights


def metadata(config: Any, prompts: Any) -> dict[str, Any]:
    """What inference must share with training: the prompt texts and the pixel budget. Stored as `edit_rl.json`."""
    return {
        "objective": config.objective,
        "prompts": prompts.to_json() if prompts is not None else None,
        "images": {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels},
    }


@contextlib.contextmanager
def writing(folder: Path, stored: dict[str, Any]) -> Iterator[Path]:
    """Gives a folder to write an export to, and at the end puts it in the place of `folder`, whole, with `stored` and
    the SHA-256 of its files in `edit_rl.json`. An export that fails leaves what there was. Every process enters."""
    part, lead = folder.with_name(f"{folder.name}.partial"), jax.process_index() == 0
    if lead:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
    yield part
    if lead:
        model_files.stamp(part, stored)
        if folder.exists():
            shutil.rmtree(folder)
        part.rename(folder)


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
    its name in the package. frozen: not needed. Every process must call; the first writes. Raises WeightsError naming
    weights that are not finite.
    """
    with writing(folder, metadata(program.config, prompts)) as part:
        _write(program, trainable, part, tokenizer, prompts, facts, revision)
    return folder


def _write(program: Program, trainable: st.Flat, folder: Path, tokenizer, prompts, facts, revision: str) -> None:
    config, state = program.config, st.unflatten(program.trainable_state, trainable)
    if config.model.trainable == "full":
        weights.save(state, program.model_config, folder, dtype=jnp.dtype(config.model.save_dtype))
    else:
        lora = config.model.lora
        adapter = peft.make_adapter(state, lora.rank, lora.alpha, portable(config.model.init_from) or None)
        if revision and ":" not in revision:  # a commit of the hub, which PEFT can ask for
            adapter.config["revision"] = revision
        check_finite(state)
        peft.save(state, adapter, folder)
    if jax.process_index():
        return
    tokenizer.save_pretrained(str(folder))
    images = image_settings(config, program.model_config).to_hf() | {"made_by": model_files.MADE_BY}
    (folder / "preprocessor_config.json").write_text(json.dumps(images, indent=2) + "\n")
    (folder / "README.md").write_text(card(config, prompts, facts, revision))


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
