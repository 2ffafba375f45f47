"""What a training job has around its loop: arguments, saves that are tried again, errors as one line, its output."""

import _thread
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

from edit_rl_jax.data.images import ImageError
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.json_files import JSONError
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.sharding import ShardingError
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import metrics
from edit_rl_jax.training.checkpoint import CheckpointError, Checkpoints, SaveError
from edit_rl_jax.training.feed import NonFiniteError

log = logging.getLogger("train")
ERRORS = (ConfigError, WeightsError, ShardingError, CheckpointError, NonFiniteError, JSONError, ImageError)
PAUSE = 1.0  # seconds between the tries of a save that nothing comes after


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


class _Patient:
    """A text stream that never raises: silent once its reader is gone; what a full disk refuses waits."""

    def __init__(self, stream: Any):
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        self._try(self._stream.write, text)
        return len(text)

    def writelines(self, lines: Any) -> None:
        self.write("".join(lines))

    def flush(self) -> None:
        self._try(self._stream.flush)

    def close(self) -> None:
        """Leaves nothing that Python could complain about when it ends."""
        self._try(self._stream.flush, last=True)

    def _try(self, do: Callable, *args: Any, last: bool = False) -> None:
        try:
            do(*args)
        except OSError as e:
            if last or isinstance(e, BrokenPipeError):
                with contextlib.suppress(OSError), open(os.devnull, "w") as nothing:
                    os.dup2(nothing.fileno(), self._stream.fileno())
                    self._stream.flush()


@contextlib.contextmanager
def patient_output() -> Iterator[None]:
    """Output to a pipe that closed (`| head`) or to a full disk does not end what runs inside."""
    before, hook = (sys.stdout, sys.stderr), sys.unraisablehook

    def quiet(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        if found.exc_type is KeyboardInterrupt:  # it came in a callback, which cannot raise: once more, outside of it
            threading.Timer(0.05, _thread.interrupt_main).start()
        elif str(found.exc_value) != "Event loop is closed" and not (code and "orbax" in code.co_filename):
            hook(found)  # those two are said by each of Orbax's writers and readers after the first has failed

    sys.stdout, sys.stderr = (stream and _Patient(stream) for stream in before)
    sys.unraisablehook = quiet
    try:
        yield
    finally:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, _Patient):
                stream.close()
        sys.stdout, sys.stderr = before
        sys.unraisablehook = hook
