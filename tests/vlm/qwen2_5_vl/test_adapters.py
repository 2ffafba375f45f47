"""Adapters as users have them: a table of what `peft` writes, the cases of the shared folder, where a base is found."""

import copy
import dataclasses
import functools
import json
import shutil
from pathlib import Path

import jax
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx
from peft import PeftModel

import edit_rl_jax
from edit_rl_jax.nn.params import Trainable
from edit_rl_jax.vlm.loading import base_folder, load_model
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import LoRAConfig, Qwen25VL
from edit_rl_jax.vlm.qwen2_5_vl.weights import WeightsError
from tests.parity import ladder, tiny
from tests.vlm.qwen2_5_vl import adapters_table as table
from tests.vlm.qwen2_5_vl import peft

TINY_VL = Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl"


SLOW = [pytest.param(row, marks=pytest.mark.slow) for row in table.SAME_TOO]


@pytest.mark.parametrize("row", table.SAME + table.REFUSED + SLOW, ids=lambda row: row.name)
def test_an_adapter_computes_as_in_peft_or_is_refused(row):
    found = table.run(row)
    if row.right != table.EQUAL:
        assert isinstance(found, str) and row.right in found and "\n" not in found, found
    else:
        assert not isinstance(found, str), found
        error, effect = found
        assert error <= ladder.NETWORK and effect > 0.02


def test_unmerged_it_computes_the_same():
    """Ranks and alphas by layer, the head and the patch embedding as leaves of the model."""
    options = table.on("q_proj", "proj", "lm_head", rank_pattern={"q_proj": 7}, alpha_pattern={"patch_embed.proj": 9})
    row = table.Row("unmerged", options, save={"save_embedding_layers": False})
    error, effect = table.run(row, merge=False)
    assert error <= ladder.NETWORK and effect > 0.02


def test_several_adapters_of_one_module_are_doubled(tmp_path):
    folder = written(tmp_path, table.SAME[0])
    tensors = safetensors.torch.load_file(folder / peft.FILE)
    tensors |= {k.replace(".weight", ".other.weight"): v.clone() for k, v in tensors.items()}
    safetensors.torch.save_file(tensors, folder / peft.FILE)
    with pytest.raises(WeightsError, match="doubled: .* are the same weight"):
        peft.read_adapter(folder)


def written(tmp_path, row) -> Path:
    return shutil.copytree(table.saved(row), tmp_path / "adapter")


@pytest.mark.parametrize(
    "text, said",
    [
        ("", "malformed JSON"),
        ("null", "an object wanted"),
        ("[1]", "an object wanted"),
        ('{"peft_type": "LORA", "r": NaN}', "NaN"),
        ('{"peft_type": "LORA", "peft_type": "LORA"}', "doubled entries: peft_type"),
    ],
)
def test_a_malformed_config_names_its_file(tmp_path, text, said):
    folder = written(tmp_path, table.SAME[0])
    (folder / peft.CONFIG).write_text(text)
    for read in (peft.read_adapter, base_folder):
        with pytest.raises(WeightsError, match=f"{folder / peft.CONFIG}: .*{said}"):
            read(folder)


def test_a_pickle_is_refused(tmp_path):
    folder = written(tmp_path, table.SAME[0])
    (folder / peft.FILE).rename(folder / "adapter_model.bin")
    with pytest.raises(WeightsError, match=r"adapter_model.safetensors: not there; adapter_model.bin is a pickle"):
        peft.read_adapter(folder)


def test_a_base_of_another_size_is_named(tmp_path):
    """heads_equal's adapter on bases of another width and of fewer layers."""
    folder = written(tmp_path, table.SAME[0])
    ladder.reference("untied_mqa")
    with pytest.raises(WeightsError, match=r"lora_A.weight \(3, 64\), not \(3, 48\)"):
        table.ours("untied_mqa", folder)
    cfg = Config.from_hf(ladder.folder() / "heads_equal")
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, num_hidden_layers=2))
    with pytest.raises(WeightsError, match=r"unknown, or not targeted: .*layers\.2\.self_attn\.q_proj\.lora_A"):
        load_model(cfg, ladder.folder() / "heads_equal", (folder, peft.read_adapter(folder)))


def test_what_was_changed_at_loading_is_not_written_back(tmp_path):
    folder = written(tmp_path, next(r for r in table.ROWS if r.name == "alpha_pattern"))
    adapter = peft.read_adapter(folder)
    cfg = Config.from_hf(ladder.folder() / "heads_equal")
    model = nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=peft.lora(adapter)))
    state = peft.load(folder, nnx.state(model, Trainable))
    with pytest.raises(WeightsError, match="differ in rank or alpha"):
        peft.save(state, adapter, tmp_path / "again")
    assert not (tmp_path / "again").exists()


@pytest.fixture(scope="module")
def packaged():
    """torch's packaged model in fp32, our configuration of it, and a sample with an image in its own tokens."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tiny, "IMAGE", 6)
        patch.setattr(tiny, "SLOTS", 180)  # whole windows of this model
        tags = {290: 6, tiny.START: 3, tiny.END: 4}
        sample = dataclasses.replace(tiny.ONE, tokens=tiny.ONE.tokens.copy())
        sample.tokens[:] = [tags.get(t, t + 20) for t in tiny.ONE.tokens.tolist()]
        cfg = Config.from_hf(TINY_VL)
        model = transformers.Qwen2_5_VLForConditionalGeneration.from_pretrained(
            TINY_VL, dtype=torch.float32, attn_implementation="eager"
        )
        yield model.eval(), cfg, sample.torch(), ladder.batch(cfg, [[(sample, 0)]])


@pytest.mark.parametrize(
    "name",
    [
        "adapter_attn_proj_only",
        "adapter_down_only",
        "adapter_last_blocks",
        "adapter_no_alpha_key",
        "adapter_swift_regex",
    ],
)
@pytest.mark.filterwarnings("ignore")
def test_the_shared_cases_compute_as_in_peft(shared, packaged, tmp_path, name):
    model, cfg, inputs, batch = packaged
    case = shared / "cases" / name
    folder = shutil.copytree(case, tmp_path / "adapter")
    if name == "adapter_swift_regex":  # plain PEFT reads neither its names nor its pattern
        tensors = safetensors.torch.load_file(folder / peft.FILE)
        new = {k.replace("model.model.layers.", "model.model.language_model.layers."): v for k, v in tensors.items()}
        safetensors.torch.save_file(new, folder / peft.FILE)
        config = json.loads((folder / peft.CONFIG).read_text())
        decoder = r"model\.language_model\.layers\..*_proj"
        (folder / peft.CONFIG).write_text(json.dumps(config | {"target_modules": decoder}))
    with torch.no_grad():
        want = PeftModel.from_pretrained(copy.deepcopy(model), folder).eval()(**inputs).logits[0]
        plain = model(**inputs).logits[0]
    ours = load_model(cfg, TINY_VL, (case, peft.read_adapter(case)))
    got = table.forward(ours, batch)[: len(want)]
    assert ladder.error(got, want) <= ladder.NETWORK and ladder.error(want, plain) > 0.01


@pytest.mark.parametrize("name", ["adapter_base_by_last_name", "adapter_base_unreachable"])
def test_the_shared_cases_without_a_base_ask_for_it(shared, name):
    case = shared / "cases" / name
    said = json.loads((case / peft.CONFIG).read_text())["base_model_name_or_path"]
    with pytest.raises(FileNotFoundError) as error:
        base_folder(case)
    text = str(error.value)
    assert said in text and "--base" in text and str(case) in text and "\n" not in text
    assert base_folder(case, TINY_VL) == TINY_VL


def adapter_of(folder: Path, base, **more) -> Path:
    folder.mkdir(parents=True)
    config = {"peft_type": "LORA", "target_modules": ["q_proj"], "base_model_name_or_path": base, **more}
    (folder / peft.CONFIG).write_text(json.dumps(config))
    return folder


@functools.cache
def model_in(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


@pytest.mark.parametrize(
    "said",
    [
        "edit_rl_jax/assets/tiny_vl",
        "/home/other/src/edit_rl_jax/assets/tiny_vl",
        "/usr/lib/python3.11/site-packages/edit_rl_jax/assets/tiny_vl/",
    ],
)
def test_a_packaged_base_is_known_by_its_path_in_the_package(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    assert base_folder(adapter_of(tmp_path / "a", said)).samefile(TINY_VL)


@pytest.mark.parametrize(
    "said",
    [
        "/data/me/other_run/tiny_vl",
        "tiny_vl",
        "./tiny_vl",
        "../assets/tiny_vl",
        "/data/assets/tiny_vl",
        "/data/my_edit_rl_jax/assets/tiny_vl",
        "edit_rl_jax/assets/tiny_vl/sub",
        "edit_rl_jax/assets/tiny_vl_mine",
        "assets/tiny_vl",
        "~/tiny_vl",
        "C:\\models\\tiny_vl",
        "gs://bucket/tiny_vl",
        "",
        None,
        7,
    ],
)
def test_a_base_is_never_guessed(tmp_path, monkeypatch, said):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="--base") as error:
        base_folder(adapter_of(tmp_path / "a", said))
    assert str(said) in str(error.value) and "\n" not in str(error.value)


def test_a_base_is_where_the_adapter_says(tmp_path, monkeypatch):
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    absolute = model_in(tmp_path / "absolute")
    assert base_folder(adapter_of(tmp_path / "a", str(absolute))) == absolute
    beside = adapter_of(tmp_path / "b" / "adapter", "../base")
    model_in(tmp_path / "b" / "base")
    assert base_folder(beside).samefile(tmp_path / "b" / "base")
    model_in(here / "org" / "name")  # as PEFT: a folder here, before the hub
    assert base_folder(adapter_of(tmp_path / "c", "org/name")).samefile(here / "org" / "name")
    model_in(here.parent / "base")  # what "../base" means from here
    with pytest.raises(FileNotFoundError, match=r"is both .*/base and .*/b/base: give the base with --base"):
        base_folder(beside)
    assert base_folder(beside, tmp_path / "b" / "base") == tmp_path / "b" / "base"


def test_a_base_that_is_told_is_not_replaced(tmp_path, monkeypatch):
    """Neither by the adapter's own nor by a packaged one; an adapter is no base."""
    monkeypatch.chdir(tmp_path)
    folder = adapter_of(tmp_path / "a", str(model_in(tmp_path / "base")))
    for gone in ("elsewhere", "/other/edit_rl_jax/assets/tiny_vl", "./base2"):
        with pytest.raises(FileNotFoundError, match=f"'{gone}' is not here: give the base with --base"):
            base_folder(folder, gone)
    with pytest.raises(FileNotFoundError, match="is an adapter, not a model"):
        base_folder(folder, adapter_of(tmp_path / "b", str(tmp_path / "base")))
    with pytest.raises(FileNotFoundError, match="'no/such-base' is neither here nor to be had from the hub: .*--base"):
        base_folder(folder, "no/such-base")


def test_ranks_that_are_padded_stay_exact(tmp_path):
    """Beyond its own rank the factors of a layer are zero; an adapter of one rank keeps its own rank and alpha."""
    folder = written(tmp_path, next(r for r in table.ROWS if r.name == "rank_pattern"))
    adapter = peft.read_adapter(folder)
    assert (adapter.rank, adapter.uniform, peft.lora(adapter).vision, peft.lora(adapter).merger) == (
        7,
        False,
        True,
        False,
    )
    cfg = Config.from_hf(ladder.folder() / "heads_equal")
    model = nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=peft.lora(adapter)))
    state = peft.load(folder, nnx.state(model, Trainable))
    down = state["language_model"]["layers"]["mlp"]["down_proj"]
    assert not jax.numpy.any(down["lora_a"][...][..., 1:]) and not jax.numpy.any(down["lora_b"][...][:, 1:])
    plain = peft.read_adapter(shutil.copytree(table.saved(table.SAME[0]), tmp_path / "plain"))
    assert peft.lora(plain) == LoRAConfig(3, 5.0) and plain.uniform
