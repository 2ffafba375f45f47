"""Parts of the loop: what counts as a step without an update, evaluations on disk, configs that cannot work."""

from functools import partial

import jax
import numpy as np
import pytest
from etils import epath

from edit_rl_jax.names import ConfigError
from edit_rl_jax.rewards.base import Dimension, Judgement
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.advantages import AdvantageConfig, advantages
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import evaluation, figures
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.training.session import Guard, NonFiniteError
from tests.rl import tiny_editor

jitted = jax.jit(partial(advantages, config=AdvantageConfig()))


def rollout(valid, values):
    """Outputs of two updates of a rollout of two groups of two."""
    found = jitted(np.float32(values), np.array(valid), np.int32([0, 0, 1, 1]))
    one = {"finite": True, "row_losses": np.zeros((1, 1, 2)), "rewards": found.metrics, "weights": {}}
    return [one | {"weight": np.asarray(k).sum()} for k in found.keep.reshape(2, 1, 2)]


def test_a_rollout_of_which_nothing_trains_is_a_bad_step():
    """A server that is away must not look like training; one group of equal rewards is nothing special."""
    guard, names = Guard(3), [[("a",), ("b",)], [("c",), ("d",)]]
    check = lambda *given: list(figures.check(guard, 7, rollout(*given), names))
    assert check([True] * 4, [1, 1, 0, 1]) == [] and guard.total == 0
    (line,) = check([False] * 4, [0, 0, 0, 0])
    assert "step 7: nothing trains: 4 of 4 samples without a valid reward" in line and guard.in_row == 1
    (line,) = check([True] * 4, [1, 1, 2, 2])
    assert "2 of 2 groups of equal rewards" in line and guard.in_row == 2
    assert "nearly" not in line
    few = [u | {"rewards": u["rewards"] | {"groups_narrow": 1.0}} for u in rollout([True] * 4, [1, 1, 2, 2])]
    assert "of equal rewards, 1 of nearly equal ones" in next(figures.check(Guard(3), 7, few, names))
    assert figures.summary(few)["narrow_share"] == 0.5
    assert check([True] * 4, [1, 2, 1, 2]) == [] and (guard.in_row, guard.total) == (0, 2)
    with pytest.raises(NonFiniteError, match="3 such steps"):
        for _ in range(3):
            check([False] * 4, [0, 0, 0, 0])


def test_means_are_over_what_there_was():
    """Of two updates of which one trained three times as many rows; then one of which none trained."""
    given = jitted(np.float32([1, 2, 1, 2]), np.array([True] * 4), np.int32([0, 0, 1, 1])).metrics
    one = lambda n, side, **values: {
        "finite": True, "row_losses": np.zeros(1), "rewards": given, "weight": n, "lr": 0.1, "ratio_max": n / 10,
        "weights": {"loss": n, "kl": n, "ratio_positive": side}, **values,
    }  # fmt: skip
    both = [one(6.0, 2.0, loss=1.0, kl=0.2, ratio_positive=1.2), one(2.0, 0.0, loss=5.0, kl=0.6, ratio_positive=0.0)]
    found = figures.summary(both)
    assert found["loss"] == pytest.approx(2.0) and found["kl"] == pytest.approx(0.3)
    assert found["ratio_positive"] == pytest.approx(1.2) and found["weight"] == 8 and found["ratio_max"] == 0.6
    assert found["lr"] == pytest.approx(0.1)
    empty = figures.summary([one(0.0, 0.0, loss=0.0, kl=0.0, ratio_positive=0.0)])
    assert not {"loss", "kl", "ratio_positive"} & empty.keys() and empty["weight"] == 0


def test_figures_of_dimensions():
    """Means over valid samples, standard deviations within groups, and the mean spread where there is one."""
    nan = np.nan
    each = np.float32([[1, 5, nan], [3, 5, nan], [4, 1, nan], [8, 3, nan], [99, 99, nan]])
    spread = np.float32([[nan, 0.1], [nan, 0.3], [nan, nan], [nan, 0.2], [nan, 9]])
    spread = np.concatenate([spread, spread[:, :1]], 1)
    scores = rewards.Scores(each[:, 0], np.array([True] * 4 + [False]), each, spread)
    found = figures.of_dimensions(("a", "b", "c"), scores, np.int32([0, 0, 4, 4, 4]))
    wanted = {"reward_mean/a": 4, "reward_group_std/a": 1.5, "reward_mean/b": 3.5, "reward_group_std/b": 0.5}
    assert found == pytest.approx(wanted | {"reward_spread/b": 0.2})
    assert (
        figures.of_dimensions(("a",), scores._replace(each=each[:, :1], spread=spread[:, :1]), np.int32([0] * 5)) == {}
    )


def test_evaluations_on_disk(tmp_path):
    """With or without pictures the report is written; another machine fetches what the first one left."""
    prompts = [Prompt(f"k{i}", np.full((16, 16, 3), 9 * i, np.uint8), "edit") for i in range(3)]
    images = np.stack([p.source for p in prompts])
    found = {"task": ["", "", ""], "reward": [0.1, 0.2, 0.3], "valid": [True] * 3}
    for shown in (0, 2):
        folder = tmp_path / str(shown)
        for step in (0, 5):
            evaluation.store(folder, step, found, prompts, images, shown)
        evaluation.report(folder, prompts, [])
        assert ("before and after" in (folder / "report.html").read_text()) == bool(shown)
    np.testing.assert_array_equal(evaluation.shown(tmp_path / "2", 5, (16, 16)), images[:2])
    evaluation.fetch(tmp_path / "new", epath.Path(tmp_path / "2"))
    assert evaluation.read(tmp_path / "new") == {0: found, 5: found}
    names = lambda folder: {p.name: p.read_bytes() for p in (folder / "evaluations").iterdir()}
    assert names(tmp_path / "new") == names(tmp_path / "2") and len(names(tmp_path / "new")) == 4
    assert list(evaluation.read(tmp_path / "new", 4)) == [0]
    evaluation.fetch(tmp_path / "none", None)
    evaluation.fetch(tmp_path / "none", epath.Path(tmp_path / "nothing"))
    assert not (tmp_path / "none").exists()


def test_the_oracle_on_the_scale_of_the_reward():
    """The curves' means: what `of_judgements` gives each sample, on average."""
    judged = [Judgement(overall=Dimension(10.0, scale=25.0), success=good) for good in (True, False, True)]
    point = {"oracle_overall": 10 / 25, "oracle_success": 2 / 3}
    for bonus in (0.0, 4.0):
        wanted = rewards.of_judgements(judged, bonus).values.mean()
        np.testing.assert_allclose(evaluation.with_oracle_reward(point, bonus)["oracle_reward"], wanted, rtol=1e-6)
    assert evaluation.with_oracle_reward({"reward": 1.0}, 4.0) == {"reward": 1.0}


@pytest.mark.parametrize(
    "key, changes",
    [
        ("rows", {"rows": 3}),
        ("rl.updates", {"rl__updates": 3}),
        ("rl.group", {"rl__group": 1, "rows": 2, "rl__updates": 1}),
        ("rl.success_bonus", {"rl__success_bonus": -1.0}),
        ("rl.success_bonus", {"rl__success_bonus": 1.0, "rl__dimensions": (("a", 1.0),)}),
        ("rl.dimensions", {"rl__dimensions": ("a", 1.0)}),
        ("rl.dimensions", {"rl__dimensions": (("a", 0.0),)}),
        ("rl.dimensions", {"rl__dimensions": (("a", 0.5), ("a", 0.5))}),
        ("rl.eval_sample_steps", {"rl__eval_sample_steps": -1}),
        ("rl.overlap", {"rl__algorithm": "nft", "rl__overlap": True}),
        ("rl.algorithm", {"rl__algorithm": "ppo"}),
        ("model.trainable", {"model__trainable": "full"}),
        ("model.init_from", {"model__init_from": ""}),
        ("steps", {"steps": 0}),
    ],
)
def test_configs_that_cannot_work(key, changes):
    rl_config.check(tiny_editor.config("none"))
    with pytest.raises(ConfigError, match=f"'{key}'"):
        rl_config.check(tiny_editor.config("none", **changes))


def test_a_config_of_a_judge_that_does_not_write():
    """EditReward's own options stand in `rl.judge`, none of a judge that writes."""
    c = rl_config.default(judge="editreward")
    c.update(steps=1, rows=4)
    c.model.init_from = "a folder"
    c.rl.dimensions = (("instruction_following", 0.5), ("visual_quality", 0.5))
    rl_config.check(c)
    assert c.rl.rewards == (("editreward", 1.0),) and "fusion" in c.rl.judge and "passes" not in c.rl.judge
    c.rl.judge.rows = 0
    with pytest.raises(ConfigError, match=r"'rl\.judge\.rows'"):
        rl_config.check(c)
