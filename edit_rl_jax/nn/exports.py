"""What every exported model has: a folder that is whole or not there, its metadata, and its card."""

import contextlib
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from edit_rl_jax.names import portable
from edit_rl_jax.nn import model_files


def metadata(config: Any, prompts: Any, **more: Any) -> dict[str, Any]:
    """Gives the content of `edit_rl.json`: what inference must share with training; more: a kind's own entries."""
    return {"objective": config.objective, "prompts": prompts.to_json() if prompts is not None else None, **more}


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


def card(
    config: Any,
    prompts: Any,
    facts: Mapping[str, Any],
    revision: str = "",
    *,
    title: str,
    licences: Mapping[str, str] | None = None,
) -> str:
    """Writes the text of a model card: base and its revision, data, prompt version, figures, licence.

    title: where the config has no name. licences: of bases, by hub id.
    """
    m, base = config.model, portable(config.model.init_from)
    licence = (licences or {}).get(m.init_from) or ("that of the base" if m.init_from else "Apache-2.0")
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
