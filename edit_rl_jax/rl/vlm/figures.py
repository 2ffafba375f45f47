"""An iteration's figures, what is wrong with it, and what a verifier's folder says and is told."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.names import ConfigError, model_folder
from edit_rl_jax.nn import model_files
from edit_rl_jax.rewards.edit_rrm import prompts as texts
from edit_rl_jax.rl.vlm import hosts
from edit_rl_jax.rl.vlm.packing import Batch
from edit_rl_jax.training.session import Guard
from edit_rl_jax.vlm.folders import local_folder

OBJECTIVE = "edit_rrm"  # of the folder that is exported: its judge


def prompts(config: Any, base: Path | None) -> texts.Prompts:
    """Chooses the verifier's prompts: `rl.prompts`, else those stored with the adapter or the base of that objective,
    else the standard ones. Raises ConfigError."""
    m, stored = config.model, None
    homes = [model_folder(m, "init_adapter", local_folder)] if m.init_adapter else []
    for home in (*homes, *([base] if base else [])):
        said = model_files.stored_metadata(home)
        stored = stored or (said.get("prompts") if said.get("objective") == OBJECTIVE else None)
    try:
        return texts.choose(config.rl.prompts, stored)
    except (KeyError, ValueError) as e:
        raise ConfigError(f"config key 'rl.prompts': {e.args[0]}") from e


def exported(program: Any) -> Any:
    """Gives the program as one of the verifier's own objective, by which its judge is found."""
    config = program.config.copy_and_resolve_references()
    with config.unlocked():
        config.objective = OBJECTIVE
    return dataclasses.replace(program, config=config)


def counts(engine: Any) -> dict[str, int]:
    """Gives what the engine has computed."""
    return {k: getattr(engine.counters, k) for k in ("images", "prefill_tokens", "answers", "decode_steps")}


def since(engine: Any, before: dict[str, int]) -> dict[str, int]:
    """Gives what the engines of all processes have computed since `counts` gave `before`."""
    return hosts.total({k: v - before[k] for k, v in counts(engine).items()})


def summary(updates: Sequence[dict[str, Any]], batches: Sequence[Batch]) -> dict[str, float]:
    """Sums up an iteration: means over tokens (of loss, gradient norm and rate over updates), extremes over all.

    `log_ratio_first`: the greatest |log-ratio| of the first update, 0. Means and extremes of nothing are left out. The
    difference to the engine is of the first update, for the others come after the weights moved.
    """
    out: dict[str, float] = {}
    for key in sorted(updates[0].keys() - {"row_losses", "finite", "weights"}):
        seen = updates[:1] if key.startswith("engine_difference") else updates
        values = [float(u[key]) for u in seen]
        weights = [float(u["weights"].get(key, 1.0)) for u in seen]
        if key.endswith(("_max", "_min")):
            value = (max if key.endswith("_max") else min)(values)
            known = np.isfinite(value)
        else:
            known = sum(weights) > 0
            value = np.average(values, weights=weights) if known else 0.0
        if known:
            out[key] = float(value)
    first = float(updates[0]["log_ratio_abs_max"])
    out["log_ratio_first"] = first if np.isfinite(first) else 0.0
    run = [b for b in batches if b.count]
    out["microbatches"] = float(sum(b.count for b in batches))
    out["replies_trained"] = float(sum(len(row) for b in batches for m in b.names for row in m))
    out["replies_left_out"] = float(sum(b.left_out for b in batches))
    out["update_images"] = float(sum(b.images for b in batches))
    out["real_token_share"] = float(np.mean([b.real_token_share for b in run])) if run else 0.0
    return out


def check(
    guard: Guard,
    step: int,
    updates: Sequence[dict[str, Any]],
    batches: Sequence[Batch],
    shown: Mapping[str, float],
) -> Iterator[str]:
    """Gives a line for each update that was refused, for replies that found no row, and for a rollout of which nothing
    trains; where no reply of it could be read or had a label, that counts as refused. shown: the rollout's figures, of
    `rollout.advantages_of`. Raises NonFiniteError as `Guard`."""
    if not any(b.count for b in batches):
        n = {name: int(shown.get(name, 0)) for name in ("parse_failures", "replies", "without_label", "images")}
        line = (
            f"step {step}: nothing trains: {n['parse_failures']} of {n['replies']} replies cannot be read, "
            f"{n['without_label']} of {n['images']} images have no label, all others no advantage"
        )
        hopeless = n["parse_failures"] == n["replies"] or n["without_label"] == n["images"]
        yield guard.refused(line) if hopeless else line
        return
    for out, batch in zip(updates, batches, strict=True):
        rows = out["row_losses"]
        if bad := guard.check(step, bool(out["finite"]), rows, batch.names, range(rows.shape[1])):
            yield bad
        if batch.left_out:
            yield f"step {step}: no row for {batch.left_out} replies: raise config key 'rl.microbatches' (or 'rows')"
