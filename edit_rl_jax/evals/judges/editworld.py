"""The benchmark `editworld`: a judge on held-out pairs of the built-in world."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from etils import epath

from edit_rl_jax.editworld import dataset
from edit_rl_jax.evals.judges import side_by_side, verdicts
from edit_rl_jax.evals.judges.calibration import curves
from edit_rl_jax.evals.judges.pairs import dimension, evaluate, samples
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Judge
from edit_rl_jax.training.report import write_report

OPTIONS = {"rows": 128, "max_new_tokens": 224}  # of judges that have them: the world's answers are under 220 tokens


def defaults(options: Any) -> dict[str, Any]:
    """Gives what OPTIONS are for a judge's `Options`, which may have others under `WORLD`."""
    return OPTIONS | getattr(options, "WORLD", {})


def load(
    model: Any, untrained: Any = None, judge: str = "", options: Any = None, *, base: Any = None, **how: Any
) -> tuple[Judge, Judge | None]:
    """Loads a judge, and the model to compare with, asked the same questions (the base before training), or None where
    there is none or a judge of that class cannot be made of a base.

    options: the judge's, or a mapping of some of them. The others as `judges.load`, which says what is raised.
    """
    folder, found = judges.find(model, judge)
    if options is None or isinstance(options, Mapping):
        options = judges.options(found, defaults(found.Options) | dict(options or {}))
    made = judges.load(folder, judge, options, base=base, **how)
    if not untrained or not getattr(found, "asks_base", True):
        return made, None
    left = {f.name for f in dataclasses.fields(options) if getattr(options, f.name) is None}  # to the model's folder
    same = dataclasses.replace(options, **{name: getattr(made, name) for name in left if hasattr(made, name)})
    return made, found.from_folder(Path(untrained), same, **how)  # whatever it was trained for: it need not be a judge


def run(
    judge: Judge,
    output: Any,
    *,
    untrained: Judge | None = None,
    pairs: int = 528,
    split: str = "test",
    resolution: int = 84,
    seed: int = 0,
    controls: bool = True,
    about: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judges at least `pairs` pairs and returns what it wrote to `output`/eval.json; about: what that says of the
    judge."""
    drawn = dataset.pairs(split, pairs, seed, resolution)
    figures, judged = evaluate(judge, drawn, untrained=untrained, controls=controls, seed=seed)
    found = verdicts.figures([r for p in drawn for r in (p.better, p.worse)], [j for ab in judged for j in ab], seed)
    figures |= {"verdicts": found} if found else {}
    figures = {"benchmark": "editworld", "split": split, "seed": seed, **(about or {}), **figures}
    folder = epath.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    each = side_by_side.lines(drawn, dimension("overall", drawn, judged))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(line) + "\n" for line in each))
    (folder / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_report(folder, samples(drawn, judged), curves=curves(figures.get("calibration")))
    return figures
