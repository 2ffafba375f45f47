"""Rewards of a rollout: several by weight, failures as failures, images that stay on the device."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.editworld.edits import candidate
from edit_rl_jax.editworld.scene import rng
from edit_rl_jax.rewards.editscore.reward import Judgement
from edit_rl_jax.rl import prompts, rewards
from edit_rl_jax.training.config import ConfigError
from tests.rl import tiny_editor


class Half:
    """Half of the first sample's place; the third fails, the fourth is not a number."""

    def __init__(self, config, mesh):
        pass

    def __call__(self, samples):
        n = len(samples.prompts)
        values = np.full(n, 0.5, np.float32)
        values[3] = np.nan
        return rewards.Scores(values, np.arange(n) != 2)


def samples(count=4):
    c = tiny_editor.config("none", rl__size=(84, 84))
    source = prompts.source(c, "train")
    asked = [source[i] for i in range(count)]
    right = [candidate(rng("r", i), p.edit, "correct", 0.5, "train").render(84) for i, p in enumerate(asked)]
    return c, rewards.Samples(asked, np.stack(right))


def test_several_by_weight_and_valid_together():
    c, found = samples()
    c.rl.rewards = (("oracle", 0.8), ("tests.rl.test_rewards:Half", 0.4), ("saturation", 0.0))
    scores = rewards.make(c, None)(found)
    assert scores.valid.tolist() == [True, True, False, False]
    np.testing.assert_allclose(scores.values[:2], 0.8 * 1.0 + 0.4 * 0.5, atol=0.8 * 0.08)  # the right edit: 23 or more
    untouched = rewards.Samples(found.prompts, np.stack([p.source for p in found.prompts]))
    assert (rewards.make(c, None)(untouched).values[:2] < 0.65).all()
    c.rl.rewards = (("saturated", 1.0),)
    with pytest.raises(ConfigError, match="did you mean 'saturation'"):
        rewards.make(c, None)
    c.rl.rewards = (("editscore", 1.0),)
    with pytest.raises(ConfigError, match=r"rl\.judge\.model"):
        rewards.make(c, None)
    with pytest.raises(ConfigError, match="editworld"):
        plain = prompts.Prompt("k", found.prompts[0].source, "x")
        rewards.OracleReward(c, None)(rewards.Samples([plain], found.images[:1]))


def test_wrong_reward_likes_colour():
    c, found = samples(2)
    grey = np.repeat(found.images.mean(-1, keepdims=True), 3, -1).astype(np.uint8)
    score = lambda images: rewards.SaturationReward(c, None)(rewards.Samples(found.prompts, images)).values
    assert (score(grey) == 0).all() and (score(found.images) > 0.02).all()


def test_images_stay_on_the_device_with_their_levels():
    """The same 8-bit images; a judgement that is not valid is no reward."""
    _, found = samples(2)
    for edited, image in zip(rewards.Samples(found.prompts, jnp.asarray(found.images)).on_device(), found.images):
        assert isinstance(edited, jax.Array)
        np.testing.assert_array_equal(np.round(np.asarray(edited) * 255).astype(np.uint8), image)
    judged = [Judgement(sc=(20.0, 20.0), pq=(5.0, 5.0), overall=10.0), Judgement(problem="no answer")]
    scores = rewards.of_judgements(judged)
    assert scores.valid.tolist() == [True, False] and scores.values[0] == np.float32(0.4)
