"""Model folders that are damaged are refused with one line that names the file; what is not finite is not exported."""

import importlib.util
import json
import logging
import shutil
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.training import interfaces, on_mesh
from edit_rl_jax.training.program import build_program
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from tests.system import folders
from tests.training import micro

ROOT = Path(__file__).resolve().parents[2]
RIGHT = (folders.NAMED, folders.HARMLESS)


@pytest.fixture(scope="module")
def exports(tmp_path_factory):
    return folders.exports(tmp_path_factory.mktemp("exports"))


@pytest.mark.parametrize(
    "kind, hashed, every",
    [("full", True, 97), ("adapter", True, 101), ("editor", True, 311), ("full", False, 29), ("editor", False, 131)],
)
def test_damages(exports, tmp_path, kind, hashed, every):
    """Some of each; the command in `folders.py` tries all."""
    tried = list(folders.trial(tmp_path, kind, exports[kind], hashed, every, offset=5))
    assert len(tried) >= 5
    assert not [t for t in tried if t[2] not in RIGHT]
    assert sum(t[2] == folders.NAMED for t in tried) >= len(tried) // 2


@pytest.mark.slow
def test_every_damage(capsys):
    assert folders.main([]) == 0, capsys.readouterr()


def load(name):
    spec = importlib.util.spec_from_file_location(name, ROOT / f"scripts/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def copied(source: Path, home: Path, **changed) -> Path:
    """A copy with entries of config.json changed and no hashes."""
    shutil.copytree(source, home)
    folders.unstamp(home)
    config = json.loads((home / "config.json").read_text())
    for key, value in changed.items():
        level, _, name = key.rpartition("__")
        (config[f"{level}_config"] if level else config)[name] = value
    (home / "config.json").write_text(json.dumps(config))
    return home


@pytest.mark.parametrize(
    "changed",
    [
        {"text__num_hidden_layers": 10**9},
        {"text__num_attention_heads": 0},
        {"text__hidden_size": 10**18},
        {"text__vocab_size": 10**18},
        {"text__hidden_size": 33},
        {"vision__depth": 10**9},
        {"vision__patch_size": 0},
        {"vision__window_size": 0},
        {"vision__spatial_merge_size": 0},
        {"vision__num_heads": 3},
        {"text__rms_norm_eps": -1},
        {"text__rope_scaling": {"mrope_section": [10**9, 1, 1]}},
    ],
    ids=str,
)
def test_sizes_that_no_model_has_are_refused_at_once(exports, tmp_path, changed):
    folder, began = copied(exports["full"], tmp_path / "folder", **changed), time.monotonic()
    with pytest.raises(WeightsError, match="config.json"):
        EditScore.load(folder)
    assert time.monotonic() - began < 2


def test_a_change_that_was_meant_has_a_way(exports, tmp_path, monkeypatch):
    folder = tmp_path / "folder"
    shutil.copytree(exports["full"], folder)
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["rms_norm_eps"] = 1e-5
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(WeightsError, match="config.json.*EDIT_RL_VERIFY=0.*edit_rl_jax.nn.model_files"):
        EditScore.load(folder)
    assert EditScore.load(folder, verify=False).cfg.text.rms_norm_eps == 1e-5
    monkeypatch.setenv(model_files.OFF, "0")
    assert EditScore.load(folder).cfg.text.rms_norm_eps == 1e-5
    monkeypatch.delenv(model_files.OFF)
    model_files.main([str(folder)])
    assert EditScore.load(folder).cfg.text.rms_norm_eps == 1e-5


def test_a_folder_saved_from_an_export_has_hashes_of_its_own(exports, tmp_path):
    cfg = Config.from_hf(exports["full"])
    state = weights.load(exports["full"], folders.abstract(cfg))
    weights.save(state, cfg, tmp_path / "again", dtype=jnp.bfloat16, files_from=exports["full"])
    assert EditScore.load(tmp_path / "again").prompts.name == "tiny"


def test_an_export_without_its_metadata_is_not_taken_for_another_model(exports, tmp_path):
    for kind in ("full", "adapter"):
        shutil.copytree(exports[kind], tmp_path / kind)
        (tmp_path / kind / model_files.METADATA).unlink()
        with pytest.raises(WeightsError, match="edit_rl.json is missing"):
            EditScore.load(tmp_path / kind)


@pytest.mark.parametrize("trainable", ["full", "lora"])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_not_exported(exports, tmp_path, trainable, value):
    config = micro.config(model__trainable=trainable, objective="editscore", model__lora__rank=2)
    program = build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]))
    flat = {k: jnp.zeros(v.shape, v.dtype) for k, v in program.trainable.items()}
    name = sorted(k for k in flat if "mlp" in k)[0]
    out, before = tmp_path / "model", dict(flat)
    about = dict(tokenizer=folders.load_tokenizer(exports["full"]), prompts=folders.TINY, facts={})
    export = interfaces.model(config).export
    export(program, before, out, **about)
    stood = folders._digest([p.read_bytes() for p in sorted(out.iterdir())])
    flat[name] = flat[name].at[(-1,) * flat[name].ndim].set(value)
    for folder in (out, tmp_path / "new"):
        with pytest.raises(WeightsError, match="NaN or infinite are not exported: .*mlp") as error:
            export(program, flat, folder, **about)
        assert "\n" not in str(error.value)
    assert not (tmp_path / "new").exists()
    assert folders._digest([p.read_bytes() for p in sorted(out.iterdir())]) == stood


def test_what_overflows_in_the_dtype_of_the_files_is_not_exported(exports, tmp_path):
    config = micro.config(objective="editscore", model__save_dtype="bfloat16")
    program = build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]))
    flat = {k: jnp.full(v.shape, jnp.finfo(v.dtype).max, v.dtype) for k, v in program.trainable.items()}
    with pytest.raises(WeightsError, match="not exported"):
        interfaces.model(config).export(
            program, flat, tmp_path / "x", tokenizer=folders.load_tokenizer(exports["full"]), prompts=None, facts={}
        )


def spoil(file: Path) -> None:
    file.write_text("[" * 5000 + "]" * 5000)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "preprocessor_config.json", "edit_rl.json"])
def test_the_commands_say_one_line(exports, tmp_path, file, capsys, monkeypatch):
    image = tmp_path / "x.png"
    image.write_bytes(encode_png(np.zeros((56, 56, 3), np.uint8)))
    spoil(copied(exports["full"], tmp_path / "model") / file)
    monkeypatch.setenv(model_files.OFF, "0")
    words = ["--model", str(tmp_path / "model"), "--source", str(image), "--edited", str(image), "--instruction", "x"]
    with pytest.raises(SystemExit) as exit:
        load("score").main(words)
    assert file in str(exit.value.code) and "\n" not in str(exit.value.code)


@pytest.mark.parametrize("file", ["transformer/config.json", "vae/config.json", "scheduler/scheduler_config.json"])
def test_the_editor_says_one_line(exports, tmp_path, file, monkeypatch):
    shutil.copytree(exports["editor"], tmp_path / "model")
    spoil(tmp_path / "model" / file)
    monkeypatch.setenv(model_files.OFF, "0")
    words = ["--model", str(tmp_path / "model"), "--instruction", "x", "--output", str(tmp_path / "x.png")]
    with pytest.raises(SystemExit) as exit:
        load("edit").main(words)
    assert file in str(exit.value.code) and "\n" not in str(exit.value.code)


@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "model.safetensors"])
def test_training_says_one_line(exports, tmp_path, file, caplog):
    spoil(copied(exports["full"], tmp_path / "model") / file)
    words = ["--config", str(ROOT / "tests/training/toy_config.py"), "--workdir", str(tmp_path / "run")]
    changes = {"model.init_from": tmp_path / "model", "model.config": "", "data.buckets": "((64,1,64,16),)"}
    changes |= {"mesh.fsdp": -1, "rows": 8, "compilation_cache": ""}
    words += [f"--config.{k}={v}" for k, v in changes.items()]
    with caplog.at_level(logging.ERROR), jax.numpy_dtype_promotion("standard"):
        assert load("train_rm").main(words) == 1
    said = [r.getMessage() for r in caplog.records if r.levelno >= logging.ERROR]
    assert len(said) == 1 and file in said[0] and "\n" not in said[0], said
