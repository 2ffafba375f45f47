"""Training and RL in two processes: what one does, each reading its part; who dies or hangs is noticed, and named.

Processes of four CPU devices each on this machine; the toy runs of `resume`.
"""

import json
import os
import re
import signal
import time

import numpy as np
import pytest

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.training import metrics
from tests.system import resume, resume_gcpo, resume_grpo

DIFFERS = resume.TIMED | {"failed_saves"}


def ended(processes, log, seconds: float = 400) -> list[int]:
    try:
        return [p.wait(timeout=seconds) for p in processes]
    finally:
        for p in processes:
            p.kill()


def waited(condition, processes, log, seconds: float = 300) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end and all(p.poll() is None for p in processes), log.read_text()[-3000:]
        time.sleep(0.02)


def megabytes(log) -> list[float]:
    """What each process says that it read, in the order of processes."""
    found = re.findall(r"process (\d) read \d+ records, ([\d.]+) MB", log.read_text())
    return [float(size) for _, size in sorted(found)]


JUDGE = pytest.mark.parametrize("run", ["train_rm"], indirect=True)  # the loop of both is the same


@pytest.fixture(scope="module")
def run(request, tmp_path_factory):
    """(folder, overrides) in which one process of eight devices has run."""
    from edit_rl_jax.editors.omnigen2 import tiny
    from tests.training import micro_editor, toy

    folder = tmp_path_factory.mktemp(request.param)
    toy.save_tokenizer(folder / "tokenizer")
    tiny.save_random(folder / "base", cfg=micro_editor.configs())
    changes = {"rows": 8, "steps": 10, "data.size": 300, "checkpoint.every": 4}
    if request.param == "train_editor":  # of one bucket: what a row will hold is known before it is measured
        changes["data.buckets"] = "((32, 1, 16, 16),)"
    resume.finish(folder, folder / "one", folder / "one.log", devices=8, **changes)
    return folder, changes


@pytest.mark.slow
@pytest.mark.parametrize("run", ["train_rm", "train_editor"], indirect=True)
def test_two_processes_do_what_one_does_and_read_less(run):
    folder, changes = run
    log = folder / "two.log"
    both = resume.start_two(folder, folder / "two", log, devices=4, **changes)
    assert ended(both, log) == [0, 0], log.read_text()[-3000:]
    one, two = (metrics.read(folder / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 10
    for a, b in zip(one, two):
        assert a.keys() == b.keys()
        for key in a.keys() - DIFFERS:
            np.testing.assert_allclose(b[key], a[key], rtol=2e-4, err_msg=f"step {a['step']}, {key}")
    (alone,), parts = megabytes(folder / "one.log"), megabytes(log)
    share = 0.5 if "editor" in folder.name else 0.75
    assert len(parts) == 2 and all(abs(part / alone - share) < 0.1 for part in parts), (alone, parts)
    print(folder.name, "read by one process", alone, "MB, by each of two", parts)


@pytest.mark.slow
@JUDGE
def test_the_death_of_one_ends_the_other_and_a_restart_goes_on(run):
    folder, changes = run
    for victim in (1, 0):
        workdir, log = folder / f"killed{victim}", folder / f"killed{victim}.log"
        both = resume.start_two(folder, workdir, log, devices=4, **changes)
        waited(lambda: resume.steps_done(workdir) >= 6, both, log)  # noqa: B023
        both[victim].send_signal(signal.SIGKILL)
        began = time.monotonic()
        code = both[1 - victim].wait(timeout=120)
        assert code, "it must not say that all is well"
        print(f"process {victim} was killed; the other ended with {code} after {time.monotonic() - began:.0f} s")
        again = resume.start_two(folder, workdir, log, devices=4, **changes)
        assert ended(again, log) == [0, 0], log.read_text()[-3000:]
        assert "resuming after step 4" in log.read_text()
        rows = metrics.read(workdir / "metrics.jsonl")
        assert [row["step"] for row in rows] == list(range(1, 11))
        one = metrics.read(folder / "one" / "metrics.jsonl")
        np.testing.assert_allclose([r["loss"] for r in rows], [r["loss"] for r in one], rtol=2e-4)


@pytest.mark.slow
@JUDGE
def test_a_process_that_hangs_in_the_restore_is_named(run):
    folder, changes = run
    workdir, log = folder / "hangs", folder / "hangs.log"
    assert ended(resume.start_two(folder, workdir, log, devices=4, **changes | {"steps": 10}), log) == [0, 0]
    (workdir / "finished").unlink()
    os.environ["EDIT_RL_TEST_HANG"] = "1"  # read by tests/training/toy.py
    try:
        hang = resume.start_two(folder, workdir, log, devices=4, **changes | {"checkpoint.deadline": 10})
        began = time.monotonic()
        codes = [hang[0].wait(timeout=120)]
        print(f"noticed after {time.monotonic() - began:.0f} s with the start")
    finally:
        del os.environ["EDIT_RL_TEST_HANG"]
        for p in hang:
            p.kill()
    assert codes[0] and re.search(r"process 1 is missing \(in .*hang", log.read_text()), log.read_text()[-3000:]


def share_of_bytes(name: str, one: list, two: list) -> float:
    """What the first of two processes read, of what one process read."""
    share = sum(row["bytes_read"] for row in two) / sum(row["bytes_read"] for row in one)
    print(f"{name}: the first of two processes reads {share:.3f} of one's bytes")
    return share


@pytest.mark.slow
def test_grpo_in_two_processes_reads_half(tmp_path):
    from tests.rl import tiny_editor

    tiny_editor.save(tmp_path / "editor")
    rng, lines = np.random.default_rng(0), []
    for i in range(16):
        (tmp_path / f"{i}.png").write_bytes(encode_png(rng.integers(0, 256, (32, 32, 3), np.uint8)))
        lines.append(json.dumps({"source": f"{i}.png", "instruction": f"edit {i}"}))
    (tmp_path / "lines.jsonl").write_text("\n".join(lines))
    changes = {"data.train": tmp_path / "lines.jsonl", "rl.rewards": "(('saturation', 1.0),)", "rl.eval_prompts": 0}
    changes |= {"rl.oracle_samples": 0, "rl.overlap": False, "steps": 4, "eval.every": 0}
    words = [f"--config.{k}={v}" for k, v in changes.items()]
    resume_grpo.finish(tmp_path, tmp_path / "one", tmp_path / "one.log", *words)
    resume_grpo.finish_two(tmp_path, tmp_path / "two", tmp_path / "two.log", *words)
    one, two = (metrics.read(tmp_path / name / "metrics.jsonl") for name in ("one", "two"))
    assert len(one) == len(two) == 4 and all(a.keys() == b.keys() for a, b in zip(one, two))
    np.testing.assert_allclose(two[0]["reward_mean"], one[0]["reward_mean"], atol=1e-4)
    np.testing.assert_allclose([r["reward_mean"] for r in two], [r["reward_mean"] for r in one], rtol=0.02)
    assert 0.49 < share_of_bytes("train_grpo", one, two) < 0.51  # pictures are not all of one size


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_gcpo_in_two_processes_reads_half(tmp_path):
    """That its figures are one process's is tested in `test_train_gcpo.py`, of three pairs a step."""
    resume_gcpo.prepare(tmp_path)
    two, one = resume_gcpo.two_processes(tmp_path, "--config.rl.pairs=4")
    assert [row["win_share"] for row in two] == [row["win_share"] for row in one]
    assert 0.4 < share_of_bytes("train_gcpo", one, two) < 0.65  # a pair in place of a tie is the first one's
