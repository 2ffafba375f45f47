"""What every training loop has around it, from its flags to the last file of its workdir."""

import argparse
import contextlib
import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from etils import epath

from edit_rl_jax.data.images import ImageError
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.json_files import JSONError
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.sharding import ShardingError
from edit_rl_jax.training import checkpoint, compilation, lease, metrics, on_mesh, processes, workdir
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training.checkpoint import CheckpointError, Checkpoints, SaveError
from edit_rl_jax.training.terminal import Interruption, patient_output

log = logging.getLogger("train")
PAUSE = 1.0  # seconds between the tries of a save that nothing comes after


class NonFiniteError(RuntimeError):
    """Too many steps in a row had a loss or gradient that is not finite; the message names the rows of the last."""


ERRORS = (
    ConfigError, WeightsError, ShardingError, CheckpointError, NonFiniteError, JSONError, ImageError,
    processes.PeerError,
)  # fmt: skip


def main(argv, doc: str, train: Callable[["Session"], None], check: Callable[[Any], None] | None = None) -> int:
    """Runs the training script whose docstring is `doc` and returns its exit status.

    train: the loop and what comes after it. check: raises ConfigError for a config that the script cannot run.
    """
    args, overrides = parse(argv, doc)

    def job(stack: contextlib.ExitStack) -> int:
        config = config_lib.load(args.config, overrides)
        if check:
            check(config)
        session = Session(args, config, stack)
        train(session)
        if not session.interrupted:
            session.finish()
        return 0

    return run(job)


class Session:
    """A run: processes, mesh, workdir and lease, resuming, figures, signals, saves.

        def train(run):
            state, data = run.resume(program.state, begin, steps=..., data_hash=..., base_hash=..., base_revision=...)
            for step in run.steps():
                state, out = ...
                run.record(step, figures)
                if run.due(step, out):
                    run.save(step, state, data)
            if run.interrupted:
                return
            ...                               # export, eval.json, report.html

    Attributes:
      config, mesh: of the run. lead: whether this process is the first, which alone writes figures.
      folder, remote: the workdir's local part, and the remote one or None.
      say: logs a line, once for all processes. stack: closes what the run opens, however it ends.
      done: the step to go on after, 0 in a new run. guard: counts refused updates.
      interrupted: whether a signal ended the loop before its last step.
    """

    def __init__(self, args: argparse.Namespace, config: Any, stack: contextlib.ExitStack):
        processes.start(args.coordinator, args.processes, args.process)
        self.config, self.stack = config, stack
        self.lead, self.interrupted, self.done, self._kept = jax.process_index() == 0, False, 0, 0
        self.say = log.info if self.lead else log.debug
        self.folder, self.remote = workdir.local_folder(args.workdir)
        self.compiled = compilation.Cache(config.compilation_cache, self.folder.name, self.remote)
        stack.callback(self.compiled.close)
        self.mesh = on_mesh.make_mesh(config)
        self._lease = lease.agreed(lambda: lease.Lease(self.remote or self.folder))
        if self._lease:
            stack.callback(self._lease.close)
        self.say("%d x %s, mesh %s", self.mesh.size, self.mesh.devices.flat[0].device_kind, dict(self.mesh.shape))

    def resume(self, state: Any, begin: Callable[[], Any], *, steps: int, **facts: Any) -> tuple[Any, Any]:
        """Enters the workdir; returns (state, data) of the newest whole checkpoint, (`begin()`, None) without one.

        state: abstract, with the shardings wanted. steps: of the whole run. facts: more of `config.json`, of which
        `workdir.FIXED` may not change. Raises ConfigError for the folder of another run, CheckpointError where no
        checkpoint is whole.
        """
        workdir.enter(self.folder, self.remote, workdir.describe(self.config, self.mesh, steps=steps, **facts))
        c, self.total = self.config.checkpoint, steps
        self._checkpoints = Checkpoints((self.remote or self.folder) / "checkpoints", c.keep)
        closing(self.stack, self._checkpoints.close)
        with processes.together("reading the checkpoint", c.deadline):
            found = self._checkpoints.restore(state)
        if found:
            self.say("resuming after step %d", found[0])
        with jax.set_mesh(self.mesh):
            self.done, now, data, extra = found or (0, begin(), None, {})
        if not found and c.rehearse:
            with processes.together("writing and reading a checkpoint to try", c.deadline):
                self.say("%s", checkpoint.rehearse((self.remote or self.folder) / "rehearsal", now, state))
        state = now
        self.guard = Guard(self.config.max_bad_steps, **extra.get("guard", {}))
        self._writer = None
        if self.lead:
            self._writer = metrics.Writer(self.folder, self.done, config=self.config, mirror=self.remote)
            self._progress = metrics.Progress(steps, self.done, self.config.log.every)
            closing(self.stack, self._writer.close, unless=(lease.LeaseError,))  # which mirrors
            self.stack.callback(self._progress.close)
        self._saver = Saver(self._checkpoints, self._writer, c.every, c.max_failed)
        return state, data

    def steps(self) -> Iterator[int]:
        """Counts the steps that are left. From this call to the last step a signal is a question that `due` answers."""
        self._interruption = Interruption()
        self._trace = Trace(self.config.log.profile_steps, self.folder / "profile")
        self.stack.callback(self._interruption.restore)
        self.stack.callback(self._trace.stop)
        return self._steps()

    def _steps(self) -> Iterator[int]:
        for step in range(self.done + 1, self.total + 1):
            self._trace.before(step)
            yield step
            if self.interrupted:
                self.say("interrupted: saved step %d; the same command continues", step)
                return
        self._trace.stop()
        self._interruption.restore()
        self.check()

    def record(self, step: int, values: dict[str, Any]) -> None:
        """Writes and shows the figures of a step, with the counts of refused updates and of failed saves."""
        if self._lease:
            self._lease.check(sure=False)
            values = values | {"bad_steps": self.guard.total, "failed_saves": self._saver.failed}
            self._writer.write(step, values)
            self._progress.show(step, values)
        if step == 1:
            self._keep_compiled()  # a spot slice may be lost before the first save

    def due(self, step: int, out: Any) -> bool:
        """Says whether to save after this step, whose results are `out`; every process asks it once a step."""
        self._trace.after(step, out)
        self.interrupted = self._interruption.now(step)
        return self._saver.due(step) or self.interrupted or step == self.total

    def save(self, step: int, state: Any, data: Any) -> None:
        """Saves the state after a step whose figures are recorded; data: position in the data, plain JSON."""
        self.check()
        counts = {"guard": {"total": self.guard.total, "in_row": self.guard.in_row}}
        self._keep_compiled()
        self._saver.save(step, state, data, counts, stopping=self.interrupted or step == self.total)

    def check(self) -> None:
        """Raises LeaseError where another run took the workdir."""
        if self._lease:
            self._lease.check()

    def _keep_compiled(self) -> None:
        if self.compiled.hits + self.compiled.misses > self._kept:
            self._kept, found = self.compiled.hits + self.compiled.misses, self.compiled
            log.info(
                "process %d: %d programs from the cache, %d compiled", jax.process_index(), found.hits, found.misses
            )
            if self.lead:
                self.compiled.keep()

    def finish(self) -> None:
        """Waits for all processes, closes everything, and marks the run as finished."""
        self._keep_compiled()
        processes.wait_for_all("finished")  # who leaves early would wait for the others with a time limit
        self.stack.close()
        if self.lead:
            workdir.mark_finished(self.remote or epath.Path(self.folder))
            print(f"report: {self.folder / 'report.html'}")


def parse(argv, doc: str):
    """(arguments, config overrides) of a training script whose docstring is `doc`."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    config_lib.add_arguments(parser)
    parser.add_argument("--workdir", required=True, metavar="DIR", help="local or gs:// folder of the run")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, for several processes off Cloud TPU")
    parser.add_argument("--processes", type=int, help="how many")
    parser.add_argument("--process", type=int, help="index of this one")
    rest, overrides = config_lib.split_overrides(sys.argv[1:] if argv is None else argv)
    return parser.parse_args(rest), overrides


def run(job: Callable[[contextlib.ExitStack], int]) -> int:
    """Runs `job` and returns its exit status: 1 after an error that a user can mend, 130 after Ctrl-C; one line.

    What the job gives to the stack is closed however it ends; see `closing`.
    """
    with patient_output():
        form = "%(levelname)s %(message)s"
        logging.basicConfig(level=logging.WARNING, format=form)
        for handler in logging.getLogger().handlers:
            if type(handler) is logging.StreamHandler:  # perhaps set up by an import, with the stream as it was
                handler.setStream(sys.stderr)
                handler.setFormatter(logging.Formatter(form))
        log.setLevel(logging.INFO)
        for name in ("absl", "asyncio"):  # through which Orbax says again, with tracebacks, what it raises
            logging.getLogger(name).setLevel(logging.CRITICAL)
        try:
            with contextlib.ExitStack() as stack:
                return job(stack)
        except RecordError as e:
            log.error("%s", str(e).splitlines()[0])  # Grain appends advice on its traceback
        except ERRORS as e:
            log.error("%s", e)
        except OSError as e:
            where = f"{e.filename}: " if e.filename and e.strerror else ""
            log.error("%s", where + (e.strerror or " ".join(str(e).split()) or type(e).__name__))
        except KeyboardInterrupt:
            if threading.current_thread() is threading.main_thread():
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # what Python still waits for may be interrupted, too
            log.error("interrupted; the same command goes on from the last checkpoint")
            return 128 + signal.SIGINT
    return 1


def closing(stack: contextlib.ExitStack, close: Callable[[], Any], unless: tuple[type[Exception], ...] = ()) -> None:
    """Has `stack` call `close`, but not after an error of a kind in `unless`. After another error what `close` raises
    is of the same cause, mostly, and is left unsaid."""

    def leave(kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and issubclass(kind, unless):
            return
        try:
            close()
        except (OSError, CheckpointError):
            if kind is None:
                raise

    stack.push(leave)


class Saver:
    """Saves a run every `every` steps. A save that fails (a full disk) is counted and tried again at the next step;
    `limit` failures in a row end the run, a single one where there are several processes.

    Attributes:
      failed: how many saves failed in this process.
    """

    def __init__(self, checkpoints: Checkpoints, writer: metrics.Writer | None, every: int, limit: int):
        self._checkpoints, self._writer, self._every = checkpoints, writer, every
        self._limit = limit if jax.process_count() == 1 else 1  # processes would disagree about when to try again
        self.failed, self._in_row, self._again, self._under_way = 0, 0, False, False

    def due(self, step: int) -> bool:
        """Whether to save after this step. Raises SaveError at the limit."""
        if self._under_way and jax.process_count() == 1 and not self._checkpoints.saving():
            self._ended()
        return self._again or step % self._every == 0

    def save(self, step: int, trees: Any, data: Any, extra: Any, *, stopping: bool) -> None:
        """Saves, after the figures of the step: a checkpoint's steps are always in the metrics, in the remote ones too.

        stopping: no step comes after this one; returns when all is on storage. Raises SaveError at the limit.
        """

        def start():
            if self._writer:
                self._writer.mirror_now()
            self._checkpoints.save(step, trees, data, extra)

        self._under_way = self._try(start, f"step {step}: ")
        while stopping and not (self._under_way and self._ended()):
            time.sleep(PAUSE)
            self._under_way = self._try(start, f"step {step}: ")

    def _ended(self) -> bool:
        """Whether what was begun is on storage; waits for it."""
        self._under_way, good = False, self._try(self._checkpoints.wait)
        self._in_row = 0 if good else self._in_row
        return good

    def _try(self, do: Callable[[], None], where: str = "") -> bool:
        try:
            do()
        except (SaveError, OSError) as e:
            self.failed, self._in_row, self._again = self.failed + 1, self._in_row + 1, True
            if self._in_row >= self._limit:
                tries = f" ({self._in_row} tries in a row)" if self._in_row > 1 else ""
                raise SaveError(f"{where}{e}{tries}; earlier checkpoints are as they were") from e
            if self._in_row == 1:
                log.warning("%s%s; trying again at the next steps, at most %d times", where, e, self._limit - 1)
            return False
        self._again = False
        return True


class Trace:
    """A profiler trace of the steps "first:last" ("" = none) under `folder`; of what is left of them after a resume."""

    def __init__(self, steps: str, folder: str | os.PathLike):
        self.first, self.last = map(int, steps.split(":")) if steps else (1, 0)
        self.folder, self._running = os.fspath(folder), False

    def before(self, step: int) -> None:
        """Starts the trace if its steps have come."""
        if self.first <= step <= self.last and not self._running:
            jax.profiler.start_trace(self.folder)
            self._running = True

    def after(self, step: int, out: Any) -> None:
        """Ends the trace with its last step, whose results are `out`."""
        if self._running and step >= self.last:
            jax.block_until_ready(out)
            self.stop()

    def stop(self) -> None:
        """Writes the trace if one is running."""
        if self._running:
            self._running = False
            try:
                jax.profiler.stop_trace()
            except (OSError, RuntimeError) as e:  # a full disk: the run goes on without it
                log.warning("the trace cannot be written: %s", e)


class Guard:
    """Counts steps whose update was refused, names their rows, and gives up after `limit` in a row."""

    def __init__(self, limit: int, total: int = 0, in_row: int = 0):
        self.limit, self.total, self.in_row = limit, total, in_row

    def check(self, step: int, finite: bool, row_sums: np.ndarray | None, keys: Any, local: Any) -> str | None:
        """None for a good step, else a line that names the rows of this process. Raises NonFiniteError at the limit.

        row_sums: [accum, B] losses of all rows; keys: `BatchMeta.keys`; local: `local_rows`, where in B the rows of
        `keys` lie.
        """
        if finite:
            self.in_row = 0
            return None
        rows = self._rows(row_sums, keys, local)
        return self.refused(f"step {step}: loss or gradient is not finite, no update applied; rows: {rows}")

    def refused(self, where: str) -> str:
        """Counts a step without an update, `where` says which and why. Raises NonFiniteError at the limit."""
        self.total, self.in_row = self.total + 1, self.in_row + 1
        if self.in_row >= self.limit:
            raise NonFiniteError(f"{where}; {self.in_row} such steps in a row, stopping")
        return where

    @staticmethod
    def _rows(row_sums: np.ndarray | None, keys: Any, local: Any) -> str:
        if row_sums is None:
            return "unknown (the objective gives no row sums)"
        bad = np.argwhere(~np.isfinite(row_sums))
        if not len(bad):
            return "none has a non-finite loss: the gradient overflowed"
        mine = {b: i for i, b in enumerate(local)}
        names = [f"microbatch {a} row {b} ({', '.join(keys[a][mine[b]])})" for a, b in bad.tolist() if b in mine]
        return "; ".join(names) or "of another process"
