"""RL's programs on a real, tiny OmniGen2: the conditions of prompts, and the mesh against one device."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.editors.base import EditError
from edit_rl_jax.editors.omnigen2 import weights
from edit_rl_jax.flow.guidance import EmbeddedGuidance, Guidance, TrueGuidance
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import evaluation, program, prompts
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.rl import tiny_editor

pytestmark = pytest.mark.standard_promotion  # optax
GUIDED = {"text": 4.0, "image": 2.0, "start": 0.0, "stop": 0.5}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tiny_editor.save(tmp_path_factory.mktemp("editor"))


def built(folder, mesh, **changes):
    """(program, prompts, their host batch)."""
    c = tiny_editor.config(folder, **changes)
    tokenizer = load_tokenizer(folder / "processor")
    p = program.build_program(c, mesh, tiny_editor.configs(), tokenizer)
    source = prompts.source(c, "train")
    asked = [source[i] for i in range(c.rl.prompts)]
    return p, asked, p.batch(asked, range(len(asked)), c.rl.group)


def weights_of(p, folder):
    """(trainable, frozen) that a run of the program begins with."""
    with jax.set_mesh(p.mesh):
        return interfaces.model(p.config).initial_weights(p, folder)


def test_host_batch_and_its_branches(folder):
    p, asked, batch = built(folder, make_mesh({"fsdp": 1}), rl__guidance=GUIDED)
    lay, lengths = batch["arrays"], (batch["arrays"]["token_segments"] > 0).sum(-1)  # [P, (instruction, negative)]
    assert batch["prompt"].tolist() == [[0] * 4, [1] * 4] and batch["member"].tolist() == [[0, 1, 2, 3]] * 2
    np.testing.assert_array_equal(lay["text_segments"].sum(-1), lengths[:, [0, 1, 1]])
    np.testing.assert_array_equal((lay["reference_segments"] > 0).sum(-1), [[16, 16, 0]] * 2)  # 4 x 4 tokens
    texts = [p.tokenizer.decode(t[:n]) for t, n in zip(lay["tokens"][:, 0], lengths[:, 0])]
    assert all(a.instruction in t for a, t in zip(asked, texts)) and lengths[0, 1] == lengths[1, 1]
    assert "You are a helpful assistant.<|im_end|>" in p.tokenizer.decode(lay["tokens"][0, 1])
    long = prompts.Prompt("k", asked[0].source, "x" * 300)
    assert p.check(asked[0]) is None
    with pytest.raises(EditError, match=r"k .*rl\.text.*text too long .*tokens of text are more than 240"):
        p.check(long)
    with pytest.raises(ValueError, match="row 0"):
        p.batch([long] * 2, [0, 1], 4)


def test_settings_that_a_guidance_does_not_look_at_are_refused():
    plain = rl_config.default("qwen_image_edit").rl
    program.check_guidance(plain, TrueGuidance(4.0))
    program.check_guidance(plain, EmbeddedGuidance(2.5))
    plain.guidance.image, plain.guidance.stop, plain.negative_system = 2.0, 0.6, "Say no."
    program.check_guidance(plain, Guidance(4.0))
    with pytest.raises(ConfigError, match=r"keys rl.guidance.image, rl.negative_system: the editor has no use"):
        program.check_guidance(plain, TrueGuidance(4.0))
    with pytest.raises(ConfigError, match=r"keys rl.guidance.image, rl.guidance.stop, rl.negative_system:"):
        program.check_guidance(plain, EmbeddedGuidance(2.5))


def test_the_recipes_of_flow_grpo_are_theirs():
    """Flow-GRPO: all noisy steps but the last, standard deviation over all (the verifier's paper has the group's); no
    average of Qwen-Image-Edit's weights."""
    root = Path(__file__).resolve().parents[2] / "configs"
    for name, recipe, window, ema in (
        ("flux_kontext", "grpo", (5, (0, 5)), 0.9),
        ("flux_kontext", "nft", (0, (0, 0)), 0.9),
        ("qwen_image_edit", "grpo", (9, (0, 9)), 0.0),
        ("qwen_image_edit", "fast", (4, (0, 5)), 0.0),
        ("qwen_image_edit", "nft", (0, (0, 0)), 0.9),
        ("flux_kontext", "rrm", (5, (0, 5)), 0.9),
        ("qwen_image_edit", "rrm", (9, (0, 9)), 0.0),
    ):
        c = config_lib.load(f"{root}/grpo_{name}.py:{recipe}")
        rl_config.check(c)
        assert (c.rl.window, c.rl.window_range) == window and c.optim.ema == ema, (name, recipe)
        assert c.rl.advantage.std == ("group" if recipe == "rrm" else "global")
        if recipe == "rrm":  # Edit-R1's verifier (arXiv 2604.27505) tells these and no more
            assert c.rl.rewards == (("edit_rrm", 1.0),) and (c.rl.group, c.rl.loss.kl_weight) == (24, 0.04)
            assert c.rl.guidance.text == (2.5 if "flux" in name else 4.0)


def test_a_schedule_that_is_not_the_editors_is_told():
    """The defaults of `rl.schedule` are OmniGen2's: on another editor they are other times than `edit.py` takes."""
    for name, own in (
        ("flux_kontext", {}),
        ("qwen_image_edit", {"max_shift": 0.9, "max_tokens": 8192, "terminal": 0.02}),
    ):
        own, c = Schedule(6, "exponential", **own), rl_config.default(name)
        said = "rl.schedule.kind is dynamic, the editor's folder says exponential"
        assert program.other_times(c, own).split("; ")[0] == said
        c.rl.schedule.kind = "exponential"
        assert ("rl.schedule.terminal is 0.0" in program.other_times(c, own)) == bool(own.terminal)
    c = rl_config.default()
    c.rl.schedule.base_res = 168
    assert program.other_times(c, Schedule(6)) == ""


def test_evaluation_has_its_own_number_of_steps(folder):
    """A rollout in few steps, judged in more: the edits are those of a program that samples so."""
    mesh, images, given = make_mesh({"fsdp": 1}), [], None
    for steps in ({"rl__steps": 3, "rl__eval_sample_steps": 5}, {"rl__steps": 5}, {"rl__steps": 3}):
        p, asked, batch = built(folder, mesh, **steps)
        assert batch["times"].shape == (2, p.config.rl.steps + 1)
        given = given or weights_of(p, folder)
        made, finite = evaluation.edits(p, *given, asked)
        assert finite.all()
        images.append(made)
    np.testing.assert_array_equal(images[0], images[1])
    assert np.any(images[0] != images[2])


def test_an_edit_whose_pixels_are_no_numbers_has_no_reward(folder, monkeypatch):
    """Made by the decoder alone; rounded to 8 bits it would look like a picture."""
    kind = type(built(folder, make_mesh({"fsdp": 1}))[0].editor)
    decode = kind.decode
    broken = lambda self, *given: decode(self, *given).at[0, 0, 0, 0].set(jnp.nan)  # of the first row of each batch
    monkeypatch.setattr(kind, "decode", broken)
    p, asked, batch = built(folder, make_mesh({"fsdp": 1}))
    trainable, frozen = weights_of(p, folder)
    with jax.set_mesh(p.mesh):
        number = np.int32(0)
        images, finite = p.rollout(trainable, frozen, p.put(batch), number, number, number)[1].finished
    first, ones = np.arange(batch["prompt"].shape[1]) == 0, lambda samples: np.ones(len(samples.prompts), np.float32)
    assert (np.asarray(finite) == ~first).all() and not np.asarray(images)[:, 0].any()
    values, images = evaluation.evaluate(p, trainable, frozen, asked, lambda s: rewards.Scores(ones(s), ones(s) > 0))
    assert values["valid"] == [False] + [True] * (len(asked) - 1) and images[1:].any((1, 2, 3)).all()


@pytest.mark.slow
def test_sharded_equals_unsharded(folder):
    """Show j: weights and rows over 8 devices against one: images, gradient step and metrics."""

    def run(mesh, given=None):
        p, _, batch = built(folder, mesh, rl__guidance=GUIDED, rows=8, rl__updates=1, rl__group=4)
        trainable, frozen = weights_of(p, folder)
        with jax.set_mesh(mesh):
            state = p.init_state(trainable)
        rng = np.random.default_rng(0)
        # B is 0 in a fresh adapter. Random: one constant everywhere makes gradients of sums that nearly cancel.
        state["trainable"] = {
            k: v + 0.02 * rng.normal(size=v.shape).astype(np.float32) for k, v in state["trainable"].items()
        }
        number = np.int32(0)
        with jax.set_mesh(mesh):
            condition, drawn = p.rollout(state["trainable"], frozen, p.put(batch), number, number, number)
            found = jax.device_get((condition, drawn))
            # The same rollout for both: what differs after it is the update's.
            same = jax.tree.map(
                lambda here, other: jax.device_put(other, here.sharding), (condition, drawn), given or found
            )
            condition, drawn = same
            moved = state | {"trainable": {k: 1.01 * v for k, v in state["trainable"].items()}}
            moved["trainable"] = {
                k: jax.device_put(v, p.state["trainable"][k].sharding) for k, v in moved["trainable"].items()
            }
            scores = rng.normal(size=8).astype(np.float32), np.ones(8, bool), batch["prompt"].ravel()
            drawn = drawn._replace(finished=None)
            state, metrics = p.update(moved, frozen, condition, drawn, scores, number, number, number)
        return found[1].finished[0], found[1].final, jax.device_get(state), jax.device_get(metrics), found

    one = run(make_mesh({"fsdp": 1}))
    many = run(make_mesh({"fsdp": 4, "tensor": 2}), one[4])
    assert (np.abs(one[0].astype(int) - many[0]) <= 1).all()
    np.testing.assert_allclose(many[1], one[1], atol=1e-4)
    moments = {k: v for k, v in jax.tree_util.tree_leaves_with_path(one[2]["opt_state"])}
    for path, other in jax.tree_util.tree_leaves_with_path(many[2]["opt_state"]):
        a, b = np.asarray(moments[path]), np.asarray(other)[tuple(slice(n) for n in np.shape(moments[path]))]
        # Adam's second moments are squares: twice the gradient's relative error
        bound = 2e-5 if ".nu[" in jax.tree_util.keystr(path) else 1e-5
        assert np.abs(a - b).max() <= bound * max(np.abs(a).max(), 1e-30), jax.tree_util.keystr(path)
    np.testing.assert_allclose(many[3]["loss"], one[3]["loss"], rtol=1e-4)


def test_a_trained_lora_leaves_and_comes_back(folder, tmp_path):
    """Exported, it starts a next run with the same weights, and the editor that users load computes the same."""
    mesh = make_mesh({"fsdp": 1})
    p, _, batch = built(folder, mesh)
    trainable, frozen = weights_of(p, folder)
    rng = np.random.default_rng(0)
    trained = {k: v + 0.1 * rng.normal(size=v.shape).astype(np.float32) for k, v in trainable.items()}
    interfaces.model(p.config).export(p, trained, tmp_path, tokenizer=p.tokenizer, prompts=None, facts={})
    again, frozen_again = weights_of(built(folder, mesh, model__init_adapter=str(tmp_path))[0], folder)
    for name, value in trained.items():
        np.testing.assert_array_equal(again[name], value, err_msg=str(name))
    assert all(np.array_equal(frozen_again[k], v) for k, v in frozen.items())
    condition = program.encode(p.merge(trained, frozen), p.put(batch))["condition"]
    one = jax.tree.map(lambda a: a[:, 0], condition)
    latents, t = (
        jnp.asarray(rng.normal(size=(2, 16, p.editor.processor.channels)), jnp.float32),
        jnp.float32([0.2, 0.7]),
    )
    want = p.merge(trained, frozen).velocity(latents, t, one)
    got = weights.from_folder(folder, lora=tmp_path).velocity(latents, t, one)
    np.testing.assert_allclose(got, want, atol=1e-5)
    plain = weights.from_folder(folder).velocity(latents, t, one)
    assert np.abs(np.asarray(plain - want)).max() > 1e-2  # the adapter matters
    with pytest.raises(ConfigError, match="rank"):
        weights_of(built(folder, mesh, model__init_adapter=str(tmp_path), model__lora__rank=3)[0], folder)


@pytest.mark.parametrize("devices", [1, 4, 8])
def test_rows_that_do_not_divide_are_filled_up(devices):
    """Six rows over four devices are eight, two a device: none computes them all."""
    rows, seen = jnp.arange(6 * 5, dtype=jnp.float32).reshape(6, 5), []

    def encode(x):
        seen.append(x.shape)
        return 2 * x

    with jax.set_mesh(make_mesh({"fsdp": devices}, jax.devices()[:devices])):
        out = jax.jit(lambda x: program._over_mesh(encode, x))(rows)
    assert seen == [(-(-6 // devices) * devices, 5)]
    np.testing.assert_array_equal(out, 2 * rows)
