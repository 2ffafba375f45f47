"""Rewards of a rollout: several by weight, failures as failures, images that stay on the device."""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.editworld.edits import candidate
from edit_rl_jax.editworld.scene import rng
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rewards.base import Dimension, Judgement
from edit_rl_jax.rewards.editscore.aggregate import judge
from edit_rl_jax.rewards.editscore.parsing import Reply
from edit_rl_jax.rewards.serving.client import RewardClient
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import prompts
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
        assert edited.dtype == jnp.uint8  # fp32 would take four times the memory
        np.testing.assert_array_equal(edited, image)
    judged = [Judgement(overall=Dimension(10.0, scale=25.0)), Judgement(problem="no answer")]
    scores = rewards.of_judgements(judged)
    assert scores.valid.tolist() == [True, False] and scores.values[0] == np.float32(0.4)


def test_a_bonus_for_success():
    """Of EditScore's own figures: both SC at least 20 and both PQ at least 18."""
    cases = [((20.0, 25.0), (18.0, 25.0)), ((19.0, 25.0), (25.0, 25.0)), ((25.0, 25.0), (25.0, 17.0))]
    said = [judge([Reply(sc, "", "")], [Reply(pq, "", "")]) for sc, pq in cases]
    scores = rewards.of_judgements([*said, Judgement(problem="no answer")], bonus=4.0)
    wanted = [(j.overall.value / 25 + 4 * (n == 0)) / 5 for n, j in enumerate(said)]
    np.testing.assert_allclose(scores.values, [*wanted, 0], rtol=1e-6)
    with pytest.raises(ConfigError, match="what a success is"):
        rewards.of_judgements([Judgement(overall=Dimension(0.5))], bonus=4.0)
    assert scores.valid.tolist() == [True] * 3 + [False]
    c, found = samples(2)
    c.rl.rewards, c.rl.success_bonus = (("oracle", 1.0),), 4.0
    plain = rewards.of_judgements(rewards.judge_by_oracle(found))
    assert (rewards.make(c, None)(found).values - plain.values / 5 > 0.79).all()  # the targets succeed


def judgement(following, quality, spread=(0.1, 0.2)):
    """As EditReward's: two dimensions and their spreads; here the second is on a scale of 4."""
    figures = {
        "instruction_following": Dimension(following, spread[0]),
        "visual_quality": Dimension(quality, spread[1], 4.0),
    }
    return Judgement(figures, Dimension(following + quality, 1.0))


DIMENSIONS = (("instruction_following", 0.5), ("visual_quality", 0.25))


def test_dimensions_by_weight():
    """Each as a share of its scale; a judgement without one of them, or none at all, is not valid as a whole."""
    lacking = Judgement({"instruction_following": Dimension(9.0)}, Dimension(9.0))
    found = [judgement(0.2, 2.0), judgement(-3.0, 1.0), lacking, Judgement(problem="no answer")]
    scores = rewards.of_judgements(found, dimensions=DIMENSIONS)
    assert scores.valid.tolist() == [True, True, False, False]
    np.testing.assert_allclose(scores.values, [0.5 * 0.2 + 0.25 * 0.5, 0.5 * -3 + 0.25 * 0.25, 0, 0], rtol=1e-6)
    nan = np.nan
    np.testing.assert_allclose(scores.each, [[0.2, 0.5], [-3, 0.25], [9, nan], [nan, nan]], rtol=1e-6)
    np.testing.assert_allclose(scores.spread, [[0.1, 0.05], [0.1, 0.05], [nan, nan], [nan, nan]], rtol=1e-6)
    shown = rewards.of_judgements(found, dimensions=tuple((name, 0.0) for name, _ in DIMENSIONS))
    assert shown.valid.tolist() == [True, True, True, False]  # by the overall score, as without dimensions
    np.testing.assert_array_equal(shown.values, rewards.of_judgements(found).values)
    np.testing.assert_array_equal(shown.each, scores.each)


def test_a_spread_is_part_of_no_reward():
    """Not averaged in with the value, as upstream's users did with (mean, log of the spread)."""
    for dimensions in ((), DIMENSIONS):
        sure, unsure = ([judgement(0.2, 2.0, spread)] for spread in ((1e-3, 1e-3), (1e3, 1e3)))
        same = [rewards.of_judgements(found, dimensions=dimensions) for found in (sure, unsure)]
        assert same[0].values == same[1].values
        np.testing.assert_array_equal(same[0].each, same[1].each)


def test_dimensions_of_a_config():
    """A judge's dimensions stand for it, another reward for itself; those of weight 0 are only shown."""
    c, found = samples(2)
    c.rl.rewards = (("oracle", 0.5), ("saturation", 2.0))
    whole = rewards.make(c, None)
    plain, names = whole(found), [name for name, _ in whole.dimensions]
    assert names[0] == "oracle/overall" and names[-1] == "saturation/overall" and "oracle/over_editing" in names
    assert dict(whole.dimensions)["oracle/overall"] == 0.5 and dict(whole.dimensions)["oracle/over_editing"] == 0
    np.testing.assert_allclose(plain.each[:, [0, -1]] @ np.float32([0.5, 2.0]), plain.values, rtol=1e-6)
    c.rl.dimensions = (("over_editing", 0.75), ("artifacts", 0.25))
    whole = rewards.make(c, None)
    scores, weights = whole(found), dict(whole.dimensions)
    assert (
        "oracle/overall" not in weights
        and weights["oracle/over_editing"] == 0.375
        and weights["saturation/overall"] == 2
    )
    judged = rewards.judge_by_oracle(found)
    wanted = [0.375 * j.value("over_editing") / 25 + 0.125 * j.value("artifacts") / 25 for j in judged]
    np.testing.assert_allclose(scores.values, wanted + 2.0 * scores.each[:, -1], rtol=1e-5)
    assert np.isnan(scores.spread).all()
    c.rl.dimensions = (("visual_quality", 1.0),)
    with pytest.raises(ConfigError, match="'visual_quality': the reward 'oracle' has .*over_editing"):
        rewards.make(c, None)


def test_a_server_is_asked_for_its_dimensions_only_where_they_are_named(monkeypatch):
    c, _ = samples(1)
    c.rl.rewards, c.rl.judge.server = (("server", 1.0),), "http://127.0.0.1:9"
    assert rewards.make(c, None).dimensions == (("overall", 1.0),)
    c.rl.dimensions = (("consistency", 1.0),)
    monkeypatch.setattr(rewards, "RewardClient", partial(RewardClient, tries=1))
    with pytest.raises(ConfigError, match=r"rl\.dimensions.*server"):
        rewards.make(c, None)


def test_a_reward_model_lies_on_the_devices_of_its_process(monkeypatch):
    """Two hosts of four: each has its copies, of two devices."""
    device = lambda n: SimpleNamespace(id=n, process_index=n // 4, platform="cpu")
    devices = [device(n) for n in range(8)]
    monkeypatch.setattr(rewards, "make_mesh", lambda shape, devices: (shape, [d.id for d in devices]))
    whole = SimpleNamespace(devices=np.array(devices).reshape(2, 4))
    for process in range(2):
        monkeypatch.setattr(jax, "process_index", lambda process=process: process)
        ids = list(range(4 * process, 4 * process + 4))
        assert rewards.judge_mesh(whole, 2) == ({"data": 2, "tensor": 2}, ids)
        assert rewards.judge_mesh(SimpleNamespace(devices=whole.devices[process, :1]), 1) is None
        with pytest.raises(ConfigError, match=r"rl\.judge\.tensor.* is 8, a process has 4"):
            rewards.judge_mesh(whole, 8)


def test_processes_score_their_share_and_all_know_all(monkeypatch):
    """Shares of neighbours; the last process may have none. What has pixels that are no numbers is valid nowhere."""
    count, processes, seen, sent = 5, 4, [], []
    images = np.repeat(np.arange(count, dtype=np.uint8), 3).reshape(-1, 1, 1, 3)
    asked = [prompts.Prompt(key, image, "") for key, image in zip("abcde", images)]

    def reward(found):
        seen.append("".join(p.key for p in found.prompts))
        return rewards.Scores(found.images[:, 0, 0, 0] * np.float32(2), found.images[:, 0, 0, 0] != 3)

    monkeypatch.setattr(jax, "process_count", lambda: processes)
    gathers = {"first": lambda a: sent.append(a) or np.stack([a] * processes)}
    gathers["then"] = lambda a: np.stack(sent)
    out = []
    for kind in ("first", "then"):
        for process in range(processes):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            monkeypatch.setattr(rewards.multihost_utils, "process_allgather", gathers[kind])
            out.append(rewards.score(reward, asked, images, np.arange(count) != 1))
    assert seen == ["ab", "cd", "e"] * 2
    for scores in out[processes:]:
        assert scores.values.tolist() == [0, 2, 4, 6, 8] and scores.valid.tolist() == [True, False, True, False, True]


def test_dimensions_are_gathered_too(monkeypatch):
    """Also to and from a process without a share."""
    images = np.arange(2, dtype=np.uint8)[:, None, None, None].repeat(3, -1)
    asked = [prompts.Prompt(key, image, "") for key, image in zip("ab", images)]

    class Two:
        dimensions = (("a", 1.0), ("b", 0.0))

        def __call__(self, found):
            values = found.images[:, 0, 0, 0].astype(np.float32)
            return rewards.Scores(
                values, values >= 0, np.stack([values, values + 10], 1), np.full((len(values), 2), 0.5)
            )

    sent = []
    monkeypatch.setattr(jax, "process_count", lambda: 3)
    for gathers in (lambda a: sent.append(a) or np.stack([a] * 3), lambda a: np.stack(sent)):
        monkeypatch.setattr(rewards.multihost_utils, "process_allgather", gathers)
        for process in range(3):
            monkeypatch.setattr(jax, "process_index", lambda process=process: process)
            scores = rewards.score(Two(), asked, images, np.ones(2, bool))
    assert scores.values.tolist() == [0, 1] and scores.valid.all()
    assert scores.each.tolist() == [[0, 10], [1, 11]] and scores.spread.tolist() == [[0.5, 0.5]] * 2
