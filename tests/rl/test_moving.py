"""What moves beside the policy: the weights that sample and the KL's reference; and evaluations of another size."""

import dataclasses
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.data.images import resize
from edit_rl_jax.editors.sampling import LANCZOS
from edit_rl_jax.flow.guidance import EmbeddedGuidance
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import evaluation, figures, program, prompts
from edit_rl_jax.rl.editors.update import make_update
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import config as config_lib
from tests.rl import test_update as one_update
from tests.rl import tiny_editor, toy
from tests.rl.test_program import built, folder, weights_of

__all__ = ["folder"]
ROOT = Path(__file__).parents[2]
pytestmark = pytest.mark.standard_promotion  # optax
NFT = dict(rl__algorithm="nft", rl__window=0, rl__loss__train_steps=1)
MOVING = NFT | dict(rl__old=0.4, rl__old_rise=0.3, rl__reference_every=2, rl__reference_stays=0.25)


def share(done: int, **changes) -> float:
    r = rl_config.default().rl
    with r.unlocked():
        r.update(changes)
    return float(program.old_share(r, jnp.int32(done)))


def test_schedule_of_the_sampling_weights():
    """DiffusionNFT's two: min(0.001 n, 0.5), and nothing for 75 rollouts, then min(0.0075 (n - 75), 0.999)."""
    first = [share(n, old=0.5, old_rise=0.001) for n in (1, 10, 499, 500, 501, 10_000)]
    np.testing.assert_allclose(first, [0.001, 0.01, 0.499, 0.5, 0.5, 0.5], rtol=1e-6)
    second = [share(n, old=0.999, old_rise=0.0075, old_from=75) for n in (1, 75, 76, 95, 300)]
    np.testing.assert_allclose(second, [0, 0, 0.0075, 0.15, 0.999], rtol=1e-6)
    assert share(1, old=0.5) == share(10**6, old=0.5) == 0.5


def test_a_moving_reference_is_what_the_policy_is_held_to():
    """At the policy itself the KL is exactly 0; at a fresh adapter's weights it is that of the bare network."""
    trainable, frozen, prompts_, advantage, keep = one_update.setting()
    rollout = one_update.jitted_rollout(toy.velocity, one_update.GUIDED)
    drawn = rollout(trainable, frozen, prompts_, *one_update.on_device(0, 1, 3))
    args = frozen, prompts_, drawn, advantage, keep, *one_update.on_device(0, 0, 0)
    make = lambda **how: make_update(one_update.ALGORITHM, toy.velocity, one_update.GRADIENT, microbatches=2, **how)
    fixed, moving = jax.jit(make(reference=toy.reference)), jax.jit(make(moving=True))
    state = one_update.GRADIENT.init(trainable)
    away, metrics = fixed(state, *args)
    bare = state | {"reference": trainable | {"lora_b": jnp.zeros_like(trainable["lora_b"])}}
    same, found = moving(bare, *args)
    assert metrics["kl"] > 1e-3
    np.testing.assert_allclose(found["kl"], metrics["kl"], rtol=1e-6)
    for name, value in away["opt_state"].items():
        np.testing.assert_allclose(same["opt_state"][name], value, rtol=1e-4, atol=1e-7)
    kept, found = moving(state | {"reference": trainable}, *args)
    assert found["kl"] == 0
    np.testing.assert_array_equal(kept["reference"]["lora_a"], trainable["lora_a"])  # who moves it is the program
    with pytest.raises(ValueError, match="reference"):
        make()


def test_copies_move_at_the_end_of_a_rollout(folder):
    """Three rollouts of two updates, in NumPy: shares 0.3, 0.4, 0.4 for what samples; the reference at the second."""
    p, _, batch = built(folder, make_mesh({"fsdp": 1}), **MOVING)
    trainable, frozen = weights_of(p, folder)
    rng, number = np.random.default_rng(0), np.int32(0)
    seen = []
    with jax.set_mesh(p.mesh):
        state = p.init_state(trainable)
        condition, drawn = p.rollout(trainable, frozen, p.put(batch), number, number, number)
        drawn = drawn._replace(finished=None)
        scores = rng.normal(size=8).astype(np.float32), np.ones(8, bool), batch["prompt"].ravel()
        for rollout in range(3):
            for chunk in range(2):
                at = np.int32(2 * rollout + chunk)
                state, metrics = p.update(state, frozen, condition, drawn, scores, np.int32(chunk), number, at)
                seen.append(jax.device_get((state, metrics)))
    name = max(trainable, key=lambda k: np.abs(seen[-1][0]["trainable"][k] - trainable[k]).max())
    old = reference = np.asarray(trainable[name])
    assert np.abs(seen[-1][0]["trainable"][name] - old).max() > 1e-3
    for i, (state, metrics) in enumerate(seen):
        rollout, chunk = divmod(i, 2)
        weights = state["trainable"][name]
        stays = (0.3, 0.4, 0.4)[rollout]
        if chunk:
            old = stays * old + (1 - stays) * weights
            reference = 0.25 * reference + 0.75 * weights if rollout == 1 else reference
        np.testing.assert_allclose(state["old"][name], old, atol=1e-6)
        np.testing.assert_allclose(state["reference"][name], reference, atol=1e-6)
        np.testing.assert_allclose(metrics["old_share"], stays, rtol=1e-6)
        assert metrics["reference_moves"] == (rollout == 1)
    row = figures.summary([m for _, m in seen[2:4]])
    assert row["reference_moves"] == 1 and row["old_share"] == np.float32(0.4) and row["kl"] > 0


def test_held_out_prompts_are_read_at_their_own_size(folder):
    p, asked, batch = built(folder, make_mesh({"fsdp": 1}), rl__size=(16, 16), rl__eval_size=(32, 32))
    held_out = prompts.source(p.config, "test")[0]
    assert asked[0].source.shape == (16, 16, 3) and held_out.source.shape == (32, 32, 3)
    large = p.batch([held_out], [0], 4, size=(32, 32))
    tokens = lambda b: (b["arrays"]["reference_segments"] > 0).sum(-1).max()
    assert tokens(large) == 4 * tokens(batch) and large["sources"].shape == (1, 32, 32, 3)
    with pytest.raises(ConfigError, match=r"source is \(16, 16\), not \(32, 32\)"):
        p.batch(asked, [0, 1], 4, size=(32, 32))
    with pytest.raises(ConfigError, match=r"'rl.eval_size': sides are multiples of 8, got 36 x 32"):
        built(folder, make_mesh({"fsdp": 1}), rl__eval_size=(36, 32))
    p, asked, batch = built(folder, make_mesh({"fsdp": 1}), rl__size=(32, 32), rl__reference_pixels=300)
    assert batch["sources"].shape[1:] == (16, 16, 3) and tokens(batch) == 4
    np.testing.assert_array_equal(batch["sources"][0], resize(asked[0].source, 16, 16, LANCZOS))


@pytest.mark.slow
def test_a_rollout_may_be_smaller_than_its_evaluation(folder):
    """The edits are those of a program whose rollouts have that size, of prompts read at it."""
    mesh, images, given = make_mesh({"fsdp": 1}), [], None
    for changes in ({"rl__size": (16, 16), "rl__eval_size": (32, 32)}, {"rl__size": (32, 32)}):
        p, asked, batch = built(folder, mesh, **changes)
        assert batch["sources"].shape[1:3] == p.config.rl.size == asked[0].source.shape[:2]
        test = prompts.source(p.config, "test")
        held_out = [test[i] for i in range(2)]
        assert held_out[0].source.shape == (32, 32, 3)
        given = given or weights_of(p, folder)
        images.append(evaluation.edits(p, *given, held_out)[0])
    assert images[0].shape == (2, 32, 32, 3)
    np.testing.assert_array_equal(*images)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"rl__old": 0.5}, "'rl.old' belongs to nft"),
        (NFT | {"rl__old_rise": 0.1}, "'rl.old_rise' rises to rl.old"),
        (NFT | {"rl__old": 0.5, "rl__old_from": 3}, "'rl.old_from' is when"),
        ({"rl__loss__kl_weight": 0.0, "rl__reference_every": 1}, "'rl.reference_every' moves the reference of a KL"),
        ({"rl__reference_stays": 0.9}, "'rl.reference_stays' belongs"),
        ({"model__trainable": "full"}, "'model.trainable' is full: a KL"),
        ({"rl__loss__train_steps": 2, "rl__loss__noisiest": 0.5}, "'rl.loss.train_steps' is 2, of the noisiest 1 of 2"),
        (NFT | {"rl__loss__train_steps": 3, "rl__loss__noisiest": 0.5}, "3, of the noisiest 2 of 3 rl.steps"),
        ({"rl__advantage__std": "none", "rl__advantage__eps": 0.1}, "'rl.advantage.eps' is added"),
        ({"rl__eval_size": (0, 32)}, "'rl.eval_size' is .0, 32.: two sides"),
        ({"rl__eval_size": (32, -1)}, "'rl.eval_size'"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(changes, line):
    with pytest.raises(ConfigError, match=line):
        rl_config.check(tiny_editor.config("somewhere", **changes))


def test_the_recipes_of_kontext():
    """Edit-R1's figures, and Flow-GRPO's as they were."""
    load = lambda recipe: config_lib.load(ROOT / f"configs/grpo_flux_kontext.py{recipe}", {})
    grpo, nft = load(""), load(":nft")
    for config in (grpo, nft):
        rl_config.check(config)
    assert grpo.name == "grpo_flux_kontext" and (grpo.rl.old, grpo.rl.old_rise, grpo.rl.window) == (0, 0, 5)
    r = nft.rl
    np.testing.assert_allclose([share(n, old=r.old, old_rise=r.old_rise) for n in (100, 900)], [0.1, 0.5], rtol=1e-6)
    method = program.algorithm(nft, EmbeddedGuidance(2.5))
    assert (method.sampler.steps, method.sampler.solver, method.beta, method.advantage_max) == (6, "dpm2", 1.0, 5.0)
    assert len(method.trained(jax.random.key(0))) == 5 and method.needs_reference and r.prompts * r.group == 288


def test_keys_that_fit_are_taken():
    full = {"model__trainable": "full", "rl__reference_every": 10}
    for changes in (MOVING, full, {"rl__advantage__std": "none", "rl__advantage__min_range": 0.1}):
        rl_config.check(tiny_editor.config("somewhere", **changes))
    r = tiny_editor.config("somewhere").rl
    assert rl_config.evaluation_size(r) == (32, 32) and dataclasses.asdict(rl_config.RL())["old_rise"] == 0
