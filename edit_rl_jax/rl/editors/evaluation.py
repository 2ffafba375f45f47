"""Whether the policy became better: held-out prompts with fixed noise, scored by the reward and, where known, by truth.

An evaluation is a file of the run's folder, `evaluations/STEP.json`, with a value a prompt, so that before and after
are compared in pairs.
"""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from edit_rl_jax import json_files
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.evals.pictures import montage
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.nn.flat import digest
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors.config import evaluation_size
from edit_rl_jax.rl.editors.program import Program
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.training.report import write_report

log = logging.getLogger(__name__)

SEED = 20250919  # of the noise: the same for every run and step
DIMENSIONS = ("success", "over_editing", "naturalness", "artifacts", "overall")


def edits(
    program: Program, weights: Any, frozen: Any, prompts: Sequence[Prompt], seed: int = SEED
) -> tuple[UInt8[np.ndarray, "n H W 3"], Bool[np.ndarray, " n"]]:
    """One edit of each prompt on the host, `config.rows` at a time, and which of them are finite; an edit's noise is a
    function of its number."""
    n, rows, r, out = len(prompts), program.config.rows, program.config.rl, []
    for start in range(0, n, rows):
        at = [min(i, n - 1) for i in range(start, start + rows)]
        batch = program.put(program.batch([prompts[i] for i in at], at, 1, r.eval_sample_steps, evaluation_size(r)))
        with jax.set_mesh(program.mesh):
            made = program.evaluate(weights, frozen, batch, np.int32(seed))
        out.append([rewards.gather(part)[0] for part in made])
    images, finite = (np.concatenate(parts)[:n] for parts in zip(*out))
    return images, finite


def evaluate(
    program: Program, weights: Any, frozen: Any, prompts: Sequence[Prompt], reward: Callable
) -> tuple[dict[str, Any], UInt8[np.ndarray, "n H W 3"]]:
    """(values by prompt: task, reward, valid and the oracle's dimensions, success as "oracle_success"; the edits)."""
    images, finite = edits(program, weights, frozen, prompts)
    scores = rewards.score(reward, prompts, images, finite)
    found: dict[str, Any] = {"task": [p.task for p in prompts]}
    found |= {"reward": [float(v) for v in scores.values], "valid": [bool(v) for v in scores.valid]}
    if all(p.edit is not None for p in prompts):
        found |= of_oracle(rewards.Samples(prompts, images))
    return found, images


def of_oracle(samples: rewards.Samples) -> dict[str, list[float]]:
    """The oracle's dimensions (0-25) and success (0 or 1) by sample."""
    judged = rewards.judge_by_oracle(samples)
    table = {f"oracle_{name}": [float(j.value(name) or 0) for j in judged] for name in DIMENSIONS}  # unreadable: 0
    table["oracle_success_score"] = table.pop("oracle_success")
    table["oracle_success"] = [float(bool(j.success)) for j in judged]
    return table


def curve(step: int, found: dict[str, Any]) -> dict[str, float]:
    """A point of the report's curves: means over prompts."""
    ok = np.asarray(found["valid"])
    point = {"step": step, "reward": float(np.asarray(found["reward"])[ok].mean()) if ok.any() else float("nan")}
    return point | {k: float(np.mean(v)) for k, v in found.items() if k.startswith("oracle_")}


def compare(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Any]:
    """The figures of `eval.json` from two evaluations of the same prompts."""
    out: dict[str, Any] = {"n_prompts": len(before["task"])}
    both = np.asarray(before["valid"]) & np.asarray(after["valid"])
    out["n_valid_rewards"] = int(both.sum())

    def pair(name: str, keep: Any) -> dict[str, Any]:
        a, b = (np.asarray(x[name], np.float64)[keep] for x in (before, after))
        if not len(a):
            return {}
        return {
            "before": float(a.mean()),
            "after": float(b.mean()),
            "gain": float((b - a).mean()),
            "gain_ci95": list(interval(b - a)),
        }

    everyone = np.ones(len(both), bool)
    names = {"reward": both} | ({"oracle_success": everyone} if "oracle_success" in before else {})
    for name, keep in names.items():
        out |= {f"{name}_{k}": v for k, v in pair(name, keep).items()}
    if "oracle_success" in before:
        tasks = np.asarray(before["task"])
        out["oracle_success_by_task"] = {
            t: pair("oracle_success", tasks == t) | {"prompts": int((tasks == t).sum())} for t in sorted(set(tasks))
        }
        dimensions = {"success": "oracle_success_score"} | {d: f"oracle_{d}" for d in DIMENSIONS[1:]}
        out["oracle_by_dimension"] = {d: pair(name, everyone) for d, name in dimensions.items()}
    return out


def store(folder: Path, step: int, found: dict[str, Any], prompts: Sequence[Prompt], images: Any, shown: int) -> None:
    """Writes an evaluation and the edits that the report shows, each moved into place when whole."""
    home = folder / "evaluations"
    home.mkdir(parents=True, exist_ok=True)
    files = {f"{step:06d}.png": encode_png(np.concatenate(list(images[:shown])))} if shown else {}
    text = json.dumps(found | {"sha256": digest(found)})
    for name, data in (files | {f"{step:06d}.json": text.encode()}).items():
        part = home / f"{name}.part"
        part.write_bytes(data)
        part.replace(home / name)


def fetch(folder: Path, remote: Any) -> None:
    """Brings a remote run's evaluations to the machine that goes on with it; remote: epath.Path of the run or None."""
    home = folder / "evaluations"
    for path in (remote / "evaluations").glob("*.*") if remote and (remote / "evaluations").exists() else ():
        home.mkdir(parents=True, exist_ok=True)
        (home / path.name).write_bytes(path.read_bytes())


def read(folder: Path, last: int | None = None) -> dict[int, dict[str, Any]]:
    """{step: evaluation} of a run's folder; `last`: later ones, of steps that will be taken again, are removed.

    A damaged one is named in a warning, kept as `damaged-NAME` and left out.
    """
    out = {}
    for path in sorted((folder / "evaluations").glob("[0-9]*.json")):
        try:
            found = json_files.read_object(path)
            if "sha256" in found and found.pop("sha256") != digest(found):
                raise json_files.JSONError(str(path), "it is not what was written: its checksum differs")
            step = int(path.stem)
        except (json_files.JSONError, OSError, ValueError) as e:
            log.warning("an evaluation is damaged, its step is missing in the report: %s", e)
            path.rename(path.with_name(f"damaged-{path.name}"))
            continue
        if last is not None and step > last:
            path.unlink()
        else:
            out[step] = found
    return out


def shown(folder: Path, step: int, size: tuple[int, int]) -> UInt8[np.ndarray, "n H W 3"]:
    """The edits that `store` kept. Raises OSError for a picture that is not as it was."""
    path = folder / "evaluations" / f"{step:06d}.png"
    try:
        with Image.open(path) as picture:
            return np.asarray(picture.convert("RGB")).reshape(-1, *size, 3)
    except (SyntaxError, ValueError) as e:  # of Pillow, for broken PNGs
        raise OSError(f"{path} is damaged: {e}") from e


CURVES = (
    ("Reward of the samples", {"reward_mean": "mean", "oracle_reward": "the oracle's"}),
    ("Reward within a group: standard deviation", {"reward_group_std": ""}),
    ("Oracle's success of the samples", {"oracle_success": ""}),
    ("Ratio, advantage above 0", {"ratio_positive_max": "greatest", "ratio_positive_min": "least"}),
    ("Ratio, advantage below 0", {"ratio_negative_max": "greatest", "ratio_negative_min": "least"}),
    ("Clipped (share)", {"clip_share": ""}),
    ("Divergence from the reference", {"kl": ""}),
    ("Distance from the weights that sample: velocity, squared", {"velocity_change": ""}),
    (
        "What does not train",
        {
            "zero_std_share": "share of groups: equal rewards",
            "narrow_share": "nearly equal ones",
            "invalid_share": "of samples: no reward",
        },
    ),
    ("Time of an iteration (seconds)", {"rollout_s": "rollout", "score_s": "scoring", "update_s": "updates"}),
)


def with_oracle_reward(point: dict[str, Any], bonus: float) -> dict[str, Any]:
    """A point of the curves, with the reward that the oracle would have given in the judge's place."""
    if "oracle_overall" not in point:
        return point
    return point | {"oracle_reward": (point["oracle_overall"] + bonus * point["oracle_success"]) / (1 + bonus)}


def report(folder: Path, prompts: Sequence[Prompt], rows: Sequence[dict[str, Any]], bonus: float = 0.0) -> None:
    """`report.html` from what the run wrote: reward against oracle over time, edits before and after.

    bonus: `rl.success_bonus`, so that both are on one scale.
    """
    found = read(folder)
    count = min((len(f["task"]) for f in found.values()), default=0)  # the same prompts at every step
    points = [curve(step, {k: v[:count] for k, v in values.items()}) for step, values in found.items()]
    for p in points:  # on the reward's scale
        p |= {k: v / rewards.SCALE for k, v in p.items() if k.startswith("oracle_") and k != "oracle_success"}
    points, rows = ([with_oracle_reward(p, bonus) for p in many] for many in (points, rows))
    held_out = {"reward": "reward", "oracle_reward": "the oracle's reward", "oracle_success": "oracle's success"}
    dimensions = {"oracle_success_score": "success", "oracle_over_editing": "over-editing"}
    quality = {"oracle_naturalness": "naturalness", "oracle_artifacts": "artifacts"}
    curves = [("Held-out prompts: reward against oracle (mean)", held_out, points)]
    curves += [("Oracle by dimension (score/25)", dimensions, points), ("Oracle's quality (score/25)", quality, points)]
    curves += [(title, names, rows) for title, names in CURVES]
    pictures = {}
    if len(found) > 1 and (folder / "evaluations" / f"{min(found):06d}.png").exists():
        first, last = min(found), max(found)
        size = prompts[0].source.shape[:2]
        names = ("source", f"step {first}", f"step {last}")
        try:
            edited = zip(prompts, shown(folder, first, size), shown(folder, last, size))
            lines = [(p.instruction, [*zip((p.source, *images), names)]) for p, *images in edited]
            pictures["The same prompts before and after"] = montage(lines)
        except OSError as e:
            log.warning("the report has no edits before and after: %s", e)
    write_report(folder, curves=curves, pictures=pictures)
