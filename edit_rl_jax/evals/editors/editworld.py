"""The benchmark `editworld` of editors: edits of held-out scenes, scored by the oracle from their pixels."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.editors.base import EditError, TokenLengths, smaller, tokens
from edit_rl_jax.editors.pixels import to_levels, to_pixels
from edit_rl_jax.editors.sampling import Edit, EditSettings
from edit_rl_jax.editworld import edits as world
from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.render import NATIVE, render
from edit_rl_jax.editworld.scene import rng
from edit_rl_jax.evals.pictures import montage
from edit_rl_jax.evals.statistics import interval
from edit_rl_jax.training.report import Sample, write_report


def prompts(split: str, n: int, seed: int = 0) -> list[world.Edit]:
    """n edits of as many scenes, the tasks in turn; each a function of (split, seed, index) alone."""
    tasks = world.TASKS
    return [world.random_edit(rng("asked edit", split, seed, i), split, tasks[i % len(tasks)]) for i in range(n)]


def shaped(settings: EditSettings, processor: Any, resolution: int = NATIVE) -> EditSettings:
    """Gives the settings for edits of one picture of the world: no image has more pixels than one of its pictures, and
    lengths of text are rounded up, so that few shapes compile."""
    side, pixels = (resolution, resolution), min(settings.max_pixels, resolution**2)
    fits = [processor.fit([side], size, pixels, settings.max_side, "editworld") for size in (side, None)]
    reference = fits[0][0][0]
    read = tokens(processor, smaller(reference, settings.reference_pixels, processor.multiple))
    made = sorted({tokens(processor, result) for _, result in fits})  # asked for that size, and as the editor chooses
    texts = {2**k for k in range(4, 12)} | {getattr(processor, "text", 16)}  # which an editor with one length says
    shapes = tuple(TokenLengths(text, read, noise) for text in sorted(texts) for noise in made)
    return dataclasses.replace(settings, max_pixels=pixels, buckets=shapes)


def run(
    sampler: Any,
    output: str | Path,
    *,
    n: int = 512,
    split: str = "test",
    seed: int = 0,
    samples: int = 1,
    edit_seed: int = 0,
    resolution: int = NATIVE,
    about: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Edits n scenes by an `EditorSampler`, `samples` times each, and returns what it wrote to `output`/eval.json;
    samples.png and report.html beside it. about: facts for eval.json."""
    asked = prompts(split, n, seed)
    sources = [render(e.source, resolution) for e in asked]
    wanted = [
        Edit(e.instruction, (image,), (resolution, resolution), i, k, where=f"scene {i}")
        for i, (e, image) in enumerate(zip(asked, sources))
        for k in range(samples)
    ]
    made = sampler.made(wanted, edit_seed)  # of one that is no picture: no success, and no score
    images = [np.zeros_like(e.images[0]) if isinstance(x, EditError) else x for e, x in zip(wanted, made)]
    scenes, bad = [e.item for e in wanted], [isinstance(x, EditError) for x in made]
    about = {**(about or {}), **({"not_finite": sum(bad)} if any(bad) else {})}
    facts = {"benchmark": "editworld", "split": split, "seed": seed, "samples": samples, **about}
    return _write(output, [asked[i] for i in scenes], [sources[i] for i in scenes], images, scenes, facts, bad)


def reconstruct(
    vae: Any, output: str | Path, *, n: int = 256, split: str = "test", seed: int = 0, resolution: int = NATIVE
) -> dict[str, Any]:
    """Right edits through an autoencoder (`encode`, `decode`), figures as `run`: no editor on it does better."""
    asked = prompts(split, n, seed)
    results = [render(e.targets[0].scene, resolution) for e in asked]
    graphdef, state = nnx.split(vae)

    @jax.jit
    def through(state, images):
        model = nnx.merge(graphdef, state)
        return to_levels(model.decode(model.encode(to_pixels(images))))

    images = [x for i in range(0, n, 32) for x in np.asarray(through(state, _batch(results[i : i + 32], 32)))][:n]
    return _write(output, asked, results, images, range(n), {"benchmark": "editworld, reconstruction"})


def _batch(images: Sequence[np.ndarray], rows: int) -> np.ndarray:
    """Images as one array, the last repeated to fill the rows."""
    return np.stack([*images, *[images[-1]] * (rows - len(images))])


def _write(
    output: str | Path,
    edits: Sequence[world.Edit],
    before: Sequence[np.ndarray],
    images: Sequence[np.ndarray],
    scenes: Sequence[int],
    about: dict[str, Any],
    bad: Sequence[bool] = (),
) -> dict[str, Any]:
    """Scores images as results of edits; writes and returns the figures. bad: which images are none."""
    verdicts = oracle.score_batch(images, edits)
    good = [i for i in range(len(verdicts)) if not (bad and bad[i])]
    if not good:
        raise ValueError("the editor gives values that are no numbers, in every edit")
    pick, seen = lambda values, at: [values[i] for i in at], set(good)
    told = lambda at, short: table(pick(verdicts, at), pick(scenes, at), short, [i in seen for i in at])
    figures = about | told(range(len(verdicts)), False) | {"intervals": "95%, bootstrap over scenes"}
    by = {t: [i for i, e in enumerate(edits) if e.task == t] for t in world.TASKS}
    figures["by_task"] = {t: told(at, True) for t, at in by.items() if at}
    figures["by_dimension"] = {d: _dimension(pick(verdicts, good), pick(scenes, good), d) for d in oracle.ENOUGH}
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    page = before_and_after(before, images, verdicts)
    (folder / "samples.png").write_bytes(page)
    shown = [scenes.index(scene) for scene in sorted(set(scenes))[:24]]
    cards = [_sample(edits[i], before[i], images[i], verdicts[i]) for i in shown]
    title = "Before and after; a green bar is a success, a red one a failure"
    write_report(folder, cards, pictures={title: page})
    return figures


def table(
    verdicts: Sequence[oracle.Verdict], scenes: Sequence[int], short: bool = False, good: Sequence[bool] = ()
) -> dict[str, Any]:
    """Share of successes and mean overall score, with intervals over scenes; short: without the latter's. good: which
    are of images; the others are no success, and have no score."""
    good = good or [True] * len(verdicts)
    right = [float(v.is_success and g) for v, g in zip(verdicts, good)]
    overall = [v.overall for v, g in zip(verdicts, good) if g]
    out = {"success_rate": float(np.mean(right)), "success_rate_ci95": list(interval(right, scenes)), "n": len(right)}
    out["overall"] = float(np.mean(overall)) if overall else None
    return out if short else out | {"overall_ci95": list(interval(overall, [s for s, g in zip(scenes, good) if g]))}


def _dimension(verdicts: Sequence[oracle.Verdict], scenes: Sequence[int], name: str) -> dict[str, Any]:
    """Mean score of one dimension, and the share that is good enough for a success."""
    values = [float(getattr(v, name)) for v in verdicts]
    enough = [float(x >= oracle.ENOUGH[name]) for x in values]
    return {
        "enough": float(np.mean(enough)),
        "enough_ci95": list(interval(enough, scenes)),
        "mean": float(np.mean(values)),
        "mean_ci95": list(interval(values, scenes)),
    }


def _sample(edit: world.Edit, source: np.ndarray, image: np.ndarray, verdict: oracle.Verdict) -> Sample:
    truth = {"overall": verdict.overall} | {d: float(getattr(verdict, d)) for d in oracle.ENOUGH}
    before, after = encode_png(source), encode_png(image)
    return Sample(edit.instruction, before, after, {}, truth, "", task=edit.task, right=bool(verdict.is_success))


def before_and_after(
    sources: Sequence[np.ndarray], images: Sequence[np.ndarray], verdicts: Sequence[oracle.Verdict], most: int = 64
) -> bytes:
    """A PNG of pairs (source, edit), eight a row, each over a bar in the colour of its verdict."""
    tiles = []
    for source, image, verdict in list(zip(sources, images, verdicts))[:most]:
        height, width = image.shape[:2]
        tile = np.full((height + 4, 2 * width + 2, 3), 255, np.uint8)
        tile[:height, :width], tile[:height, width + 2 :] = source, image
        tile[height + 1 :] = (40, 160, 60) if verdict.is_success else (210, 50, 40)
        tiles.append((tile, ""))
    return montage([("", tiles[i : i + 8]) for i in range(0, len(tiles), 8)], side=None)


def summary(figures: dict[str, Any]) -> str:
    """The figures in a few lines."""
    share = lambda row, key: f"{row[key]:.3f} ({row[f'{key}_ci95'][0]:.3f} to {row[f'{key}_ci95'][1]:.3f})"
    lines = [f"success {share(figures, 'success_rate')} of {figures['n']}, overall {share(figures, 'overall')}"]
    lines += [f"  {t}: {share(row, 'success_rate')} of {row['n']}" for t, row in figures["by_task"].items()]
    lines += [f"  {d}: enough {share(r, 'enough')}, mean {r['mean']:.2f}" for d, r in figures["by_dimension"].items()]
    return "\n".join(lines)
