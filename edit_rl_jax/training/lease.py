"""Who writes a run's folder: a lease that its one owner renews, and that a second writer reads to be refused.

`lease.json` in the workdir (the remote one, where there is one) names the owner, by host, process and start, and is
written anew every `BEAT` seconds. Besides, the owner holds a kernel lock on a local file. What that gives:

- Two processes that see one lock file (one host; several, where NFS has locks): the kernel decides, at once. A killed
  owner's lock is gone with it, so its folder is free at once; a suspended owner still has it.
- Others have only the lease (another host, another container, `gs://`): who finds it renewed within `EXPIRY` seconds is
  refused, at once. An older one is watched for longer than a beat, as clocks may differ, and taken over if it stays as
  it is. On object stores a claim is written, and counts if it still stands `SETTLE` seconds later: of two claims at the
  same time one is left, as long as a write takes less than that. Where it takes longer, the first of the two finds
  another's lease at its next beat, or before its next save, and stops.

The lock is `flock` on a descriptor that no program inherits and that a forked child closes: a data worker that outlives
its owner must not hold it. Imports no JAX.
"""

import contextlib
import datetime
import errno
import fcntl
import json
import logging
import math
import os
import secrets
import socket
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

from etils import epath

from edit_rl_jax import json_files

log = logging.getLogger(__name__)

BEAT, EXPIRY, SETTLE = 15.0, 90.0, 2.0  # seconds
NAME, LOCK = "lease.json", "lease.lock"


class LeaseError(RuntimeError):
    """Another process writes the folder, or may; the message is one line and says who, where it is known."""


class _Lock:
    """An exclusive kernel lock on a file, which holds what its owner says of itself; until `close`.

    Raises BlockingIOError where another process has it, OSError. On a file system that knows no locks nothing is
    locked, and its `identity` is no other's.
    """

    def __init__(self, path: Path):
        self.path, self.fd = path, -1
        path.parent.mkdir(parents=True, exist_ok=True)
        while self.fd < 0:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # no program inherits it (PEP 446)
            try:
                self.identity = self._lock(fd)
                with contextlib.suppress(FileNotFoundError):  # its last owner removed it after it was opened
                    if os.path.samestat(os.fstat(fd), os.stat(path)):
                        self.fd = fd
            finally:
                if self.fd < 0:
                    os.close(fd)
        _LOCKS.add(self)

    @staticmethod
    def _lock(fd: int) -> str:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as e:
            if e.errno in (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL):
                return secrets.token_hex(8)
            raise
        return f"{_boot()}:{os.fstat(fd).st_dev}:{os.fstat(fd).st_ino}"

    def say(self, about: dict[str, Any]) -> None:
        """Writes who the owner is."""
        os.ftruncate(self.fd, 0)
        os.pwrite(self.fd, json.dumps(about).encode(), 0)

    def close(self) -> None:
        """Removes the file, which only its owner may, and lets go."""
        if self.fd >= 0:
            self.path.unlink(missing_ok=True)
            os.close(self.fd)
            self.fd = -1


_LOCKS: weakref.WeakSet[_Lock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_LOCKS):
        if lock.fd >= 0:
            os.close(lock.fd)
            lock.fd = -1


os.register_at_fork(after_in_child=_after_fork)


def _boot() -> str:
    """What tells one running kernel from others; its host's name where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


class Lease:
    """The lease of a run's folder, held from now until `release`, renewed by a thread.

    Raises LeaseError where another process holds it, naming that one; where the folder cannot be written, OSError or
    what the store raises.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        lock: Path,
        *,
        beat: float = BEAT,
        expiry: float = EXPIRY,
        settle: float | None = None,
    ):
        """folder: of the lease, local or remote. lock: the local file to lock. settle: default SETTLE for a remote
        folder and 0 for a local one, whose hosts share the lock, or find each other at the next beat."""
        self.folder, self.beat, self.expiry = epath.Path(folder), beat, expiry
        self.path, self._remote = self.folder / NAME, "://" in os.fspath(folder)
        self.on_loss: Callable[[], None] | None = None  # called when `check` finds that the folder is another's
        self._lost, self._renewed = "", 0.0
        self._stop, self._writing = threading.Event(), threading.Lock()
        try:
            self._lock = self._locked(lock)
        except BlockingIOError:
            found = _parsed(lock)
            raise LeaseError(f"{self.folder} is written by {_who(found)}; use another --workdir, or end it") from None
        try:
            owner = {"host": socket.gethostname(), "pid": os.getpid(), "started": _clock(time.time())}
            self._lock.say(owner)
            self._mine: dict[str, Any] = owner | {"token": secrets.token_hex(8), "lock": self._lock.identity}
            self._mine |= {"expiry": expiry, "beats": 0}
            self._take((SETTLE if self._remote else 0.0) if settle is None else settle)
        except BaseException:
            self._lock.close()
            raise
        threading.Thread(target=self._renew, name="lease", daemon=True).start()

    @staticmethod
    def _locked(path: Path) -> _Lock:
        """The lock, at the second try: its owner may be ending, or new and about to say who it is."""
        try:
            return _Lock(path)
        except BlockingIOError:
            time.sleep(0.2)
            return _Lock(path)

    def _take(self, settle: float) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        found = _parsed(self.path)
        if found is not None and found.get("lock") != self._mine["lock"]:  # else the kernel says that its owner is gone
            age = time.time() - found.get("renewed", -math.inf)
            if abs(age) < found.get("expiry", self.expiry):
                raise LeaseError(self._refusal(found))
            if not self.expiry < age / 10 < math.inf:  # nobody's clock is so far behind
                seconds = 1.5 * self.beat
                log.warning("%s is %s's, and old; watching it for %.0f s", self.path, _who(found), seconds)
                time.sleep(seconds)
                if (now := _parsed(self.path)) is not None and now != found:
                    raise LeaseError(self._refusal(now))
        self._write()
        if settle:
            time.sleep(settle)
            if problem := self._problem():
                raise LeaseError(problem)

    def _write(self) -> None:
        self._mine |= {"beats": self._mine["beats"] + 1, "renewed": time.time()}
        text = json.dumps(self._mine, indent=1) + "\n"
        if self._remote:  # an object appears whole
            self.path.write_text(text)
        else:
            part = self.folder / f"{NAME}.part"
            part.write_text(text)
            part.replace(self.path)
        self._renewed = self._mine["renewed"]

    def _refusal(self, found: dict[str, Any]) -> str:
        end = found.get("renewed", time.time()) + found.get("expiry", self.expiry)
        free = f"if it has died, the folder is free from {_clock(end)} on"
        return f"{self.folder} is written by {_who(found)}; use another --workdir ({free})"

    def _problem(self) -> str:
        """What became of the lease; "" while it is ours. Raises OSError."""
        found = _parsed(self.path)
        if found is None:
            return f"{self.path} is gone: removed by hand, or by another process that took the folder over"
        return "" if found.get("token") == self._mine["token"] else self._refusal(found)

    def _renew(self) -> None:
        while not self._stop.wait(self.beat):
            try:
                with self._writing:
                    if self._stop.is_set():
                        return
                    self._lost = self._lost or self._problem()
                    if self._lost:
                        return
                    self._write()
            except Exception as e:  # stores have errors of their own; what comes back in time does no harm
                log.warning("%s cannot be renewed: %s", self.path, e)

    def check(self, surely: bool = False) -> None:
        """Raises LeaseError where another has taken the folder over, which must then not be written any more.

        Costs nothing while the lease was renewed in time; after that, or `surely`, it is read. That it cannot be read
        is an error once it has expired.
        """
        late = abs(time.time() - self._renewed) > self.expiry  # this process was suspended, or could not write
        if not self._lost and (late or surely):
            try:
                self._lost = self._problem()
            except Exception as e:
                if late:
                    self._lost = f"{self.path} was not renewed for {self.expiry:.0f} s, another may have taken it: {e}"
        if self._lost:
            if self.on_loss:
                self.on_loss()
            raise LeaseError(self._lost)

    def release(self) -> None:
        """Gives the folder back: removes the lease, where it is still ours, and the lock."""
        self._stop.set()
        with self._writing:  # no beat comes after this
            try:
                if not self._lost and not self._problem():
                    self.path.unlink()
            except Exception as e:
                log.warning("%s cannot be removed: %s", self.path, e)
            try:
                self._lock.close()
            except OSError as e:
                log.warning("%s cannot be removed: %s", self._lock.path, e)


def _parsed(path: Any) -> dict[str, Any] | None:
    """What stands in a lease; {} for what is none, None where there is no file. Raises OSError."""
    try:
        found = json_files.read_object(path)
    except FileNotFoundError:
        return None
    except json_files.JSONError:
        return {}
    numbers = all(isinstance(found.get(k, 0), (int, float)) for k in ("renewed", "expiry"))
    return found if numbers else {}


def _who(found: dict[str, Any] | None) -> str:
    """The owner that a lease names."""
    if not found or "pid" not in found:
        return "another process"
    return f"process {found['pid']} on host {found.get('host')}, started {found.get('started')}"


def _clock(seconds: float) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).isoformat(timespec="seconds")
