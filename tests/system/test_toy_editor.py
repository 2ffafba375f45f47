"""An editor that the package does not know goes the whole way: trained, sampled, best of N, improved by RL, planned."""

import json

import jax
import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.base import Editor, Processor
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.training import metrics
from scripts import best_of_n as best_script
from scripts import edit, eval_editor, train_editor, train_grpo
from tests.editors.pictures import picture
from tests.toys import editor as toy

pytestmark = pytest.mark.standard_promotion  # optax
KIND = ["--editor-kind", "tests.toys.editor"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The run's folder; its configs are files, as a user's."""
    folder = tmp_path_factory.mktemp("toy_editor") / "run"
    config = toy.__file__.replace(".py", "_config.py")
    with jax.numpy_dtype_promotion("standard"):
        assert train_editor.main(["--config", config, "--workdir", str(folder)]) == 0
    return folder


def test_it_trains_and_its_edits_are_scored(trained):
    assert issubclass(toy.Editor, Editor) and isinstance(toy.Processor(), Processor)
    rows = metrics.read(trained / "metrics.jsonl")
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"] and rows[-1]["validation_loss"] < 0.5 * rows[0]["loss"]
    assert json.loads((trained / "eval.json").read_text())["n"] == 8 and (trained / "report.html").exists()


def asked(folder):
    Image.fromarray(picture(20, 24)).save(folder / "a.png")
    texts = ["make it red", "a b c d e f g h i j k l m n o p q r", "make it blue"]
    file = folder / "asked.jsonl"
    file.write_text("".join(json.dumps({"source": "a.png", "instruction": t}) + "\n" for t in texts))
    return file


def test_it_edits(trained, tmp_path):
    """In the source's size cut to whole patches; guided by default, by its own rule; a text too long is named."""
    flags = ["--model", str(trained / "model"), "--input", str(asked(tmp_path)), *KIND, "--text-length", "17"]
    for name, more in (("own", []), ("two", ["--text-guidance", "2"]), ("none", ["--text-guidance", "1"])):
        assert edit.main([*flags, "--output", str(tmp_path / name), *more]) == 0
    lines = {n: (tmp_path / n / "edits.jsonl").read_text().splitlines() for n in ("own", "two", "none")}
    assert lines["own"] == lines["two"] == lines["none"]
    found = [json.loads(x) for x in lines["own"]]
    assert [x["valid"] for x in found] == [True, False, True] and "18 tokens of text" in found[1]["problem"]
    one, same, plain = (decode_image(tmp_path / n / found[0]["edited"]) for n in ("own", "two", "none"))
    assert one.shape == (20, 24, 3) and np.array_equal(one, same) and not np.array_equal(one, plain)
    assert np.abs(one.astype(int) - picture(20, 24)).mean() < 40  # it has learnt that most of an image stays


def test_its_edits_are_scored_by_the_world(trained, tmp_path):
    flags = ["--benchmark", "editworld", "--model", str(trained / "model"), *KIND, "--output", str(tmp_path)]
    assert eval_editor.main([*flags, "--prompts", "8", "--steps", "2"]) == 0
    assert json.loads((tmp_path / "eval.json").read_text())["n"] == 8


def test_the_best_of_its_edits(trained, tmp_path):
    flags = ["--input", str(asked(tmp_path)), "--output", str(tmp_path / "out"), "--model", "none", "--samples", "2"]
    args = best_script.parse([*flags, "--editor", str(trained / "model"), *KIND])
    assert len(best_of_n.read(best_script.sampled(args))) == 3


def test_it_is_improved(trained, tmp_path):
    config = toy.__file__.replace(".py", "_rl_config.py")
    model = f"--config.model.init_from={trained / 'model'}"
    assert train_grpo.main(["--config", config, "--workdir", str(tmp_path), model]) == 0
    rows = metrics.read(tmp_path / "metrics.jsonl")
    assert len(rows) == 2 and all(r["grad_norm"] > 0 and r["bad_steps"] == 0 for r in rows)
    before, after = (toy.from_folder(f / "model") for f in (trained, tmp_path))
    assert np.abs(np.asarray(after.out.kernel[...]) - np.asarray(before.out.kernel[...])).max() > 0
    figures = json.loads((tmp_path / "eval.json").read_text())
    assert figures["n_prompts"] == 4 and np.isfinite(figures["reward_gain"])


@pytest.mark.parametrize("job", ["train", "edit", "rl"])
def test_it_is_planned(trained, tmp_path, job):
    from scripts import plan

    config = toy.__file__.replace(".py", "_rl_config.py" if job == "rl" else "_config.py")
    flags = ["--config", config, "--topology", "v5e:2x2", "--json", str(tmp_path / "plan.json"), "--config.mesh.fsdp=4"]
    flags += [f"--config.model.init_from={trained / 'model'}"] if job == "rl" else ["--job", job]
    with jax.default_matmul_precision("default"):
        assert plan.main(flags) == 0
    names = [p["program"].split()[0] for p in json.loads((tmp_path / "plan.json").read_text())["programs"]]
    assert names == {"edit": ["encode", "condition", "sample", "decode"], "rl": ["rollout", "update"]}.get(job, names)
