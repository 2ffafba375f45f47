"""Which judge a folder is, what its answers are known by, and how little a client loads."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from edit_rl_jax.cli.flags import mesh_shape
from edit_rl_jax.nn.model_files import fingerprint
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.vlm.loading import base_folder
from scripts import score


def folder(path, **files):
    path.mkdir()
    for name, text in files.items():
        (path / name.replace("__", ".")).write_text(text)
    return path


def test_fingerprint_follows_the_content(tmp_path):
    base = folder(tmp_path / "base", config__json="{}", model__safetensors="abc", notes__txt="x")
    first = fingerprint(base)
    assert fingerprint(shutil.copytree(base, tmp_path / "elsewhere")) == first
    (base / "notes.txt").write_text("other")
    assert fingerprint(base) == first
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}
    config["base_model_name_or_path"] = str(base)
    adapter = folder(tmp_path / "lora", adapter_config__json=json.dumps(config), adapter_model__safetensors="a")
    with_base = fingerprint(adapter, base_folder(adapter))
    assert with_base != first and fingerprint(adapter, base_folder(adapter, tmp_path / "elsewhere")) == with_base
    (base / "model.safetensors").write_text("abd")
    assert fingerprint(base) != first and fingerprint(adapter, base_folder(adapter)) != with_base
    assert fingerprint(adapter, base_folder(adapter, tmp_path / "elsewhere")) == with_base


def test_the_hubs_own_hashes_are_taken(tmp_path):
    """A link into the hub's cache is named by its blob, which need not be read."""
    blob = tmp_path / ("ab" * 32)
    blob.write_text("weights")
    links = folder(tmp_path / "links", config__json="{}")
    os.symlink(blob, links / "model.safetensors")
    before = fingerprint(links)
    blob.write_text("never looked at")
    assert fingerprint(links) == before


def test_mesh_flag():
    assert mesh_shape("fsdp=4,tensor=-1") == {"fsdp": 4, "tensor": -1}
    for wrong in ("rows=3", "fsdp", ""):
        with pytest.raises(ValueError):
            mesh_shape(wrong)


@pytest.mark.parametrize("objective", ["flow_matching", "sft", "autoencoder", "nobody.knows:It", 3])
def test_a_model_of_another_objective_is_not_judged_with(tmp_path, capsys, objective):
    """In one line, by every script, before any weight is read, also where a known judge is said: RL's default is."""
    home = folder(tmp_path / "model", edit_rl__json=json.dumps({"objective": objective}))
    for said in ("", "editscore"):
        with pytest.raises(ValueError, match="is no judge, of which there are editscore") as error:
            judges.load(home, said)
        assert "\n" not in str(error.value) and "edit_rl.json" in str(error.value)
    flags = ["--source", "a", "--edited", "b", "--instruction", "c", "--model", str(home)]
    with pytest.raises(SystemExit, match="is no judge"):
        score.main(flags)
    assert judges.name_of(home, "my_pkg.mod:Class") == "my_pkg.mod:Class"


def test_which_judge_a_folder_is(tmp_path):
    named = folder(tmp_path / "a", edit_rl__json='{"objective": "editscore"}')
    silent = folder(tmp_path / "b", config__json="{}")
    assert judges.find(named)[1] is judges.find(silent)[1] is judges.kind("editscore") is EditScore
    assert judges.name_of(silent, "my_pkg.mod:Class") == "my_pkg.mod:Class"
    with pytest.raises(ValueError, match="is not the judge 'other'"):
        judges.load(named, "other")
    with pytest.raises(ValueError, match="unknown name 'editscor'.*did you mean 'editscore'"):
        judges.load(silent, "editscor")
    outside = folder(tmp_path / "c", edit_rl__json='{"objective": "my_pkg.mod:Class"}')
    assert judges.name_of(outside, "my_pkg.mod:Class") == "my_pkg.mod:Class"


@pytest.mark.parametrize("module, most", [("serving.client", 8), ("oracle", 12), ("base", 4)])
def test_what_judges_share_is_light(module, most):
    """Files of the package that are loaded; neither JAX nor an engine is among the rest."""
    code = f"""
import edit_rl_jax.rewards.{module}, sys
print(sum(name.startswith("edit_rl_jax") for name in sys.modules), "jax" in sys.modules, "transformers" in sys.modules)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert int(said[0]) <= most and said[1:] == ["False", "False"]
