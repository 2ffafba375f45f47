"""The benchmark `editworld`: a reward model on held-out pairs of the built-in world; eval.json and report.html."""

import json
from collections.abc import Mapping
from typing import Any

from etils import epath

from edit_rl_jax.editworld import dataset
from edit_rl_jax.evals.judges.pairs import evaluate, samples
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.training.report import write_report
from edit_rl_jax.vlm.engine.sampler import Sampling, greedy


def run(
    model: Any,
    output: Any,
    *,
    base: Any = None,
    untrained: Any = None,
    pairs: int = 528,
    split: str = "test",
    resolution: int = 84,
    seed: int = 0,
    rows: int = 128,
    max_new_tokens: int = 224,
    sampling: Sampling | None = None,
    passes: int = 1,
    prompts: str | None = None,
    mesh: Any = None,
    controls: bool = True,
    modes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Judges at least `pairs` pairs and returns what it wrote to `output`/eval.json.

    model: model or adapter folder, or hub id; `base` of an adapter, where it is not where the adapter says.
    untrained: model to compare with, asked the same questions (the base before training).
    rows, max_new_tokens: prompts a batch, tokens an answer (the built-in world's are under 220).
    sampling: how answers are drawn; default: greedily for one pass, as EditScore does for more.
    mesh: to lay the models out on; default: one device.
    modes: how scores are read, further settings of `EditScore` (expected, constrained, retries, reduction).
    """
    sampling = sampling or (greedy(max_new_tokens) if passes == 1 else Sampling(max_new_tokens=max_new_tokens))
    settings = dict(sampling=sampling, passes=passes, rows=rows, seed=seed, mesh=mesh)
    settings |= modes or {}
    reward = EditScore.load(model, base=base, prompts=prompts, **settings)
    before = EditScore.load(untrained, prompts=reward.prompts, **settings) if untrained else None
    drawn = dataset.pairs(split, pairs, seed, resolution)
    figures, judged = evaluate(reward, drawn, untrained=before, controls=controls, seed=seed)
    about = {"benchmark": "editworld", "split": split, "seed": seed, "model": str(model), "passes": passes}
    figures = about | ({"settings": dict(modes)} if modes else {}) | figures
    folder = epath.Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    write_report(folder, samples(drawn, judged))
    return figures
