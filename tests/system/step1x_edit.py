"""Every script on a tiny Step1X-Edit, one after the other in one process of one device, as a user runs them."""

import functools
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image

TEXT = 500
TRAIN = f"""
from edit_rl_jax.training.config import default
def get_config():
    c = default("step1x_edit", "flow_matching")
    c.steps, c.rows = 2, 2
    c.model.text, c.model.lora.rank, c.model.lora.targets, c.model.remat = {TEXT}, 2, "all", "none"
    c.data.train, c.data.size, c.data.validation_size = "editworld_edits", 8, 2
    c.data.resolution, c.data.buckets = 24, (({TEXT}, 1, 24, 24),)
    c.flow.drop_references = 0.0
    c.optim.lr, c.optim.schedule, c.optim.warmup = 1e-2, "constant", 1
    c.eval.batches, c.eval.prompts, c.eval.sample_steps = 1, 2, 2
    c.log.tensorboard, c.compilation_cache = False, ""
    return c
"""
RL = f"""
from edit_rl_jax.rl.editors.config import default
def get_config():
    c = default("step1x_edit")
    c.steps, c.rows = 2, 4
    c.model.text, c.model.lora.rank, c.model.remat = {TEXT}, 2, "none"
    c.data.train, c.data.size = "editworld", 32
    c.optim.lr, c.optim.schedule, c.optim.warmup = 1e-2, "constant", 1
    c.rl.prompts, c.rl.group, c.rl.updates, c.rl.size, c.rl.text = 2, 4, 2, (24, 24), {TEXT}
    c.rl.steps, c.rl.window, c.rl.window_range, c.rl.schedule.kind = 3, 2, (0, 2), "exponential"
    c.rl.guidance.text, c.rl.loss.clip_elements, c.rl.loss.kl_weight = 4.0, 65_536, 0.01
    c.rl.rewards, c.rl.eval_prompts, c.rl.report_prompts = (("saturation", 1.0),), 2, 2
    c.log.tensorboard, c.compilation_cache = False, ""
    return c
"""
INSTRUCTIONS = ("make it red", "x" * 600, "make it blue")


def go(model: Path, folder: Path, sha256: str) -> None:
    """model: the tiny editor's folder; sha256: of its prefix. Results lie in `folder` under the names of the jobs."""
    from edit_rl_jax.editors.step1x_edit import prompt
    from scripts import best_of_n, edit, eval_editor, plan, train_editor, train_grpo

    prompt.SHA256 = sha256
    for name, text in (("train", TRAIN), ("rl", RL)):
        (folder / f"{name}.py").write_text(text)
    config = lambda name: ["--config", str(folder / f"{name}.py"), f"--config.model.init_from={model}"]
    kind, small = ["--editor-kind", "step1x_edit"], ["--max-pixels", "576", "--steps", "2"]
    assert train_editor.main([*config("train"), "--workdir", str(folder / "train")]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (21, 30, 3)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    lines = [json.dumps({"source": "a.png", "instruction": t}) + "\n" for t in INSTRUCTIONS]
    (folder / "asked.jsonl").write_text("".join(lines))
    asked = ["--input", str(folder / "asked.jsonl")]
    runs = {"edit": [], "plain": ["--text-guidance", "1"], "adapted": ["--lora", str(folder / "train/model")]}
    for name, more in runs.items():
        assert edit.main(["--model", str(model), *kind, *asked, *small, *more, "--output", str(folder / name)]) == 0
    flags = ["--benchmark", "editworld", "--model", str(model), *kind, "--output", str(folder / "eval")]
    assert eval_editor.main([*flags, "--prompts", "2", *small, "--rows", "2"]) == 0
    flags = [*asked, "--output", str(folder / "best"), "--model", "none", "--samples", "2", "--editor", str(model)]
    best_of_n.sampled(best_of_n.parse([*flags, *kind, *small]))
    assert train_grpo.main([*config("rl"), "--workdir", str(folder / "rl")]) == 0
    plan.editing.jobs = functools.partial(plan.editing.jobs, side=24)
    for job, more in (("train", ["--job", "train"]), ("edit", ["--job", "edit"]), ("rl", [])):
        where = ["--topology", "v5e:2x2", "--config.mesh.fsdp=4", "--config.rows=4"]
        where += ["--json", str(folder / f"{job}.json")]
        assert plan.main([*config("rl" if job == "rl" else "train"), *more, *where]) == 0


if __name__ == "__main__":
    go(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3])
