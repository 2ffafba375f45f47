"""RL of a verifier interrupted and resumed against uninterrupted: the trial of `test_train_gcpo.py`, and a command.

    python tests/system/resume_gcpo.py --trials 6          (CPU; prints one line each)

A trial starts `scripts/train_gcpo.py` on a tiny verifier, ends it by SIGTERM or kill -9 at a random moment (in the
rollout, the update, an evaluation) or while a save is being written, runs the same command until it is through, and
compares with the uninterrupted run, bit for bit: weights, optimizer, metrics, evaluations.
"""

import argparse
import random
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
KINDS = ("kill", "save", "term")
CONFIG = ROOT / "tests" / "rl" / "vlm" / "micro.py"


def start(folder: Path, workdir: Path, log: Path, *more: str, devices: int = 1) -> subprocess.Popen:
    from tests import quick

    env = quick.environment(devices, EDIT_RL_TOY=str(folder))
    command = [sys.executable, str(ROOT / "scripts" / "train_gcpo.py"), "--config", str(CONFIG)]
    with open(log, "a") as out:
        return subprocess.Popen([*command, "--workdir", str(workdir), *more], env=env, stdout=out, stderr=out)


def finish(folder: Path, workdir: Path, log: Path, *more: str, devices: int = 1) -> None:
    if code := start(folder, workdir, log, *more, devices=devices).wait():
        raise AssertionError(f"exit status {code}: {log.read_text()[-3000:]}")


def prepare(folder: Path) -> Path:
    """The verifier and the uninterrupted run, once; returns the run's folder."""
    from tests.rl.vlm import micro

    if not (folder / "straight" / "finished").exists():
        micro.prepare(folder)
        finish(folder, folder / "straight", folder / "straight.log")
    return folder / "straight"


def two_processes(folder: Path, *more: str) -> tuple[list, list]:
    """Runs it in two processes of one device each, and in one of two; returns the metrics of both, a row a step.
    more: flags."""
    from edit_rl_jax.training import metrics

    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    mesh = ("--config.mesh.data=2", "--config.mesh.fsdp=1", *more)
    words = ("--coordinator", address, "--processes", "2")
    log = folder / "two.log"
    both = [start(folder, folder / "two", log, *mesh, *words, "--process", str(i)) for i in (0, 1)]
    if any(codes := [p.wait() for p in both]):
        raise AssertionError(f"exit statuses {codes}: {log.read_text()[-3000:]}")
    finish(folder, folder / "one", folder / "one.log", *mesh, devices=2)
    return tuple(metrics.read(str(folder / name / "metrics.jsonl")) for name in ("two", "one"))


def steps_done(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def trial(folder: Path, kind: str, seed: int) -> str:
    """One trial; returns what happened. Raises AssertionError on a difference."""
    from tests.system.resume import committed, goes_on, saving
    from tests.system.resume_grpo import same, step_seconds

    rng = random.Random(seed)
    workdir, log = folder / f"{kind}-{seed}", folder / f"{kind}-{seed}.log"
    steps = steps_done(folder / "straight")
    process, goal = start(folder, workdir, log), rng.randint(1, steps - 2)
    saves = lambda: saving(workdir) and committed(workdir) > 0  # of a save after the first
    while process.poll() is None and not (saves() if kind == "save" else steps_done(workdir) >= goal):
        time.sleep(0.001)
    time.sleep(0.01 * rng.random() if kind == "save" else rng.random() * step_seconds(workdir))
    assert process.poll() is None, f"{kind}-{seed}: the run was through before it was interrupted"
    process.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
    code, seen = process.wait(), steps_done(workdir)
    assert code == (0 if kind == "term" else -signal.SIGKILL), f"exit status {code} after {kind}: {log.read_text()}"
    after = goes_on(lambda: finish(folder, workdir, log), workdir, log)
    same(folder / "straight", workdir, averaged=False)
    return f"{kind}-{seed}: interrupted after {seen} steps, gone on after {after}, the rest equal"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=6)
    parser.add_argument("--folder", type=Path, default=Path("runs/resume_gcpo"), help="kept: logs and runs")
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
