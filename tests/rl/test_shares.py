"""What shares of a run read for RL: together what one reads, each its part; what one cannot read all know of."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from ml_collections import ConfigDict

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.rl.editors import prompts
from edit_rl_jax.rl.shares import Sharing
from edit_rl_jax.rl.vlm.pairs import Reader
from tests.rl.vlm.micro import Pairs


def shares(count: int, work):
    """[work(sharing)] of each share, all running at once in threads."""
    barrier, told = threading.Barrier(count), [b""] * count

    def sharing(index: int) -> Sharing:
        def swap(mine: bytes) -> list[bytes]:
            told[index] = mine
            barrier.wait(20)
            every = list(told)
            barrier.wait(20)
            return every

        return Sharing(index, count, swap)

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(lambda i: work(sharing(i)), range(count)))


def test_pairs_are_one_process_s_and_each_share_reads_its_part():
    config = ConfigDict({"data": {"shuffle": True, "on_bad_record": "skip"}, "seed": 3, "rl": {"mode": "think"}})

    def check(pair):
        if pair.key in ("p3", "p8"):
            raise RecordError(pair.key, "prompt too long", "here")

    def read(sharing):
        reader = Reader(Pairs(40, 1), config, {}, sharing=sharing)
        found = [reader.take(8, check) for _ in range(2)]
        again = Reader(Pairs(40, 1), config, {}, reader.state, sharing)
        return [*found, again.take(8, check)], again.state, sharing.reads

    pairs, state, alone = read(Sharing())
    assert state["ties"] and state["bad"]
    for found, place, reads in shares(2, read):
        assert found == pairs and place == state
        assert abs(reads.records / alone.records - 0.5) < 0.15 and reads.records < alone.records
    config.data.on_bad_record = "error"
    with pytest.raises(RecordError, match="prompt too long"):
        shares(2, lambda sharing: Reader(Pairs(40, 1), config, {}, sharing=sharing).take(32, check))


def test_prompts_are_one_process_s_and_each_share_reads_its_part(tmp_path):
    rng, lines = np.random.default_rng(0), []
    for i in range(8):
        (tmp_path / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (20, 20, 3), np.uint8)))
        lines.append(json.dumps({"source": f"{i}.png", "instruction": f"edit {i}", "extras": {"more": [i]}}))
    (tmp_path / "5.png").write_bytes(b"no picture")
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    source, items = prompts.Lines(tmp_path / "lines.jsonl", 16, 16), [3, 5, 0, 7]
    read = lambda how: lambda sharing: (prompts.read(source, items, how, lambda p: None, sharing), sharing.reads)
    one, alone = read("skip")(Sharing())
    assert [p.key for p in one] == [f"lines.jsonl/{i}" for i in (3, 6, 0, 7)]
    for found, reads in shares(2, read("skip")):
        for a, b in zip(found, one, strict=True):
            np.testing.assert_array_equal(a.source, b.source)
            assert (a.key, a.instruction, a.task, a.extras) == (b.key, b.instruction, b.task, b.extras)
        assert reads.records == alone.records / 2
    with pytest.raises(RecordError, match=r"lines.jsonl/5"):
        shares(2, read("error"))
