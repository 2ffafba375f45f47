"""Weights out and in: whole models in the released layout, adapters with their heads; what does not fit is named."""

import functools
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
import transformers

from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.editreward import objective, trainable, weights
from edit_rl_jax.rewards.editreward.prompts import TINY, TOKEN
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import config_keys, on_mesh
from edit_rl_jax.training.program import build_program
from edit_rl_jax.vlm import loading
from tests.parity.ladder import FAST
from tests.rewards.editreward import reference


def config(kind: str, base, **changes):
    c = config_keys.default("editreward", "editreward")
    c.update(steps=2, rows=1, compilation_cache="")
    c.model.update(init_from=str(base), prompts="tiny", trainable=kind, remat="none")
    c.data.update(buckets=((448, 9, 64, 8),), **reference.PIXELS)
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
    config_lib.check(c)
    return c


@functools.cache
def plain_base():
    """The tied network's base without heads, its table as it was before the token came: 768 rows."""
    to = reference.folder("tied").with_name(reference.folder("tied").name + "-base")
    model = reference.network("tied").base
    model.save_pretrained(to)
    found = json.loads((to / "config.json").read_text())
    found["text_config"]["vocab_size"] = 768
    (to / "config.json").write_text(json.dumps(found))
    tensors = safetensors.numpy.load_file(to / "model.safetensors")
    (name,) = (n for n in tensors if n.endswith("embed_tokens.weight"))
    kept = tensors[name][:-1]  # without the token's row
    tensors[name] = np.concatenate([kept, np.ones((768 - len(kept), 64), np.float32)])
    safetensors.numpy.save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    transformers.AutoTokenizer.from_pretrained(reference.BASE).save_pretrained(to)
    return to


def trained(kind: str, base, folder, **changes):
    """A program with its weights, moved a little as training would, exported; and the figures of a pair."""
    c = config(kind, base, **changes)
    mesh = on_mesh.make_mesh(c, jax.devices()[:1])
    p = build_program(c, mesh)
    cfg, tokenizer = p.model_config, trainable.tokenizer(c, base, p.model_config)
    with jax.set_mesh(mesh):
        weights_, frozen = trainable.initial_weights(p, base)
        noise = np.random.default_rng(1)
        moved = {
            k: jax.device_put(np.asarray(v) + noise.normal(0, 0.05, v.shape).astype(np.float32), v.sharding)
            for k, v in weights_.items()
        }
        about = dict(tokenizer=tokenizer, prompts=TINY, facts={"steps": 2}, frozen=frozen)
        trainable.export(p, moved, folder, **about)
        form = trainable.batch_format(c, cfg, tokenizer)
        return p, weights_, frozen, figures(p.merge(moved, frozen), form)


def figures(model, form) -> np.ndarray:
    (example,) = objective.Preference(objective.Options()).to_examples(reference.record(1), 0, prompts=TINY)
    arrays = form.empty(0, 1)
    form.write(arrays, 0, [form.encode(form.measure(example))])
    run = jax.jit(objective.gaussians, compiler_options=FAST)
    return np.asarray(run(model, {k: jnp.asarray(v) for k, v in arrays.items()})[0])


@pytest.mark.parametrize("merge", [True, False])
def test_an_adapter_on_a_base_with_heads_is_loaded_with_its_own(merge, tmp_path, caplog):
    base = reference.folder("untied")
    p, start, _, want = trained("lora", base, tmp_path / "model")
    assert "config key 'heads.positions' is mrope, there 1d" in caplog.text  # released weights say nothing
    found = loading.open_model(tmp_path / "model")
    form = trainable.batch_format(p.config, found.cfg, found.tokenizer)
    got = figures(weights.load(found, merge=merge), form)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    own = safetensors.numpy.load_file(base / "model.safetensors")["rm_heads.head_0.0.weight"]
    heads = safetensors.numpy.load_file(tmp_path / "model" / "reward_heads.safetensors")
    assert (heads["rm_heads.head_0.0.weight"] != own).any()


@pytest.mark.parametrize("kind", ["full", "lora"])
def test_what_is_exported_is_what_was_trained(kind, tmp_path):
    base = plain_base()
    p, start, _, want = trained(kind, base, tmp_path / "model")
    found = loading.open_model(tmp_path / "model")
    form = trainable.batch_format(p.config, found.cfg, found.tokenizer)
    for merge in (True, False):
        got = figures(weights.load(found, merge=merge), form)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5 * np.abs(want).max())
    stored = json.loads((tmp_path / "model" / "edit_rl.json").read_text())
    assert stored["objective"] == "editreward" and stored["heads"] == {"fusion": "mean", "positions": "mrope"}
    # the token's row begins as the base's own row of that number
    np.testing.assert_array_equal(start["reward_row"], np.ones(64))
    names = {
        k: v.shape for k, v in safetensors.numpy.load_file(next((tmp_path / "model").glob("*ode*.safetensors"))).items()
    }
    if kind == "full":
        rows = len(reference.tokenizer())
        assert names["model.embed_tokens.weight"] == (rows, 64) and rows % 128
        released = safetensors.numpy.load_file(reference.folder("tied") / "model.safetensors")
        assert (
            names.keys() == released.keys()
            and json.loads((tmp_path / "model/config.json").read_text())["text_config"]["vocab_size"] == rows
        )
    else:
        heads = safetensors.numpy.load_file(tmp_path / "model" / "reward_heads.safetensors")
        wanted = {f"rm_heads.head_{i}.{n}.{x}" for i in (0, 1) for n in (0, 3, 5) for x in ("weight", "bias")}
        assert heads.keys() == wanted | {"reward_row"} and all(".lora_" in n for n in names)


def test_training_goes_on_from_released_weights():
    """A base with heads gives its heads, and the token's row out of its table, whole or with adapters."""
    for kind in ("full", "lora"):
        base = reference.folder("untied")
        c = config(kind, base)
        mesh = on_mesh.make_mesh(c, jax.devices()[:1])
        p = build_program(c, mesh)
        with jax.set_mesh(mesh):
            t, frozen = trainable.initial_weights(p, base)
        files = safetensors.numpy.load_file(base / "model.safetensors")
        token = reference.tokenizer().convert_tokens_to_ids(TOKEN)
        np.testing.assert_array_equal(t["rm_heads.layers.mid.kernel"][1].T, files["rm_heads.head_1.3.weight"])
        np.testing.assert_array_equal(t["reward_row"], files["model.embed_tokens.weight"][token])
        table = np.asarray(frozen["language_model.embed_tokens.embedding"])
        assert len(table) % 128 == 0 and not table[token + 1 :].any() and "lm_head.kernel" in frozen
        assert not any(k.startswith(("lm_head", "language_model.embed")) for k in t)


def damaged(tmp_path, change):
    to = tmp_path / "damaged"
    shutil.copytree(reference.folder("tied"), to)
    tensors = safetensors.numpy.load_file(to / "model.safetensors")
    change(tensors)
    safetensors.numpy.save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop("rm_heads.head_1.5.bias"), "missing: rm_heads.head_1.5.bias"),
        (lambda t: t.update({"rm_heads.head_2.0.bias": np.zeros(1024, np.float32)}), "unknown: rm_heads.head_2.0.bias"),
        (lambda t: t.update({"rm_heads.head_0.5.weight": np.zeros((4, 16), np.float32)}), "misshapen.*head_0.5.weight"),
        (lambda t: t.update({"rm_heads.head_0.5.bias": np.float32([1, np.nan])}), "head_0.5.bias holds NaN"),
        (lambda t: [t.pop(k) for k in list(t) if k.startswith("rm_heads")], "missing: rm_heads.head_0.0.bias"),
    ],
)
def test_a_damaged_head_is_named(tmp_path, change, message):
    with pytest.raises(WeightsError, match=message):
        weights.load(loading.open_model(damaged(tmp_path, change)))


def test_a_base_without_the_token_is_no_model_with_heads():
    with pytest.raises(WeightsError, match="its tokenizer has no <|Reward|>".replace("|", r"\|")):
        weights.load(loading.open_model(plain_base()))


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"data__buckets": ((448, 9, 64, 6),)}, "6 answers are no multiple of a pair's 4"),
        ({"optim__groups": (("rm_heads.", -1.0),)}, "optim.groups"),
        ({"eval__passes": 4}, "heads read an edit once"),
    ],
)
def test_a_config_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        config("lora", plain_base(), **changes)


def test_groups_learn_at_their_own_rate_and_must_be_there():
    from edit_rl_jax.training import optim

    c = config("full", plain_base(), optim__groups=(("visual.", 1e-6), ("visual.merger.", 0.0), ("rm_heads.", 1e-3)))
    made = optim.make(c.optim, 10)
    assert made.factor("visual.blocks.x") == 1e-6 / c.optim.lr and made.factor("visual.merger.x") == 0
    assert made.factor("language_model.x") == 1 and made.factor("rm_heads.x") == 1e-3 / c.optim.lr
    with pytest.raises(ConfigError, match="no trained weight begins with 'visual.'"):
        made.init({"rm_heads.x": jnp.zeros(2), "language_model.x": jnp.zeros(2)})
