"""An iteration's figures, and what is wrong with it."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int

from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import evaluation
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.training.session import Guard


def summary(updates: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Sums up an iteration: means over all its rows and steps (of gradient norm and rate over its updates), extremes,
    counts and shares of the rewards. Means of nothing are left out.

    `log_ratio_first`: the greatest |log-ratio| of the first update: 0 but for the rounding of two programs, unless the
    samples are one rollout behind.
    """
    out = {k: float(v) for k, v in updates[0]["rewards"].items()}
    out["zero_std_share"] = out["groups_zero_std"] / max(out["groups"], 1)
    if "groups_narrow" in out:
        out["narrow_share"] = out["groups_narrow"] / max(out["groups"], 1)
    out["invalid_share"] = out["samples_invalid"] / max(out["samples"], 1)
    for key in sorted(updates[0].keys() - {"row_losses", "finite", "rewards", "weights"}):
        values = [float(u[key]) for u in updates]
        weights = [float(u["weights"].get(key, 1.0)) for u in updates]
        if key.endswith(("_max", "_min")) or key == "weight":
            out[key] = float((max if key.endswith("_max") else min if key.endswith("_min") else sum)(values))
        elif sum(weights):
            out[key] = float(np.average(values, weights=weights))
    if "log_ratio_abs_max" in updates[0]:
        out["log_ratio_first"] = float(updates[0]["log_ratio_abs_max"])
    return out


def of_dimensions(names: Sequence[str], scores: rewards.Scores, groups: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Sums up a rollout's rewards a dimension: `reward_mean/NAME`, `reward_group_std/NAME` (standard deviation in a
    group, mean over the groups that have a figure) and, where the judge tells it, `reward_spread/NAME` (its mean);
    of the samples whose rewards are valid. Nothing for a reward that is one figure."""
    out: dict[str, float] = {}
    for name, value, spread in zip(names, scores.each.T, scores.spread.T) if len(names) > 1 else ():
        known = scores.valid & np.isfinite(value)
        if known.any():
            out[f"reward_mean/{name}"] = float(value[known].mean(dtype=np.float64))
            stds = [value[known & (groups == g)].std(dtype=np.float64) for g in np.unique(groups[known])]
            out[f"reward_group_std/{name}"] = float(np.mean(stds))
        if (known & np.isfinite(spread)).any():
            out[f"reward_spread/{name}"] = float(spread[known & np.isfinite(spread)].mean(dtype=np.float64))
    return out


def check(guard: Guard, step: int, updates: Sequence[dict[str, Any]], names: Sequence[Any]) -> Iterator[str]:
    """Gives a line for each update that was refused, or for a rollout of which nothing trains (say, the reward's server
    is away). names: of the rows, [M][B]. Raises NonFiniteError as `Guard`."""
    if not any(float(u["weight"]) for u in updates):
        n = {k: int(v) for k, v in updates[0]["rewards"].items() if k.startswith(("samples", "groups"))}
        narrow = f", {n['groups_narrow']} of nearly equal ones" if n.get("groups_narrow") else ""
        yield guard.refused(
            f"step {step}: nothing trains: {n['samples_invalid']} of {n['samples']} samples without a valid reward, "
            f"{n['groups_zero_std']} of {n['groups']} groups of equal rewards{narrow}"
        )
        return
    each = len(names) // len(updates)
    for chunk, out in enumerate(updates):
        rows = out["row_losses"].sum(1)  # [microbatches, B]
        part = names[chunk * each : (chunk + 1) * each]
        if bad := guard.check(step, bool(out["finite"]), rows, part, range(rows.shape[1])):
            yield bad


def oracle_figures(prompts: Sequence[Prompt], images: Any, count: int) -> dict[str, float]:
    """Takes the oracle's means over `count` samples spread over a rollout: dimensions / 25, success, also by task."""
    at = np.unique(np.linspace(0, len(prompts) - 1, min(count, len(prompts))).astype(int))
    chosen = [prompts[i] for i in at]
    found = evaluation.of_oracle(rewards.Samples(chosen, rewards.gather(images)[at]))
    one = lambda name: 1 if name == "oracle_success" else rewards.SCALE
    out = {name: float(np.mean(values)) / one(name) for name, values in found.items()}
    for task in sorted({p.task for p in chosen}):
        mine = [v for v, p in zip(found["oracle_success"], chosen) if p.task == task]
        out[f"oracle_success/{task}"] = float(np.mean(mine))
    return out


def text(point: dict[str, float]) -> str:
    """Writes a point of a curve as a line."""
    return ", ".join(f"{k} {v:.4g}" for k, v in point.items() if k != "step")
