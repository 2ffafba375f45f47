"""Interrupted and resumed against uninterrupted: the trials of the tests of resuming, and a command for many.

    python tests/system/resume.py --trials 10          (CPU, about 15 s a trial; prints one line each)

A trial starts `scripts/train_rm.py` on the toy run (a micro model, prefetch on), ends it at a random moment by SIGTERM
or kill -9 (of three kinds: at a step, while a save is being written, again while resuming), runs the same command
until it is through and compares with the uninterrupted run, bit for bit: weights, optimizer state, metrics, order of
the data.
"""

import argparse
import json
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
# what a clock says, and how far ahead was read
TIMED = {
    "input_wait_s",
    "step_s",
    "host_s",
    "tokens_per_s",
    "model_tflops_per_s",
    "mfu",
    "device_idle_share",
    "bytes_read",
}


SCRIPTS = {"train_rm": "toy_config.py", "train_editor": "toy_editor_config.py"}


def command(folder: Path, workdir: Path, **changes: object) -> list[str]:
    """Of the script that the folder's name begins with; of train_rm unless it is another's."""
    name = next((s for s in SCRIPTS if folder.name.startswith(s)), "train_rm")
    base = {"model.init_from": folder / "base", "model.config": "", "model.tokenizer": ""}
    base = {"model.tokenizer": folder / "tokenizer"} if name == "train_rm" else base
    changes = {**base, "compilation_cache": folder / "cache"} | changes
    words = [f"--config.{k}={v}" for k, v in changes.items()]
    script, config = ROOT / "scripts" / f"{name}.py", ROOT / "tests" / "training" / SCRIPTS[name]
    return [sys.executable, str(script), "--config", str(config), "--workdir", str(workdir), *words]


def start(folder: Path, workdir: Path, log: Path, *words: object, flags: str = "", devices: int = 1, **changes: object):
    """The process, whose programs are compiled quickly; words: further arguments; flags: more of XLA's."""
    from tests import quick

    env = quick.environment(devices)
    env["XLA_FLAGS"] += f" {flags}"
    with open(log, "a") as out:
        arguments = [*command(folder, workdir, **changes), *map(str, words)]
        return subprocess.Popen(arguments, env=env, stdout=out, stderr=out)


def start_two(folder: Path, workdir: Path, log: Path, **changes: object) -> list[subprocess.Popen]:
    """The same run in two processes, a device each; the first collective has half a minute."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{s.getsockname()[1]}"
    words = ("--coordinator", address, "--processes", 2, "--process")
    return [start(folder, workdir, log, *words, process, **changes) for process in (0, 1)]


def finish(folder: Path, workdir: Path, log: Path, flags: str = "", **changes: object) -> None:
    process = start(folder, workdir, log, flags=flags, **changes)
    try:
        code = process.wait()
    finally:
        process.kill()  # where a time limit ends the wait
    assert not code, f"exit status {code}: {log.read_text()[-2000:]}"


def prepare(folder: Path) -> Path:
    """What a run starts from and the uninterrupted run, once; returns the run's folder."""
    from edit_rl_jax.editors.omnigen2 import tiny
    from tests.training import micro_editor, toy

    if not (folder / "straight" / "report.html").exists():
        toy.save_tokenizer(folder / "tokenizer")
        tiny.save_random(folder / "base", cfg=micro_editor.configs())
        finish(folder, folder / "straight", folder / "straight.log")
    return folder / "straight"


def steps_done(workdir: Path) -> int:
    path = workdir / "metrics.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def saving(workdir: Path) -> bool:
    """Whether a save is under way: Orbax's temporary folder is there."""
    return any("tmp" in p.name for p in (workdir / "checkpoints").glob("*"))


def committed(workdir: Path) -> int:
    """The newest step whose save is whole, 0 without any."""
    return max((int(p.name) for p in (workdir / "checkpoints").glob("*") if p.name.isdigit()), default=0)


def goes_on(process: Callable[[], object], workdir: Path, log: Path) -> int:
    """Runs a command again that was interrupted; returns the step that it went on after. Raises AssertionError where it
    began anew although there was a save."""
    there, before = committed(workdir), len(log.read_text())
    process()
    found = re.findall(r"resuming after step (\d+)", log.read_text()[before:])
    assert found == ([str(there)] if there else []), f"went on after {found}, saved was {there}"
    return there


def interrupt(process: subprocess.Popen, workdir: Path, kind: str, rng: random.Random) -> bool:
    """Ends the process at the moment that the kind names (of a save: of one after the first); False if it was through
    before."""
    begun, goal = steps_done(workdir), rng.randint(1, 16)
    saves = lambda: saving(workdir) and committed(workdir) > 0
    hit = saves if kind == "save" else lambda: steps_done(workdir) >= begun + goal
    try:
        while process.poll() is None and not hit():
            time.sleep(0.002)
        time.sleep(rng.random() * 0.05)
        if process.poll() is not None:
            return False
        process.send_signal(signal.SIGTERM if kind == "term" else signal.SIGKILL)
        code = process.wait()
    finally:
        process.kill()
    assert code == (0 if kind == "term" else -signal.SIGKILL), f"exit status {code} after {kind}"
    return True


def trial(folder: Path, kind: str, seed: int) -> str:
    """One trial of kind "term", "kill" or "save"; returns what happened. Raises AssertionError on a difference."""
    rng, seen, attempt = random.Random(seed), [], 0
    while not seen:  # a run that was through before the signal came proves nothing: again, a few times
        assert (attempt := attempt + 1) <= 3, f"{kind}-{seed}: three runs in a row ended before they were interrupted"
        name = f"{kind}-{seed}-{attempt}"
        workdir, log = folder / name, folder / f"{name}.log"
        shutil.rmtree(workdir, ignore_errors=True)  # of an earlier use of the folder
        for _ in range(rng.randint(1, 2)):
            if interrupt(start(folder, workdir, log), workdir, kind, rng):
                seen.append(steps_done(workdir))
        after = goes_on(lambda: finish(folder, workdir, log), workdir, log)  # noqa: B023
        assert after or kind != "save", "nothing was saved before the save that was interrupted"
        same(folder / "straight", workdir)
    return f"{name}: interrupted after steps {seen}, the last time gone on after {after}, the rest equal"


def same(a: Path, b: Path) -> None:
    """Raises AssertionError where two finished runs differ in anything but clocks."""
    rows = [[json.loads(line) for line in (x / "metrics.jsonl").read_text().splitlines()] for x in (a, b)]
    clean = [[{k: v for k, v in row.items() if k not in TIMED} for row in run] for run in rows]
    assert [r["step"] for r in clean[1]] == list(range(1, len(clean[0]) + 1)), "a step is missing or doubled"
    for x, y in zip(*clean):
        assert x == y, f"metrics differ: {x} and {y}"
    one, two = (state(x / "checkpoints") for x in (a, b))
    assert one.keys() == two.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], two[name], err_msg=name)
    weights = [{f.relative_to(x): f.read_bytes() for f in (x / "model").rglob("*.safetensors")} for x in (a, b)]
    assert weights[0] and weights[0] == weights[1], "exported weights differ"


def state(checkpoints: Path) -> dict[str, object]:
    """All tensors of the newest checkpoint and the state of the data, by name."""
    import orbax.checkpoint as ocp

    with ocp.CheckpointManager(checkpoints.absolute()) as manager:
        args = ocp.args.Composite(state=ocp.args.StandardRestore(), meta=ocp.args.JsonRestore())
        found = manager.restore(manager.latest_step(), args=args)
    return dict(found["state"]) | {"data": json.dumps(found["meta"]["data"], sort_keys=True)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=10)
    parser.add_argument("--folder", type=Path, default=Path("runs/resume"), help="kept: logs and runs")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    args.folder.mkdir(parents=True, exist_ok=True)
    shutil.rmtree(args.folder / "straight", ignore_errors=True)  # perhaps of another version
    prepare(args.folder)
    failed = 0
    for n in range(args.seed, args.seed + args.trials):
        try:
            print(trial(args.folder, ("term", "kill", "save")[n % 3], n), flush=True)
        except AssertionError as e:
            failed += 1
            print(f"trial {n} FAILED: {e}", flush=True)
    print(f"{args.trials - failed} of {args.trials} trials equal, bit for bit")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
