"""Every script on a tiny editor, one after the other in one process of one device, as a user runs them."""

import dataclasses
import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from tests import quick

ROOT = Path(__file__).resolve().parents[2]
INSTRUCTIONS = ("make it red", "x" * 600, "make it blue")


@dataclasses.dataclass(frozen=True)
class Jobs:
    """What a kind of editor is asked for. text: tokens; fixed: whether `model.text` says so; guidance: of RL; other: of
    a second run of edit.py; n: held-out scenes."""

    text: int
    targets: str
    guidance: float
    other: tuple[str, str]
    steps: int = 2
    rows: int = 2
    side: int = 24
    fixed: bool = True

    def train(self, kind: str) -> str:
        """The config of the fine-tuning."""
        return f"""
from edit_rl_jax.training.config import default
def get_config():
    c = default("{kind}", "flow_matching")
    c.steps, c.rows = {self.steps}, {self.rows}
    c.model.lora.rank, c.model.lora.targets, c.model.remat = 2, "{self.targets}", "none"
    {f"c.model.text = {self.text}" if self.fixed else ""}
    c.data.train, c.data.size, c.data.validation_size = "editworld_edits", {4 * self.rows}, {self.rows}
    c.data.resolution, c.data.buckets = {self.side}, (({self.text}, 1, {self.side}, {self.side}),)
    c.flow.drop_references = 0.0
    c.optim.lr, c.optim.schedule, c.optim.warmup = 1e-2, "constant", 1
    c.eval.batches, c.eval.prompts, c.eval.sample_steps = 1, {self.rows}, 2
    c.log.tensorboard, c.compilation_cache = False, ""
    return c
"""

    def rl(self, kind: str) -> str:
        """The config of the RL."""
        return f"""
from edit_rl_jax.rl.editors.config import default
def get_config():
    c = default("{kind}")
    c.steps, c.rows = 2, 4
    c.model.lora.rank, c.model.remat = 2, "none"
    {f"c.model.text = {self.text}" if self.fixed else ""}
    c.data.train, c.data.size = "editworld", 32
    c.optim.lr, c.optim.schedule, c.optim.warmup = 1e-2, "constant", 1
    c.rl.prompts, c.rl.group, c.rl.updates, c.rl.size, c.rl.text = 2, 4, 2, ({self.side}, {self.side}), {self.text}
    c.rl.steps, c.rl.window, c.rl.window_range, c.rl.schedule.kind = 3, 2, (0, 2), "exponential"
    c.rl.guidance.text, c.rl.loss.clip_elements, c.rl.loss.kl_weight = {self.guidance}, 65_536, 0.01
    c.rl.rewards, c.rl.eval_prompts, c.rl.report_prompts = (("saturation", 1.0),), 2, 2
    c.log.tensorboard, c.compilation_cache = False, ""
    return c
"""


KINDS = {
    "flux_kontext": Jobs(96, "feed_forward", 2.5, ("--text-guidance", "9"), steps=3, rows=4),
    "step1x_edit": Jobs(500, "all", 4.0, ("--text-guidance", "1")),
    "qwen_image_edit": Jobs(560, "all", 4.0, ("--text-guidance", "1"), side=32, fixed=False),
}


def done(kind: str, model: Path, folder: Path, sha256: str = "") -> Path:
    """Runs `go` in a process of its own; returns the folder of results."""
    words = [sys.executable, __file__, kind, model, folder, sha256]
    done = subprocess.run(words, env=quick.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return folder


def go(kind: str, model: Path, folder: Path, sha256: str) -> None:
    """model: the tiny editor's folder; sha256: of Step1X's prefix. Results lie in `folder` by the jobs' names."""
    from edit_rl_jax.editors.step1x_edit import prompt
    from scripts import best_of_n, edit, eval_editor, plan, train_editor, train_grpo

    jobs = KINDS[kind]
    prompt.SHA256 = sha256 or prompt.SHA256
    for name, text in (("train", jobs.train(kind)), ("rl", jobs.rl(kind))):
        (folder / f"{name}.py").write_text(text)
    config = lambda name: ["--config", str(folder / f"{name}.py"), f"--config.model.init_from={model}"]
    which, small = ["--editor-kind", kind], ["--max-pixels", str(jobs.side**2), "--steps", "2"]
    assert train_editor.main([*config("train"), "--workdir", str(folder / "train")]) == 0
    picture = np.random.default_rng(0).integers(0, 256, (21, 30, 3)).astype(np.uint8)
    Image.fromarray(picture).save(folder / "a.png")
    lines = [json.dumps({"source": "a.png", "instruction": t}) + "\n" for t in INSTRUCTIONS]
    (folder / "asked.jsonl").write_text("".join(lines))
    asked = ["--input", str(folder / "asked.jsonl")]
    asked += [] if jobs.fixed else ["--text-length", str(jobs.text)]  # else the folder's own is the limit
    runs = {"edit": [], "other": [*jobs.other], "adapted": ["--lora", str(folder / "train/model")]}
    for name, more in runs.items():
        assert edit.main(["--model", str(model), *which, *asked, *small, *more, "--output", str(folder / name)]) == 0
    flags = ["--benchmark", "editworld", "--model", str(model), *which, "--output", str(folder / "eval")]
    assert eval_editor.main([*flags, "--prompts", str(jobs.rows), *small, "--rows", str(jobs.rows)]) == 0
    flags = [*asked, "--output", str(folder / "best"), "--model", "none", "--samples", "2", "--editor", str(model)]
    best_of_n.sampled(best_of_n.parse([*flags, *which, *small]))
    assert train_grpo.main([*config("rl"), "--workdir", str(folder / "rl")]) == 0
    plan.editing.jobs = functools.partial(plan.editing.jobs, side=jobs.side)
    for job, more in (("train", ["--job", "train"]), ("edit", ["--job", "edit"]), ("rl", [])):
        where = ["--topology", "v5e:2x2", "--config.mesh.fsdp=4", "--config.rows=4"]
        where += ["--json", str(folder / f"{job}.json")]
        assert plan.main([*config("rl" if job == "rl" else "train"), *more, *where]) == 0


if __name__ == "__main__":
    go(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
