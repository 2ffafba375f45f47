"""Training under faults of storage, users and terminals: what a script prints, and whether the same command ends equal.

    python tests/system/faults.py            (CPU, about 40 s a fault; prints one line each; the disks need root)

A fault comes while `scripts/train_rm.py` runs the toy run of `resume.py`, or between two of its runs. The script may
print no traceback and at most a few lines; what it had saved is still there, and the same command, once the cause is
gone, ends equal to the uninterrupted run, bit for bit.
"""

import argparse
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from tests.system import resume  # noqa: E402

DISK = 6  # MB: the toy's four checkpoints, and little more


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[Path]:
    """A small file system of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "tmpfs", str(folder)], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def fill(folder: Path) -> None:
    """Until nothing more can be written."""
    with contextlib.suppress(OSError), open(folder / "full", "wb", buffering=0) as file:
        while file.write(b"x" * 4096):
            pass


def until(process: subprocess.Popen, true: Callable[[], bool]) -> None:
    while process.poll() is None and not true():
        time.sleep(0.002)


def run(folder: Path, workdir: Path, log: Path, during: Callable | None = None, **changes: object) -> tuple[int, str]:
    """(exit status, what was printed but steps). during: called with the process at its eighth step."""
    log.unlink(missing_ok=True)
    process = resume.start(folder, workdir, log, **changes)
    try:
        if during:
            until(process, lambda: resume.steps_done(workdir) >= 8)
            during(process)
        code = process.wait(timeout=500)
    finally:
        process.kill()
    text = log.read_text()
    assert "Traceback" not in text and "Exception ignored" not in text, text[-4000:]
    return code, "\n".join(line for line in text.splitlines() if line.startswith(("WARNING", "ERROR")))


def equal(folder: Path, workdir: Path) -> None:
    """Raises AssertionError unless the same command ends as the uninterrupted run; `failed_saves` may differ."""
    resume.TIMED.add("failed_saves")
    code, said = run(folder, workdir, workdir.parent / f"{workdir.name}.log")
    assert code == 0, said
    resume.same(folder / "straight", workdir)


def on_a_full_disk(folder: Path, home: Path) -> str:
    with disk(home) as place:
        code, said = run(folder, place / "run", folder / "full.log", lambda _: fill(place))
        assert code == 1 and said.count("No space left") <= 3 and "tries in a row" in said, said
        (place / "full").unlink()
        equal(folder, place / "run")
    return said


def on_a_disk_that_is_full_for_moments(folder: Path, home: Path) -> str:
    log = folder / "moments.log"
    with disk(home) as place:

        def during(process):
            fill(place)
            until(process, lambda: "trying again" in log.read_text())
            (place / "full").unlink()

        code, said = run(folder, place / "run", log, during, **{"checkpoint.max_failed": 1000, "log.tensorboard": True})
        rows = [json.loads(line) for line in (place / "run" / "metrics.jsonl").read_text().splitlines()]
        assert code == 0 and rows[-1]["failed_saves"] > 0, said
        equal(folder, place / "run")
    return said


def on_a_disk_that_becomes_read_only(folder: Path, home: Path) -> str:
    with disk(home) as place:

        def read_only(_):  # a second mount over the first, which has files open for writing
            subprocess.run(["mount", "--bind", str(place), str(place)], check=True)
            subprocess.run(["mount", "-o", "remount,bind,ro", str(place)], check=True)

        code, said = run(folder, place / "run", folder / "read_only.log", read_only)
        subprocess.run(["umount", str(place)], check=True)
        assert code == 1 and "Read-only" in said.splitlines()[-1], said
        equal(folder, place / "run")
    return said


def in_a_folder_that_is_removed(folder: Path, home: Path) -> str:
    def remove(_):
        while home.exists():
            shutil.rmtree(home, ignore_errors=True)

    code, said = run(folder, home, folder / "removed.log", remove)
    assert code == 1 and ("No such file" in said.splitlines()[-1] or "gone" in said.splitlines()[-1]), said
    return said


def after_ctrl_c(folder: Path, home: Path) -> str:
    code, said = run(folder, home, folder / "ctrl_c.log", lambda process: process.send_signal(signal.SIGINT))
    assert code == 0 and "SIGINT: saving" in said and 8 <= resume.steps_done(home) < 40, said
    equal(folder, home)
    return said


def after_ctrl_c_in_a_terminal(folder: Path, home: Path) -> str:
    """All processes of the group get it, those that read the data too."""
    log, settings = folder / "terminal.log", {"data.worker_kind": "process"}
    words, env = resume.command(folder, home, **settings), os.environ | {"JAX_PLATFORMS": "cpu"}
    env |= {"PYTHONPATH": str(resume.ROOT)}
    with open(log, "w") as out:
        process = subprocess.Popen(words, env=env, stdout=out, stderr=out, start_new_session=True)
    until(process, lambda: resume.steps_done(home) >= 8)
    os.killpg(process.pid, signal.SIGINT)
    code, text = process.wait(timeout=100), log.read_text()
    assert code == 0 and "Traceback" not in text and 8 <= resume.steps_done(home) < 40, text[-3000:]
    code, said = run(folder, home, log, **settings)
    assert code == 0 and resume.steps_done(home) == 40, said
    return "saved, finished"


def after_ctrl_c_before_the_loop(folder: Path, home: Path) -> str:
    log = folder / "early.log"
    log.unlink(missing_ok=True)
    process = resume.start(folder, home, log, compilation_cache="")
    until(process, lambda: log.exists() and "parameters trained" in log.read_text())
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    code, text = process.wait(timeout=200), log.read_text()
    assert code == 130 and "Traceback" not in text and "interrupted; the same command" in text, text[-3000:]
    return text.splitlines()[-1]


def with_a_reader_that_leaves(folder: Path, home: Path) -> str:
    words = [*resume.command(folder, home), "--config.log.tensorboard=True"]
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(resume.ROOT)}
    line = '"$@" 2>&1 | head -1; exit ${PIPESTATUS[0]}'
    found = subprocess.run(["bash", "-c", line, "-", *words], env=env, capture_output=True, text=True)
    assert found.returncode == 0 and (home / "finished").exists() and not found.stderr, found.stderr
    resume.same(folder / "straight", home)
    return found.stdout.strip()


def _edit(path: Path, change: Callable[[dict], object]) -> None:
    found = json.loads(path.read_text())
    change(found)
    path.write_text(json.dumps(found))


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def with_damages(folder: Path, home: Path) -> str:
    """Between two runs: named, set aside, and the run ends equal; or refused in one line until it is mended."""
    newest = lambda: max((p for p in (home / "checkpoints").iterdir() if p.name.isdigit()), key=lambda p: int(p.name))
    meta = lambda: newest() / "meta" / "metadata"
    weights = lambda: max(newest().rglob("d/*"), key=lambda p: p.stat().st_size)
    cut = lambda path: path.write_bytes(path.read_bytes()[:-50])
    damages = {
        "an epoch": lambda: _edit(meta(), lambda m: m["data"].update(epoch=m["data"]["epoch"] + 1)),
        "a step": lambda: _edit(meta(), lambda m: m.update(step=m["step"] - 1)),
        "a guard": lambda: _edit(meta(), lambda m: m["extra"]["guard"].update(total=5)),
        "a bit of the weights": lambda: _flip(weights()),
        "a folder's name": lambda: newest().rename(home / "checkpoints" / "39"),
        "a file for a folder": lambda: (shutil.rmtree(newest()), (home / "checkpoints" / "38").touch()),
        "metrics": lambda: cut(home / "metrics.jsonl"),
    }
    said = []
    for name, damage in damages.items():
        shutil.rmtree(home, ignore_errors=True)
        code, _ = run(folder, home, folder / "damage.log", lambda process: process.send_signal(signal.SIGTERM))
        assert code == 0 and resume.steps_done(home) < 40
        damage()
        code, lines = run(folder, home, folder / "damage.log")
        assert code == 0 and ("damaged" in lines or name == "metrics"), f"{name}: {lines}"
        if name != "metrics":
            resume.same(folder / "straight", home)
            assert any("damaged-" in p.name for p in (home / "checkpoints").iterdir()), name
        said.append(f"{name}: {lines.splitlines()[0][:200] if lines else 'no figures lost'}")
    for text in ("{", "null", ""):
        (home / "config.json").write_text(text)
        code, lines = run(folder, home, folder / "damage.log")
        assert code == 1 and len(lines.splitlines()) == 1 and "config.json" in lines, lines
    return "; ".join(said)


FAULTS = (
    on_a_full_disk,
    on_a_disk_that_is_full_for_moments,
    on_a_disk_that_becomes_read_only,
    in_a_folder_that_is_removed,
    after_ctrl_c,
    after_ctrl_c_in_a_terminal,
    after_ctrl_c_before_the_loop,
    with_a_reader_that_leaves,
    with_damages,
)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=Path("runs/faults"), help="kept: logs and runs")
    parser.add_argument("--only", nargs="*", default=[f.__name__ for f in FAULTS], help="names of faults")
    args = parser.parse_args()
    folder = args.folder.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    resume.prepare(folder)
    failed = 0
    for fault in FAULTS:
        if fault.__name__ not in args.only or "disk" in fault.__name__ and os.geteuid():
            continue
        home = folder / fault.__name__
        shutil.rmtree(home, ignore_errors=True)
        try:
            print(f"{fault.__name__}: {fault(folder, home)}", flush=True)
        except AssertionError as e:
            failed += 1
            print(f"{fault.__name__} FAILED: {e}", flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
