"""What a terminal and a scheduler do to a run: signals, pipes that close, a disk that is full."""

import _thread
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
from jax.experimental import multihost_utils

log = logging.getLogger(__name__)


class Interruption:
    """SIGTERM (a preemption) and SIGINT (Ctrl-C) become a question that all processes answer alike at a step boundary,
    until `restore`. A second signal ends the process at once, with status 128 + its number."""

    def __init__(self):
        self._asked, self._alone = False, jax.process_count() == 1
        wanted = [signal.SIGTERM] if self._alone else []  # with several, JAX's coordination service watches SIGTERM
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # ignored: a background job of a shell
            wanted.append(signal.SIGINT)
        self._end, end = os.pipe()  # Python writes the signal's number there even while this thread waits for a device
        os.set_blocking(end, False)
        self._pipe, self._before = end, {}
        self._woken = signal.set_wakeup_fd(end, warn_on_full_buffer=False)
        threading.Thread(target=self._watch, args=(self._end,), daemon=True).start()
        for number in wanted:
            self._before[number] = signal.signal(number, self._ask)

    def _ask(self, number: int, frame: Any) -> None:
        self._asked = True
        if not self._alone:  # as if a preemption had come: the processes agree on the step
            os.kill(os.getpid(), signal.SIGTERM)

    @staticmethod
    def _watch(end: int) -> None:
        first = None
        while number := os.read(end, 1):
            name = signal.Signals(number[0]).name
            if first is None:
                first = time.monotonic()
                log.warning("%s: saving after this step, then stopping; once more stops at once", name)
            elif time.monotonic() - first > 1:  # `timeout` and other wrappers send each signal twice
                with contextlib.suppress(OSError):
                    os.write(2, f"{name} again: stopped at once; the last checkpoint is as it was\n".encode())
                os._exit(128 + number[0])
        os.close(end)

    def now(self, step: int) -> bool:
        """Whether to save and stop after this step, the same on every process."""
        return self._asked if self._alone else multihost_utils.reached_preemption_sync_point(step)

    def restore(self) -> None:
        """Gives the signals back to whoever had them: outside the loop they end the process."""
        if self._pipe is not None:
            for number, before in self._before.items():
                signal.signal(number, before)
            signal.set_wakeup_fd(self._woken)
            os.close(self._pipe)
            self._pipe = None


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
