"""A model's folder in a bucket: copied once to this machine's disk, by what stands there."""

import os

import pytest

from edit_rl_jax.nn.weights import local_folder
from tests.training import object_store


def test_a_folder_in_a_bucket_is_copied_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    object_store.register(tmp_path / "store")
    there = tmp_path / "store/bucket/run/model"
    (there / "vae").mkdir(parents=True)
    for name in ("config.json", "vae/config.json", "model.safetensors", "code.py"):
        (there / name).write_text(name)
    found = local_folder("gs://bucket/run/model")
    assert found.name == "model" and tmp_path / "cache" in found.parents
    names = lambda: sorted(str(p.relative_to(found)) for p in found.rglob("*") if p.is_file())
    assert names() == ["config.json", "model.safetensors", "vae/config.json"]  # no code
    assert (found / "vae/config.json").read_text() == "vae/config.json"
    (found / "config.json").write_text("touched")
    assert local_folder("gs://bucket/run/model/") == found and (found / "config.json").read_text() == "touched"
    before = (there / "config.json").stat().st_mtime
    (there / "config.json").write_text("CONFIG.JSON")  # as long
    os.utime(there / "config.json", (before + 2, before + 2))
    again = local_folder("gs://bucket/run/model")
    assert again != found and (again / "config.json").read_text() == "CONFIG.JSON"
    with pytest.raises(FileNotFoundError, match="gs://bucket/run/none is no folder"):
        local_folder("gs://bucket/run/none")
