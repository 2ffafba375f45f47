"""Where figures go: `metrics.jsonl` (one object a step, each step once), TensorBoard, optionally W&B, and the
terminal."""

import hashlib
import json
import logging
import os
import sys
import time
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
from etils import epath
from tqdm import tqdm

from edit_rl_jax import json_files
from edit_rl_jax.names import ConfigError

log = logging.getLogger(__name__)


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """Reads the objects of a `metrics.jsonl` in the order of their steps, each once; damaged lines are left out."""
    return _scan(epath.Path(path))[0]


def _scan(path: epath.Path) -> tuple[list[dict[str, Any]], list[str]]:
    """(rows, what is damaged). A last line that a kill cut is no damage; of a step written twice the last counts."""
    try:
        lines = path.read_bytes().split(b"\n") if os.path.lexists(path) or path.exists() else []
    except OSError as e:
        return [], [f"it cannot be read ({e.strerror or e})"]
    rows, problems, last = {}, [], 0
    for number, line in enumerate(lines, 1):
        try:
            row = json_files.loads(line, f"line {number}") if line.strip() else None
        except json_files.JSONError as e:
            problems += [str(e)] if number < len(lines) else []
            continue
        step = row.get("step") if isinstance(row, dict) else None
        if type(step) is int:
            problems += [f"line {number}: step {step} after step {last}"] if step <= last else []
            rows[step] = row
            last = step
        elif line.strip():
            problems.append(f"line {number}: no object with a step")
    return [rows[step] for step in sorted(rows)], problems


def _set_aside(path: Path | epath.Path) -> str:
    """Keeps a damaged `metrics.jsonl` as `metrics.damaged-N.jsonl`, and returns that name."""
    n = 1
    while os.path.lexists(aside := path.with_name(f"metrics.damaged-{n}.jsonl")) or aside.exists():
        n += 1
    try:
        aside.write_bytes(path.read_bytes())  # copied: a kill before the new file is there must not lose this one
    except OSError:
        path.rename(aside)
    return aside.name


def run_id(workdir: Path | epath.Path, name: str) -> str:
    """Makes the id of a run in a W&B project: the same for a resumption, another for another folder or config."""
    where = str(workdir) if "://" in str(workdir) else str(Path(workdir).resolve())
    return f"{workdir.name}-{hashlib.sha256(f'{where} {name}'.encode()).hexdigest()[:12]}"


class Writer:
    """Writes a run's figures under `folder` (local), after cutting `metrics.jsonl` back to `step` (0 = a new run).

    A damaged file is kept aside, named in a warning, and what can be read of it goes on. Figures that cannot be written
    (a full disk) are kept and written with the next; `flush` says whether all are. mirror: remote workdir to copy the
    small files to at each `mirror_now`, or None. Its metrics go before local ones, which another machine's continuation
    may have overtaken: mirror *before* a checkpoint is saved.
    """

    def __init__(self, folder: Path, step: int, *, config: Any, mirror: epath.Path | None = None):
        self.folder, self.mirror = folder, mirror
        folder.mkdir(parents=True, exist_ok=True)
        self._path = folder / "metrics.jsonl"
        path = mirror / self._path.name if mirror is not None and (mirror / self._path.name).exists() else self._path
        rows, problems = _scan(epath.Path(path))
        kept = [m for m in rows if m["step"] <= step]
        if problems:
            more = f" and {len(problems) - 3} more" if len(problems) > 3 else ""
            what = "; ".join(problems[:3]) + more
            log.warning("%s is damaged, kept as %s and read as far as it can be: %s", path, _set_aside(path), what)
        if missing := sorted(set(range(1, step + 1)) - {m["step"] for m in kept}):
            log.warning("%s has no figures of %d of %d steps, the first is %d", path, len(missing), step, missing[0])
        cut = self._path.with_suffix(".cut")  # replaced in one move: a kill here leaves the old file or the new one
        cut.write_text("".join(json.dumps(m) + "\n" for m in kept))
        cut.replace(self._path)
        self._size, self._pending = self._path.stat().st_size, b""
        self._events = _Events(folder / "events", step) if config.log.tensorboard else None
        self._wandb = None
        if config.log.wandb:
            try:
                import wandb
            except ImportError as e:
                raise ConfigError("config key 'log.wandb' needs the extra: pip install 'edit-rl-jax[wandb]'") from e
            name, identity = config.name or folder.name, run_id(mirror or folder, config.name)
            self._wandb = wandb.init(project="edit_rl_jax", name=name, dir=str(folder), resume="allow", id=identity)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends {"step": step, **values}; steps come in order. Floats that are not finite are written as null."""
        clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in values.items()}
        waiting = bool(self._pending)
        self._pending += (json.dumps({"step": step} | clean) + "\n").encode()
        try:
            self.flush()
        except OSError as e:
            if not waiting:
                log.warning("step %d: figures cannot be written (%s), they are kept for later", step, e)
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        if self._events:
            self._events.write(step, numbers)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def flush(self) -> None:
        """Writes the figures that are waiting. Raises OSError where that fails; then no part of them stays behind."""
        try:
            with open(self._path, "r+b") as file:  # opened each time: a folder that was removed is noticed
                at = min(self._size, file.seek(0, os.SEEK_END))
                file.truncate(at)  # what a failed attempt left
                file.seek(at)
                file.write(self._pending)
        except OSError as e:
            raise OSError(e.errno, e.strerror, str(self._path)) from e
        self._size, self._pending = at + len(self._pending), b""

    def mirror_now(self) -> None:
        """`flush`, then copies metrics, config, reports and events to the remote workdir, if there is one."""
        self.flush()
        if self._events:
            self._events.flush()
        for path in self.folder.rglob("*") if self.mirror is not None else ():
            if path.is_file():
                target = self.mirror / path.relative_to(self.folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(path).copy(target, overwrite=True)

    def close(self) -> None:
        """Writes and mirrors what is left."""
        try:
            self.mirror_now()
        finally:
            if self._wandb:
                self._wandb.finish()


class _Events:
    """TensorBoard's events. A copy of the figures: where it cannot be written it is named once and left out."""

    def __init__(self, folder: Path, step: int):
        self._folder, self._purge, self._writer, self._failed = folder, step, None, False
        self._flushed = time.monotonic()

    def write(self, step: int, numbers: dict[str, float]) -> None:
        """Writes scalars, in this thread: tensorboardX's own thread dies of a full disk and then blocks its caller."""
        from tensorboardX import summary
        from tensorboardX.event_file_writer import EventsWriter
        from tensorboardX.proto import event_pb2

        try:
            if self._writer is None:  # after a failure in a new file: the old one ends in half an event
                self._folder.mkdir(parents=True, exist_ok=True)
                self._writer = EventsWriter(str(self._folder / "events"), f".{step}")
                if self._purge:
                    start = event_pb2.SessionLog(status=event_pb2.SessionLog.START)
                    self._writer.write_event(event_pb2.Event(step=step, wall_time=time.time(), session_log=start))
            for key, value in numbers.items():
                found = summary.scalar(key, value)
                self._writer.write_event(event_pb2.Event(step=step, wall_time=time.time(), summary=found))
            if time.monotonic() - self._flushed > 60:
                self._flush()
        except OSError as e:
            self._drop(e)

    def flush(self) -> None:
        """Puts on the disk what was written."""
        try:
            self._flush()
        except OSError as e:
            self._drop(e)

    def _flush(self) -> None:
        self._flushed = time.monotonic()
        if self._writer is not None:
            self._writer.flush()

    def _drop(self, e: OSError) -> None:
        if not self._failed:
            log.warning("events for TensorBoard cannot be written (%s); metrics.jsonl has all figures", e)
        self._writer, self._failed = None, True


class Progress:
    """A bar on a terminal; elsewhere a plain line every `every` steps, with the time left."""

    def __init__(self, steps: int, start: int, every: int):
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None
        self.steps, self.start, self.every, self._began = steps, start, max(1, every), time.monotonic()

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Shows the figures of a finished step."""
        keys = "loss reward_mean oracle_success token_accuracy grad_norm lr tokens_per_s mfu validation_loss".split()
        text = {k: f"{values[k]:.4g}" for k in keys if isinstance(values.get(k), (int, float))}
        if self._bar is not None:
            self._bar.set_postfix(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self.every == 0 or step in (self.start + 1, self.steps):
            left = (time.monotonic() - self._began) / max(1, step - self.start) * (self.steps - step)
            figures = " ".join(f"{k} {v}" for k, v in text.items())
            print(f"step {step}/{self.steps} {figures} left {left / 60:.1f} min", flush=True)

    def close(self) -> None:
        """Leaves the bar as it is."""
        if self._bar is not None:
            self._bar.close()


class Devices:
    """Tells from beside when the devices had done a step, and so how long they had nothing to do before the next."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="devices")
        self._steps: dict[int, tuple[float, Future[float]]] = {}
        self._given = 0.0

    def begin(self, step: int) -> None:
        """Notes that a step is about to be given to the devices."""
        self._given = time.monotonic()

    def end(self, step: int, out: Any) -> None:
        """Waits, beside, for the results of the step."""

        def done() -> float:
            jax.block_until_ready(out)
            return time.monotonic()

        self._steps = {n: s for n, s in self._steps.items() if n > step - 3} | {
            step: (self._given, self._pool.submit(done))
        }

    def figures(self, step: int) -> dict[str, float]:
        """Gives the share of the time between the ends of the last step and this one in which the devices were idle;
        nothing for the first. Waits for the step."""
        if step - 1 not in self._steps:
            return {}
        (_, before), (given, now) = self._steps[step - 1], self._steps[step]
        idle, whole = max(0.0, given - before.result()), now.result() - before.result()
        return {"device_idle_share": min(1.0, idle / whole)} if whole > 0 else {}

    def close(self) -> None:
        """Ends the thread."""
        self._pool.shutdown(cancel_futures=True)


class Table(dict):
    """Running (sum, weight) pairs of several evaluation batches; `means()` divides."""

    def add(self, sums: dict[str, tuple[Any, Any]]) -> None:
        """Adds the sums and weights of a batch."""
        for k, (s, w) in sums.items():
            old = self.get(k, (0.0, 0.0))
            self[k] = (old[0] + float(s), old[1] + float(w))

    def means(self, prefix: str = "") -> dict[str, float]:
        """Divides; a figure of no weight is left out."""
        return {prefix + k: s / w for k, (s, w) in self.items() if w}
