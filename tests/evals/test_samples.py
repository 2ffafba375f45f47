"""The samples of a report: each error kind right and wrong, with the model's words beside the oracle's scores."""

import json

from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.editworld.dataset import Pair
from edit_rl_jax.evals.samples import report_samples
from edit_rl_jax.rewards.editscore.parsing import parse
from edit_rl_jax.rewards.editscore.reward import judge


def judgement(sc, pq):
    reply = lambda scores: (parse(json.dumps({"reasoning": f"saw {scores}", "score": scores})),)
    return judge(reply(sc), reply(pq) if pq else (parse("no idea"),))


def pair(kind, number):
    """A pair as the built-in world makes them, without its pictures."""
    make = lambda what, score, overall: EditRecord(
        key=f"{kind}/{number}/{what}",
        source=b"source",
        edited=f"{kind} {number} {what}".encode(),
        instruction="make it red",
        task="colour",
        sc=(score, score),
        pq=(score, score),
        meta={"kind": kind if what == "worse" else "correct", "overall": overall},
    )
    return Pair(make("better", 24, 24.5), make("worse", 8, 8.25), "colour", kind, 0)


GOOD, BAD = judgement([20, 21], [19, 22]), judgement([5, 6], [9, 8])


def test_one_right_and_one_wrong_pair_of_each_kind():
    pairs = [pair(kind, n) for n in range(5) for kind in ("noise", "half", "untouched")]
    judged = [(GOOD, BAD) if i % 4 else (BAD, GOOD) for i in range(len(pairs))]
    samples = report_samples(pairs, judged)
    shown = [(s.right, s.kind) for s in samples[1::2]]
    assert len(shown) == len(set(shown)) and set(shown) == {(bool(i % 4), p.kind) for i, p in enumerate(pairs)}
    for better, worse in zip(samples[::2], samples[1::2]):
        assert (better.scores["overall"] > worse.scores["overall"]) == better.right == worse.right
        assert better.truth == {"overall": 24.5, "sc": 24, "pq": 24} and worse.truth["overall"] == 8.25
        assert better.edited.endswith(b"better") and worse.edited.endswith(b"worse")
    assert samples[0].reasoning.splitlines() == ["SC: saw [5, 6]", "PQ: saw [9, 8]"]
    assert len(report_samples(pairs, judged, limit=3)) == 6


def test_an_unreadable_reply_is_shown_as_written():
    shown = report_samples([pair("noise", 0)], [(judgement([9, 9], None), judgement([1, 1], [1, 1]))])
    assert shown[0].scores["overall"] is None and shown[0].right is False
    assert "PQ: no idea" in shown[0].reasoning and "no score" in shown[0].reasoning
