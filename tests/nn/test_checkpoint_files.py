"""Safetensors files and indexes that are malformed are one line that names the file; small whole ones are read."""

import json
import struct

import ml_dtypes
import numpy as np
import pytest
import safetensors.numpy

from edit_rl_jax.nn import model_files, safetensors_io
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.nn.weights import is_finite, same
from tests.system import folders


@pytest.fixture
def file(tmp_path):
    rng = np.random.default_rng(0)
    arrays = {k: rng.normal(size=(3, 4)).astype(np.float32) for k in "abcd"} | {"e": np.ones(2, ml_dtypes.bfloat16)}
    safetensors.numpy.save_file(arrays, tmp_path / "model.safetensors", metadata={"format": "pt"})
    return tmp_path / "model.safetensors"


def test_every_malformed_header_is_one_line_that_names_the_file(file):
    whole, tried = file.read_bytes(), 0
    harmless = {"metadata null"}  # an object without entries
    for what, do in folders.headers(file):
        file.write_bytes(whole)
        do(file)
        tried += 1
        if what in harmless:
            safetensors_io.read_header(file)
            continue
        with pytest.raises(WeightsError) as error:
            pytest.fail(f"{what}: {safetensors_io.read_header(file)}")
        assert str(file) in str(error.value) and "\n" not in str(error.value), what
        assert len(str(error.value)) < 600, what
    assert tried > 60


def test_an_empty_tensor_and_a_scalar_are_read(tmp_path):
    arrays = {"none": np.zeros((0, 4), np.float32), "scalar": np.float32(3)[None].reshape(()), "x": np.arange(3.0)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    found = safetensors_io.read_header(tmp_path / "x.safetensors")
    assert found["none"].read().shape == (0, 4) and found["scalar"].read() == 3 and found["x"].read()[2] == 2


@pytest.mark.parametrize(
    "index, said",
    [
        ("null", "an object wanted"),
        ("{}", "weight_map is no object"),
        ('{"weight_map": []}', "weight_map is no object"),
        ('{"weight_map": {}}', "weight_map is no object"),
        ('{"weight_map": {"a": 5}}', "weight_map is no object"),
        ('{"weight_map": {"a": null}}', "weight_map is no object"),
        ('{"weight_map": {"a": "/etc/x.safetensors"}}', "leads out of the folder"),
        ('{"weight_map": {"a": "s/../../x.safetensors"}}', "leads out of the folder"),
        ('{"weight_map": {"a": "x.bin"}}', "leads out of the folder"),
        ('{"weight_map": {"a": "x\\u0000.safetensors"}}', "leads out of the folder"),
        ('{"weight_map": {"a": "x.safetensors"}}', "shards that are not there"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "doubled entries: a"),
        ('{"weight_map": ' + "[" * 5000 + "]" * 5000 + "}", "nested too deeply"),
    ],
)
def test_an_index_that_is_malformed(tmp_path, index, said):
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(WeightsError, match=said) as error:
        safetensors_io.open_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_the_single_file_is_taken_beside_an_index(file):
    (file.parent / "model.safetensors.index.json").write_text('{"weight_map": {"z": "gone.safetensors"}}')
    assert {t.name for t in safetensors_io.open_folder(file.parent)} == set("abcde")
    assert safetensors_io.weight_files(file.parent) == [file]


def test_numbers_are_the_same_whatever_they_are_stored_in(tmp_path):
    x = np.random.default_rng(0).normal(size=(5, 4)).astype(ml_dtypes.bfloat16)
    arrays = {"a": x, "b": x.astype(np.float32), "c": x.astype(np.float64), "d": x.astype(np.float32) * (1 + 2**-20)}
    safetensors.numpy.save_file(arrays, tmp_path / "x.safetensors")
    t = safetensors_io.read_header(tmp_path / "x.safetensors")
    assert same(t["a"], t["b"], rows=2) and same(t["b"], t["c"]) and not same(t["a"], t["d"])


@pytest.mark.parametrize("dtype", [np.float64, np.float32, np.float16, ml_dtypes.bfloat16])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_seen(dtype, value):
    x = np.ones((3, 1000), dtype)
    assert is_finite(x, chunk=64)
    x[2, 777] = value
    assert not is_finite(x, chunk=64)


@pytest.mark.parametrize(
    "kind, value, good",
    [
        ("int", 3, True),
        ("int", True, False),
        ("int", 3.0, False),
        ("int", "3", False),
        ("int", None, False),
        ("int", 10**400, False),
        ("int", 0, False),
        ("float", 3, True),
        ("float", 10**400, False),
        ("float", False, False),
        ("int | None", None, True),
        ("bool", True, True),
        ("bool", 1, False),
        ("tuple[int, ...]", [1, 2], True),
        ("tuple[int, ...]", [1, 2.5], False),
        ("tuple[int, ...]", [[1]], False),
        ("tuple[int, ...]", [1] * 2000, False),
        ("int | tuple[int, ...] | None", [5], True),
        ("str", "x", True),
        ("str", 5, False),
    ],
)
def test_values_of_a_config(kind, value, good):
    if good:
        model_files.checked(value, kind, "file: key")
    else:
        with pytest.raises(WeightsError, match="^file: key is .*, not ") as error:
            model_files.checked(value, kind, "file: key")
        assert len(str(error.value)) < 200


def test_the_hashes_cover_every_file_and_themselves(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for name, content in {"config.json": "{}", "sub/a.safetensors": "xyz", "README.md": "card"}.items():
        (tmp_path / name).write_text(content)
    model_files.verify(tmp_path)  # another maker's folder
    model_files.stamp(tmp_path, {"objective": "x"})
    model_files.verify(tmp_path)
    assert model_files.stored_metadata(tmp_path) == {"objective": "x"}
    (tmp_path / "README.md").write_text("another card")
    (tmp_path / "notes.json").write_text("{")
    model_files.verify(tmp_path)
    own = json.loads((tmp_path / "edit_rl.json").read_text())
    damages = {
        "config.json": ("{} ", "SHA-256 differs.: config.json. .*EDIT_RL_VERIFY=0"),
        "sub/a.safetensors": ("xyZ", "SHA-256 differs.: sub/a.safetensors"),
        "edit_rl.json": (json.dumps(own | {"objective": "y"}), "edit_rl.json is not as it was written"),
        "tokenizer.json": ("{}", "not of this export: tokenizer.json"),
        "sub/b.safetensors": ("", "not of this export: sub/b.safetensors"),
    }
    for name, (content, said) in damages.items():
        file = tmp_path / name
        before = file.read_text() if file.exists() else None
        file.write_text(content)
        with pytest.raises(WeightsError, match=said):
            model_files.verify(tmp_path)
        model_files.verify(tmp_path, on=False)
        with monkeypatch.context() as patch:
            patch.setenv("EDIT_RL_VERIFY", "0")
            model_files.verify(tmp_path)
        file.unlink() if before is None else file.write_text(before)
    for key in ("sha256", "self_sha256"):
        (tmp_path / "edit_rl.json").write_text(json.dumps({k: v for k, v in own.items() if k != key}))
        with pytest.raises(WeightsError, match="edit_rl.json is not as it was written"):
            model_files.verify(tmp_path)
    assert model_files.main([str(tmp_path)]) == 0  # accepts all of it
    model_files.verify(tmp_path)
    assert "notes.json" in json.loads((tmp_path / "edit_rl.json").read_text())["sha256"]


def test_a_header_of_the_right_length_and_no_json(tmp_path):
    raw = b'{"a": {"dtype": "F32", "shape": [NaN], "data_offsets": [0, 4]}}'
    (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(raw)) + raw + b"\0" * 4)
    with pytest.raises(WeightsError, match="x.safetensors: damaged header: malformed JSON: NaN"):
        safetensors_io.read_header(tmp_path / "x.safetensors")
