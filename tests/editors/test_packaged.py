"""The packaged tiny editor: the start of `make demo-rl` and of configs/grpo_tiny.py."""

import dataclasses
import json

import numpy as np
import pytest

from edit_rl_jax.cli import editor_flags
from edit_rl_jax.editors.omnigen2 import tiny, trainable, weights
from edit_rl_jax.evals.editors import editworld
from edit_rl_jax.rl.editors import program, prompts
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh
from scripts import eval_editor

ASSET = "edit_rl_jax/assets/tiny_editor"


@pytest.fixture(scope="module")
def folder(request):
    return request.config.rootpath / ASSET


def test_folder(folder):
    files = [f for f in folder.rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) <= 8_000_000
    index = json.loads((folder / "model_index.json").read_text())
    assert all((folder / name).is_dir() for name in index if not name.startswith("_"))
    assert "license: apache-2.0" in (folder / "README.md").read_text()
    assert not json.loads((folder / "scheduler" / "scheduler_config.json").read_text())["dynamic_time_shift"]


def test_is_what_its_config_trains(folder):
    found = weights.configs(folder)
    measured = ("scaling_factor", "shift_factor")  # of the latents, by configs/vae_tiny.py
    vae = dataclasses.replace(tiny.VAE, **{name: getattr(found.vae, name) for name in measured})
    assert trainable.to_json(found) == trainable.to_json(tiny.configs(vae))


def test_it_edits(folder, tmp_path):
    """64 held-out scenes, eight of each task: 24 succeeded where it was trained; of scenes left alone none does."""
    words = ["--benchmark", "editworld", "--model", str(folder), "--output", "none", "--steps", "8"]
    sampler, _ = editor_flags.from_arguments(eval_editor.parse(words))
    figures = editworld.run(sampler, tmp_path, n=64, split="test", seed=0, samples=1, about={})
    assert figures["success_rate"] >= 0.28
    assert np.mean([row["success_rate"] > 0 for row in figures["by_task"].values()]) >= 0.75


def test_every_prompt_of_its_rl_fits_the_text(request):
    """A text that is too long is refused, so the config's own held-out prompts once ended the run before its start."""
    config = config_lib.load(request.config.rootpath / "configs" / "grpo_tiny.py", {"rl.rewards": "(('oracle', 1.0),)"})
    base, kind = interfaces.base_folder(config), interfaces.model(config)
    architecture = kind.model_config(config)
    tokenizer = kind.tokenizer(config, base, architecture)
    built = program.build_program(config, on_mesh.make_mesh(config), architecture, tokenizer)
    held_out, training = (prompts.source(config, split) for split in ("test", "train"))
    for prompt in (*(held_out[i] for i in range(len(held_out))), *(training[i] for i in range(500))):
        built.check(prompt)
