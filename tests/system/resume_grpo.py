"""Online RL interrupted and resumed against uninterrupted: the trials of `test_train_grpo.py`, and a command for many.

    python tests/system/resume_grpo.py --trials 5          (CPU, about 30 s a trial; prints one line each)

A trial starts `scripts/train_grpo.py` on a tiny editor, ends it by SIGTERM or kill -9 at a random moment of a step (in
the rollout, the scoring, the update, an evaluation), before the first step, after the last, or while a save is being
written, runs the same command until it is through, and compares with the uninterrupted run, bit for bit: weights,
optimizer, EMA, metrics, evaluations.
"""

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
# what a clock or a fresh process says, and how far ahead was read
TIMED = {"rollout_s", "score_s", "update_s", "step_s", "compilations", "bytes_read"}
TIMED |= {"input_wait_s", "device_idle_share"}
KINDS = ("kill", "save", "term")


def get_config():
    """The run: `--config` names this file. The editor lies in the folder $EDIT_RL_TOY."""
    from tests.rl import tiny_editor

    folder = Path(os.environ["EDIT_RL_TOY"])
    options = dict(optim__ema=0.9, rl__overlap=True, eval__every=3, rl__eval_during=4, rl__oracle_samples=2)
    options |= dict(checkpoint__rehearse=True)
    return tiny_editor.config(
        folder / "editor", steps=8, optim__lr=1e-3, compilation_cache=str(folder / "cache"), **options
    )


def start(folder: Path, workdir: Path, log: Path, *more: str, devices: int = 1) -> subprocess.Popen:
    from tests import quick

    # with the emitters of its golden steps: a ratio of 1 is a matter of rounding
    env = quick.environment(devices, EDIT_RL_TOY=str(folder), XLA_FLAGS=quick.PLAIN)
    script = ROOT / "scripts" / "train_grpo.py"
    command = [sys.executable, str(script), "--config", __file__, "--workdir", str(workdir), *more]
    with open(log, "a") as out:
        return subprocess.Popen(command, env=env, stdout=out, stderr=out)


def start_two(folder: Path, workdir: Path, log: Path, *more: str, devices: int = 1) -> list[subprocess.Popen]:
    """The same run in two processes of so many devices."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    words = ("--coordinator", address, "--processes", "2", "--process")
    return [start(folder, workdir, log, *words, str(process), *more, devices=devices) for process in (0, 1)]


def finish_two(folder: Path, workdir: Path, log: Path, *more: str, devices: int = 1) -> None:
    processes = start_two(folder, workdir, log, *more, devices=devices)
    try:
        codes = [p.wait(timeout=1500) for p in processes]
    finally:
        for p in processes:
            p.kill()
    assert codes == [0, 0], log.read_text()[-3000:]


def finish(folder: Path, workdir: Path, log: Path, *more: str) -> None:
    if code := start(folder, workdir, log, *more).wait():
        raise AssertionError(f"exit status {code}: {log.read_text()[-3000:]}")


def prepare(folder: Path, *more: str) -> Path:
    """The editor and the uninterrupted run, once; returns the run's folder."""
    from tests.rl import tiny_editor

    if not (folder / "straight" / "finished").exists():
        tiny_editor.save(folder / "editor")
        finish(folder, folder / "straight", folder / "straight.log", *more)
    return folder / "straight"


def steps_done(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def step_seconds(workdir: Path) -> float:
    """Of the last step."""
    return json.loads((workdir / "metrics.jsonl").read_text().splitlines()[-1])["step_s"]


def trial(folder: Path, kind: str, seed: int, *more: str) -> str:
    """One trial; returns what happened. more: flags of the run, as `prepare` had them. Raises AssertionError on a
    difference."""
    from tests.system.resume import committed, goes_on, saving

    rng = random.Random(seed)
    workdir, log = folder / f"{kind}-{seed}", folder / f"{kind}-{seed}.log"
    steps = steps_done(folder / "straight")
    process, goal = start(folder, workdir, log, *more), rng.randint(0, steps - 2 * (kind == "term"))
    saves = lambda: saving(workdir) and committed(workdir) > 0  # of a save after the first
    begun = lambda: (workdir / "metrics.jsonl").exists() and steps_done(workdir) >= goal
    while process.poll() is None and not (saves() if kind == "save" else begun()):
        time.sleep(0.001)
    moment = rng.random()
    if kind == "save":
        time.sleep(0.01 * moment)
    else:  # anywhere in the step, as long as the step before took; before the first the programs are compiled
        time.sleep(moment * (step_seconds(workdir) if 0 < goal < steps else 5.0 if not goal else 0.3))
    assert process.poll() is None, f"{kind}-{seed}: the run was through before it was interrupted"
    process.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
    code, seen = process.wait(), steps_done(workdir)
    assert code == (0 if kind == "term" else -signal.SIGKILL), f"exit status {code} after {kind}: {log.read_text()}"
    after = goes_on(lambda: finish(folder, workdir, log, *more), workdir, log)
    same(folder / "straight", workdir)
    return f"{kind}-{seed}: interrupted after {seen} steps, gone on after {after}, the rest equal"


def same(a: Path, b: Path, averaged: bool = True) -> None:
    """Raises AssertionError where two finished runs differ in anything but clocks. averaged: they have a moving average
    of the weights."""
    from tests.system.resume import state

    rows = [[json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in (a, b)]
    clean = [[{k: v for k, v in row.items() if k not in TIMED} for row in run] for run in rows]
    assert [r["step"] for r in clean[1]] == list(range(1, len(clean[0]) + 1)), "a step is missing or doubled"
    for x, y in zip(*clean):
        assert x == y, f"metrics differ: {x} and {y}"
    one, two = (state(x / "checkpoints") for x in (a, b))
    assert one.keys() == two.keys() and any("ema" in name for name in one) == averaged
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    for pattern in ("evaluations/*", "model/adapter_model.safetensors"):
        files = [sorted(x.glob(pattern)) for x in (a, b)]
        assert files[0] and [f.name for f in files[0]] == [f.name for f in files[1]]
        assert [f.read_bytes() for f in files[0]] == [f.read_bytes() for f in files[1]], pattern


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=Path("runs/resume_grpo"), help="kept: logs and runs")
    args = parser.parse_args()
    args.folder.mkdir(parents=True, exist_ok=True)
    prepare(args.folder)
    failed = 0
    for n in range(args.trials):
        try:
            print(trial(args.folder, KINDS[n % 3], n), flush=True)
        except AssertionError as e:
            failed += 1
            print(f"trial {n} FAILED: {e}", flush=True)
    print(f"{args.trials - failed} of {args.trials} trials equal, bit for bit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
