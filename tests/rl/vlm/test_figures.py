"""What a verifier's RL reads of its records, and what its figures say."""

import contextlib
import dataclasses
import types

import numpy as np
import pytest

from edit_rl_jax.data.records import PreferenceRecord, Principle, RecordError
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rewards.edit_rrm.replies import Reply
from edit_rl_jax.rl.vlm import config as config_lib
from edit_rl_jax.rl.vlm import evaluation, figures, pairs
from edit_rl_jax.rl.vlm.rollout import Rollout, advantages_of
from edit_rl_jax.training.session import Guard, NonFiniteError

MEANT = [{"question": "is it red", "category": "Follow"}]


def record(prefers=1, **meta):
    return PreferenceRecord("k", b"s", (b"a", b"b"), "x", prefers, {}, group="g", meta={"principles": MEANT, **meta})


def test_a_pair_of_a_record():
    found = pairs.pair(record(verdicts=[[True], [0.0]]), {})
    assert found.verdicts == ((1,), (0,)) and found.group == "g" and found.images == (b"a", b"b")
    assert pairs.from_json(pairs.to_json(found)) == found
    assert pairs.pair(record(-1, verdicts=[[1], [0]]), {}).verdicts == ((0,), (1,))
    for tie in (record(0), record(1, tie="good"), record(-1, tie="good")):  # disentangled, it prefers both ways
        assert pairs.pair(tie, {}) is None
    for wrong in ([[0.9], [1]], [[1], [7]]):
        with pytest.raises(RecordError, match="a verdict is no 0 or 1"):
            pairs.pair(record(verdicts=wrong), {})
    for wrong in (5, [None, [1]]):
        with pytest.raises(RecordError, match="malformed verdicts"):
            pairs.pair(record(verdicts=wrong), {})


def rollout(scores, valid, gold=(9.0, 2.0)):
    """Of pairs that have labels, and one that has none."""
    shape = np.shape(scores)
    pair = pairs.Pair("k", b"", (b"", b""), "", (Principle("is it red", "Follow"),), gold, None)
    asked = [pair] * (shape[0] - 1) + [dataclasses.replace(pair, gold=None)]
    reply = lambda s, v: Reply(float(s) if v else None, (1,), 1.0 if v else None, "", "", "" if v else "unread")
    read = [[[reply(*x) for x in zip(*one)] for one in zip(*two)] for two in zip(scores, valid)]
    answers = [[[types.SimpleNamespace(tokens=[0] * (4 + side))] * shape[2] for side in range(2)]] * shape[0]
    return Rollout(asked, answers, read, np.float32(scores), np.array(valid))


def test_what_was_in_no_comparison_lost_none():
    """Of two pairs all that could be compared was right; of the second nothing was read about the worse image."""
    yes, no = [True] * 3, [False] * 3
    _, found = advantages_of(config_lib.default(), rollout([[[9] * 3, [1] * 3]] * 2, [[yes, yes], [yes, no]]))
    assert found["win_share"] == 1 and found["length_wrong"] == 0


def test_a_reply_that_cannot_be_read_loses_by_pointwise_labels_too():
    c = config_lib.default()
    c.rl.algorithm = "grpo_pointwise"
    given = rollout([[[9, 8, 0], [2, 2, 2]]] * 2, [[[True, True, False], [True] * 3]] * 2)
    masked, found = advantages_of(c, given)
    assert masked[0, 0, 0] > 0 == masked[0, 0, 2] and not masked[1].any() and found["without_label"] == 2
    c.rl.invalid = "lose"
    lost, found = advantages_of(c, given)
    assert lost[0, 0, 2] < 0 < lost[0, 0, 1] and found["without_label"] == 2 and not lost[1].any()
    nothing = rollout([[[0] * 3] * 2] * 2, [[[False] * 3] * 2] * 2)  # unread is not unlabelled
    c.rl.invalid = "mask"
    assert advantages_of(c, nothing)[1]["without_label"] == 2


def test_means_are_over_what_there_was():
    """Two updates, 30 tokens and 10; then one of nothing. The engine knows the weights of the first only."""
    one = lambda entropy, difference, n: {
        "entropy": entropy, "engine_difference": difference, "log_ratio_abs_max": 0.5 if n else -np.inf, "loss": 1.0,
        "finite": True, "row_losses": np.zeros((1, 1)), "weights": {"entropy": n, "engine_difference": n},
    }  # fmt: skip
    batch = types.SimpleNamespace(count=0, names=(), left_out=0, images=0, real_token_share=0.0)
    found = figures.summary([one(2.0, 1e-5, 30.0), one(6.0, 3.0, 10.0)], [batch])
    assert found["entropy"] == pytest.approx(3.0) and found["engine_difference"] == 1e-5 and found["loss"] == 1
    assert figures.summary([one(2.0, 1e-5, 30.0), one(0.0, 0.0, 0.0)], [batch])["entropy"] == 2.0
    empty = figures.summary([one(0.0, 0.0, 0.0)], [batch])
    assert not {"entropy", "engine_difference", "log_ratio_abs_max"} & empty.keys() and empty["log_ratio_first"] == 0


def test_a_rollout_of_which_nothing_trains_is_told():
    """Without a reply that can be read, or without labels, it never will, and the run ends; where all are right it may
    be done."""
    guard, c = Guard(3), config_lib.default()
    none = types.SimpleNamespace(count=0, names=[], left_out=0)
    out = {"finite": True, "row_losses": np.zeros((1, 1))}
    right, wrong = [True] * 3, [False] * 3
    told = lambda given: list(figures.check(guard, 7, [out], [none], advantages_of(c, given)[1]))
    (line,) = told(rollout([[[9] * 3, [1] * 3]] * 2, [[right, right]] * 2))
    assert line.startswith("step 7: nothing trains: 0 of 12 replies cannot be read, 0 of 4 images") and not guard.total
    assert told(rollout([[[0] * 3] * 2] * 2, [[wrong, wrong]] * 2)) and guard.in_row == 1
    c.rl.algorithm = "grpo_pointwise"
    (line,) = told(rollout([[[9, 8, 7], [1, 2, 3]]], [[right, right]], gold=None))
    assert "2 of 2 images have no label" in line and guard.in_row == 2
    with pytest.raises(NonFiniteError, match="3 such steps"):
        told(rollout([[[0] * 3] * 2] * 2, [[wrong, wrong]] * 2))


def test_configs_that_never_train_are_refused():
    c = config_lib.default()
    c.model.init_from, c.steps, c.data.buckets = "x", 1, ((1100, 1, 96, 512),)
    config_lib.check(c)
    for key, value, said in (("group", 1, "rl.group"), ("mode", "think", "rl.algorithm.* is verdicts")):
        wrong = c.copy_and_resolve_references()
        wrong.rl.algorithm = "verdicts"
        wrong.rl[key] = value
        with pytest.raises(ConfigError, match=said):
            config_lib.check(wrong)


@pytest.mark.parametrize(
    ("algorithm", "key", "value", "said"),
    [
        ("gcpo", "std", "global", "'rl.advantage.std' has no say in gcpo"),
        ("gcpo", "clip", 1.0, "'rl.advantage.clip' has no say in gcpo"),
        ("verdicts", "decoupled", True, "a reply has one reward"),
        ("grpo_pointwise", "std", "global", ""),
    ],
)
def test_settings_that_do_nothing_are_refused(algorithm, key, value, said):
    c = config_lib.default()
    c.model.init_from, c.steps, c.data.buckets = "x", 1, ((1100, 1, 96, 512),)
    c.rl.algorithm, c.rl.advantage[key] = algorithm, value
    with pytest.raises(ConfigError, match=said) if said else contextlib.nullcontext():
        config_lib.check(c)


def test_gains_are_of_sources():
    """Pairs of one (source, instruction) are drawn together: eight of each do not make the interval narrower."""
    rng = np.random.default_rng(0)
    before, gain = np.zeros(40), rng.integers(0, 2, 40).astype(float)
    told = lambda right, each: {
        "key": [str(i) for i in range(40 * each)], "group": [str(i // each) for i in range(40 * each)],
        "right": np.repeat(right, each).tolist(), "verdicts": [None] * 40 * each, "unread": 0, "replies": [],
    }  # fmt: skip
    once, often = (evaluation.compare(told(before, n), told(gain, n))["pair_accuracy_gain_ci95"] for n in (1, 8))
    assert np.allclose(once, often, atol=0.03) and once[1] - once[0] > 0.25
