"""What names a judge's answers: the weights, wherever they lie, and those of an adapter's base."""

import json
import os
import shutil

import pytest

from edit_rl_jax.cli.judge_flags import fingerprint, mesh_shape


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
    with_base = fingerprint(adapter)
    assert with_base != first and fingerprint(adapter, tmp_path / "elsewhere") == with_base
    (base / "model.safetensors").write_text("abd")
    assert fingerprint(base) != first and fingerprint(adapter) != with_base
    assert fingerprint(adapter, tmp_path / "elsewhere") == with_base


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
