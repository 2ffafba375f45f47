"""An editor that the package does not know goes the whole way: trained, sampled, best of N, improved by RL, planned."""

import functools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.base import Editor, Processor
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.training import metrics
from tests import quick
from tests.editors.pictures import picture
from tests.toys import editor as toy

ROOT = Path(__file__).resolve().parents[2]
TEXTS = ("make it red", "a b c d e f g h i j k l m n o p q r", "make it blue")
GUIDANCE = {"own": [], "two": ["--text-guidance", "2"], "none": ["--text-guidance", "1"]}


def go(folder: Path) -> None:
    """Every script, one after the other in one process of one device, as a user runs them."""
    from scripts import best_of_n as best_script
    from scripts import edit, eval_editor, plan, train_editor, train_grpo

    config, rl = (str(ROOT / "tests" / "toys" / f"editor{name}.py") for name in ("_config", "_rl_config"))
    run, asked = folder / "run", folder / "asked.jsonl"
    kind, model = ["--editor-kind", "tests.toys.editor"], ["--model", str(run / "model")]
    start = f"--config.model.init_from={run / 'model'}"
    assert train_editor.main(["--config", config, "--workdir", str(run)]) == 0
    Image.fromarray(picture(20, 24)).save(folder / "a.png")
    asked.write_text("".join(json.dumps({"source": "a.png", "instruction": t}) + "\n" for t in TEXTS))
    for name, more in GUIDANCE.items():
        flags = [*model, *kind, "--input", str(asked), "--text-length", "17", *more]
        assert edit.main([*flags, "--output", str(folder / name)]) == 0
    flags = ["--benchmark", "editworld", *model, *kind, "--output", str(folder / "eval"), "--prompts", "4"]
    assert eval_editor.main([*flags, "--steps", "2", "--rows", "4"]) == 0
    flags = ["--input", str(asked), "--output", str(folder / "best"), "--model", "none", "--samples", "2"]
    best_script.sampled(best_script.parse([*flags, "--editor", str(run / "model"), *kind, "--text-length", "17"]))
    assert train_grpo.main(["--config", rl, "--workdir", str(folder / "rl"), start]) == 0
    plan.editing.jobs = functools.partial(plan.editing.jobs, side=24)  # of 1,024 XLA would take a minute
    for job, more in (("train", ["--config", config]), ("edit", ["--config", config]), ("rl", ["--config", rl, start])):
        more += [] if job == "rl" else ["--job", job]
        where = ["--topology", "v5e:2x2", "--config.mesh.fsdp=4", "--json", str(folder / f"{job}.json")]
        assert plan.main([*more, *where]) == 0


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("toy_editor")
    done = subprocess.run([sys.executable, __file__, folder], env=quick.environment(), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-1000:] + done.stderr[-4000:]
    return folder


def test_it_trains_and_its_edits_are_scored(folder):
    editor = toy.from_folder(folder / "run" / "model")
    assert isinstance(editor, Editor) and isinstance(editor.processor, Processor)
    rows = metrics.read(folder / "run" / "metrics.jsonl")
    assert rows[-1]["validation_loss"] < 0.7 * rows[0]["loss"]
    for home, n in (("run", 8), ("eval", 4)):
        assert json.loads((folder / home / "eval.json").read_text())["n"] == n
        assert (folder / home / "report.html").exists()


def test_it_edits(folder):
    """In the source's size cut to whole patches; guided by default, by its own rule; a text too long is named."""
    lines = {name: (folder / name / "edits.jsonl").read_text().splitlines() for name in GUIDANCE}
    assert lines["own"] == lines["two"] == lines["none"]
    found = [json.loads(x) for x in lines["own"]]
    assert [x["valid"] for x in found] == [True, False, True] and "18 tokens of text" in found[1]["problem"]
    own, two, none = (decode_image(folder / name / found[0]["edited"]) for name in GUIDANCE)
    assert own.shape == (20, 24, 3) and np.array_equal(own, two) and not np.array_equal(own, none)


def test_the_best_of_its_edits(folder):
    found = best_of_n.read(folder / "best" / "edits" / "edits.jsonl")
    assert [len(x["candidates"]) for x in found] == [2, 0, 2]


def test_it_is_improved(folder):
    rows = metrics.read(folder / "rl" / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    before, after = (toy.from_folder(folder / home / "model") for home in ("run", "rl"))
    assert np.abs(np.asarray(after.out.kernel[...]) - np.asarray(before.out.kernel[...])).max() > 0
    figures = json.loads((folder / "rl" / "eval.json").read_text())
    assert figures["n_prompts"] == 4 and np.isfinite(figures["reward_gain"])


def test_it_is_planned(folder):
    plans = {job: json.loads((folder / f"{job}.json").read_text()) for job in ("train", "edit", "rl")}
    names = {job: [p["program"].split()[0] for p in plan["programs"]] for job, plan in plans.items()}
    assert names["edit"] == ["encode", "condition", "sample", "decode"] and names["rl"] == ["rollout", "update"]
    assert len(names["train"]) == 1


if __name__ == "__main__":
    go(Path(sys.argv[1]))
