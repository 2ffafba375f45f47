"""What a run starts from: an adapter must be what the config describes, a base is named, an objective chooses its own
prompts."""

import dataclasses
import json
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports, model_files
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.params import Trainable
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.editscore import prompts as editscore
from edit_rl_jax.training import interfaces, on_mesh, sources
from edit_rl_jax.training.program import build_program
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from tests.training import micro
from tests.vlm.qwen2_5_vl import peft

LORA = dict(model__trainable="lora", model__lora__rank=4, model__lora__alpha=8.0)


@cache
def program(**changes):
    config = micro.config(**LORA | changes)
    return build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A base and an adapter of rank 4, alpha 8 on the decoder."""
    p, base, adapter = program(), tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    ones = lambda template, flat: st.unflatten(template, {k: jnp.ones(v.shape, v.dtype) for k, v in flat.items()})
    weights.save(ones(p.frozen_state, p.frozen), p.model_config, base)
    state = ones(p.trainable_state, p.trainable)
    peft.save(state, peft.make_adapter(state, 4, 8.0, str(base)), adapter)
    return base, adapter


def initial(folders, **changes):
    base, adapter = folders
    p = program(**changes)
    config = p.config.copy_and_resolve_references()
    with config.unlocked():
        config.model.init_adapter = str(adapter)
    with jax.set_mesh(p.mesh):
        return interfaces.initial_weights(interfaces.model(config), dataclasses.replace(p, config=config), base)


@pytest.mark.parametrize("kind", ["qwen2_5_vl", "omnigen2"])
def test_what_no_adapter_holds_is_refused_before_training(kind):
    """Not after it, when it would be lost."""
    state = nnx.State.from_flat_path({("reward", "bias"): Trainable(jnp.zeros(3))})
    config = SimpleNamespace(model=SimpleNamespace(trainable="lora"), seed=0)
    made = SimpleNamespace(config=config, trainable_state=state, model_config=Config.from_hf(micro.ARCHITECTURE))
    with pytest.raises(WeightsError, match="trained, but no part of a LoRA adapter: reward.bias"):
        interfaces.model_named(kind).initial_weights(made, None)


def test_an_adapter_is_the_start(folders):
    trainable, frozen = initial(folders)
    assert trainable and frozen and all((np.asarray(v) == 1).all() for v in (*trainable.values(), *frozen.values()))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__lora__alpha": 16.0}, "model.lora.alpha is 16.0, the adapter's 8.0"),
        ({"model__lora__rank": 8}, "model.lora.rank is 8, the adapter's 4"),
        ({"model__lora__vision": True}, "model.lora.vision is True, the adapter's False"),
        ({"model__lora__merger": True}, "model.lora.merger is True, the adapter's False"),
    ],
)
def test_an_adapter_of_other_arithmetic_or_targets_is_refused(folders, changes, said):
    with pytest.raises(ConfigError, match="model.init_adapter") as error:
        initial(folders, **changes)
    assert said in str(error.value)


def test_an_adapter_of_fewer_layers_is_refused(folders, tmp_path):
    """Its zeros would have no gradient: those layers would silently never learn."""
    stored = json.loads((folders[1] / peft.CONFIG).read_text())
    (tmp_path / peft.CONFIG).write_text(json.dumps(stored | {"target_modules": ["q_proj", "v_proj"]}))
    tensors = safetensors.numpy.load_file(folders[1] / peft.FILE)
    kept = {k: v for k, v in tensors.items() if "q_proj" in k or "v_proj" in k}
    safetensors.numpy.save_file(kept, tmp_path / peft.FILE)
    with pytest.raises(ConfigError, match="does not cover .*layers.0.mlp"):
        initial((folders[0], tmp_path))


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"alpha_pattern": {"q_proj": 16}}, "its layers differ in rank or alpha; model.lora has one each"),
        ({"use_rslora": True}, "model.lora.alpha is 8.0, the adapter's 16.0"),
        ({"target_modules": "(?!.*(embed_tokens|norm|lm_head)).*_proj.*|.*qkv"}, "no tensors: model.visual.blocks.0"),
    ],
)
def test_an_adapter_that_the_config_cannot_describe_is_refused(folders, tmp_path, entries, said):
    """Ranks or alphas by layer, another rule of scale, and layers of the frozen tower that have no tensors."""
    stored = json.loads((folders[1] / peft.CONFIG).read_text())
    (tmp_path / peft.FILE).write_bytes((folders[1] / peft.FILE).read_bytes())
    (tmp_path / peft.CONFIG).write_text(json.dumps(stored | entries))
    with pytest.raises(ConfigError, match="model.init_adapter") as error:
        initial((folders[0], tmp_path))
    assert said in str(error.value)
    if "use_rslora" in entries:  # as plain LoRA of that alpha it is a start
        assert initial((folders[0], tmp_path), model__lora__alpha=16.0)


def test_the_base_is_named_without_a_revision_in_the_config(folders, tmp_path):
    base = folders[0]
    assert model_files.revision(base).startswith("sha256:") and model_files.revision(base) == model_files.revision(base)
    other = tmp_path / "other"
    other.mkdir()
    for file in base.iterdir():
        (other / file.name).write_bytes(file.read_bytes())
    assert model_files.revision(other) == model_files.revision(base)  # wherever it lies
    (other / "config.json").write_text("{}")
    assert model_files.revision(other) != model_files.revision(base)
    commit = tmp_path / "models--a--b" / "snapshots" / "0123abcd"
    commit.mkdir(parents=True)
    assert model_files.revision(commit) == "0123abcd" and model_files.revision(None) == ""
    config = micro.config(model__config="", model__init_from="a/b")
    assert "@ 0123abcd" in exports.card(config, None, {}, "0123abcd", title="")


class Wordless:
    """An objective that asks nothing in words."""

    def to_examples(self, record, seed):
        return []

    def loss(self, model, batch):
        raise NotImplementedError


class Worded(Wordless):
    """An objective with prompts of its own."""

    def choose_prompts(self, name, stored):
        return dataclasses.replace(editscore.TINY, name=f"worded, {name or 'default'}, {bool(stored)}")

    def examples_with(self, prompts):
        return self.to_examples


def prompts(config, base):
    return sources.prompts(interfaces.objective(config), config, base)


def test_an_objective_chooses_its_own_prompts(tmp_path):
    here = f"{__name__}:"
    assert prompts(micro.config(objective=here + "Wordless"), None) is None
    assert prompts(micro.config(), None) is None
    assert prompts(micro.config(objective=here + "Worded"), None).name == "worded, default, False"
    assert prompts(micro.config(objective="editscore"), None) is editscore.STANDARD
    assert prompts(micro.config(objective="editscore", model__prompts="tiny"), None) is editscore.TINY
    with pytest.raises(ConfigError, match="no config key 'model.prompts' in this config: one of objective=editscore"):
        micro.config(model__prompts="tiny")
    with pytest.raises(ConfigError, match="model.prompts.*tiny"):
        prompts(micro.config(objective="editscore", model__prompts="tyni"), None)
    # those stored with a base are for the objective that it was trained for
    stored = exports.metadata(micro.config(objective="editscore"), editscore.TINY)
    (tmp_path / weights.METADATA).write_text(json.dumps(stored))
    assert prompts(micro.config(objective="editscore"), tmp_path) == editscore.TINY
    assert prompts(micro.config(objective=here + "Worded"), tmp_path).name == "worded, default, False"
