"""What make_verifier_data.py says of costs: a dry run counts what the job would ask, and what was paid is not forgotten
when the config changes."""

import json
import re
import shutil
from collections import Counter

import pytest

from edit_rl_jax.data.tfds_builder import write_dataset
from tests.rewards.edit_rrm import model_server
from tests.rewards.edit_rrm.model_server import model, stage
from tests.rewards.edit_rrm.test_verifier_data import EDITS, config, figures, run
from tests.rewards.test_end_points import said

BY = {"filter": "hard", "principles": "principles", "gold verdicts": "gold"}  # of others the name says candidates


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder, {"train": EDITS[:4], "validation": EDITS[4:]})
    return folder


def changed(found, n, **settings):
    """A config with other settings of its candidates[n]."""
    rows = [row | settings if at == n else row for at, row in enumerate(found["candidates"])]
    return found | {"candidates": rows}


@pytest.fixture
def told(tmp_path, data, capsys):
    """Returns the requests that a dry run counts, by whose replies; checks that the job asks just these."""

    def both(server, found, *more):
        shutil.rmtree(tmp_path / "out/verifier_dataset", ignore_errors=True)
        capsys.readouterr()
        before = len(server.asked)
        assert run(tmp_path, data, found, "out", *more, "--dry-run") == (0, "") and len(server.asked) == before
        counts = {k: int(v) for k, v in re.findall(r"^  (.*): (\d+) requests", capsys.readouterr().out, re.M)}
        by_stage = Counter()
        for whose, count in counts.items():
            by_stage[BY.get(whose, "candidate")] += count
        run(tmp_path, data, found, "out", *more)
        assert +by_stage == Counter(map(stage, server.asked[before:]))
        return {k: v for k, v in counts.items() if v}

    return both


def test_a_dry_run_counts_what_the_journal_lacks(told):
    """After a part's settings changed, and for more edits than before."""
    with model() as server:
        found = config(server.url)
        part = {"principles": 2, "candidates cool": 8, "candidates strict": 4, "gold verdicts": 4}
        assert told(server, found, "--split", "train") == part
        rest = {"principles": 1, "candidates cool": 4, "candidates strict": 2, "gold verdicts": 2}
        assert told(server, found) == rest
        assert told(server, found) == {}
        assert told(server, changed(found, 0, temperature=0.6, seed=1)) == {"candidates cool": 12, "gold verdicts": 6}
        assert told(server, changed(found, 0, name="calm")) == {}  # the same replies by another name
        assert told(server, found | {"filter": {"endpoint": "a"}}) == {"filter": 3}


def test_a_dry_run_counts_what_is_asked_again(tmp_path, data, told):
    """Unread replies and what hangs on them are open with --again only; what the filter left out never is."""

    def trouble(asked, n):
        text, what = json.dumps(asked), stage(asked)
        if what == "hard" and "shade 0" in text:
            return 200, said('{"hard": "no"}'), {}
        if what == "principles" and "shade 1" in text or what == "candidate" and "Be strict." not in text:
            return 200, said("I cannot judge this."), {}
        return None

    with model(trouble) as server:
        found = config(server.url, filter={"endpoint": "a"})
        assert run(tmp_path, data, found) == (0, "")
        assert told(server, found) == {}
        server.answer = lambda asked: (200, model_server.answer(asked), {})
        # shade 1 lacks everything; of shade 2 the verifier gets more replies than before
        assert told(server, found, "--again") == {
            "principles": 1,
            "candidates cool": 8,
            "candidates strict": 2,
            "gold verdicts": 4,
        }


def entries(folder):
    return [json.loads(line) for line in (folder / "out/journal.jsonl").read_text().splitlines()]


def test_what_was_paid_stays_when_the_config_changes(tmp_path, data):
    """Each reply costs what its end point took then, whoever bears the name of its part now."""
    with model() as server:
        assert run(tmp_path, data, config(server.url)) == (0, "")
        before = figures(tmp_path / "out")
        assert before["cost"] == 0.0054 and all(e["price"] == [1.0, 10.0] for e in entries(tmp_path))
        # "cool" gets another name, "strict" is dropped and its name taken, the prices double
        found = config(server.url, end={"price_in": 2.0, "price_out": 20.0})
        found = changed(changed(found, 0, name="calm"), 1, seed=1)
        shutil.rmtree(tmp_path / "out/verifier_dataset")
        assert run(tmp_path, data, found) == (0, "")
        after = figures(tmp_path / "out")
    costs = {name: count["cost"] for name, count in after["requests"].items()}
    assert costs == {  # asked anew: six replies and the gold verdicts about them, 0.0004 each
        "principles": 0.0006,
        "candidates cool": 0.0024,
        "candidates strict": 0.0012 + 6 * 0.0004,
        "gold verdicts": 0.0012 + 6 * 0.0004,
    }
    assert after["cost"] == round(0.0054 + 12 * 0.0004, 6)


def test_replies_of_a_journal_without_prices_cost_what_they_would_today(tmp_path, data):
    with model() as server:
        assert run(tmp_path, data, config(server.url)) == (0, "")
        old = [{k: v for k, v in e.items() if k != "price"} for e in entries(tmp_path)]
        (tmp_path / "out/journal.jsonl").write_text("".join(json.dumps(e) + "\n" for e in old))
        shutil.rmtree(tmp_path / "out/verifier_dataset")
        assert run(tmp_path, data, config(server.url, end={"price_out": 20.0})) == (0, "")
    assert figures(tmp_path / "out")["cost"] == 0.0081  # 27 replies, 100 tokens read at 1, 10 written at 20 a million
