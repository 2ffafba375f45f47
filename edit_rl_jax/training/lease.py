"""One run, one workdir: who writes a folder says so in it, and a second writer is refused at once.

`lease.json` in the workdir (the remote one where there is one) names the owner: host, process, start, and a token; the
owner renews it every BEAT seconds. A lease that was not renewed for EXPIRY seconds, by the storage's clock, is a dead
owner's and is taken over. On a local folder the owner holds a lock on the file besides, which the system frees however
the process ends: a killed run's folder is free at once on its own machine. A data worker that outlives its owner does
not keep it: no program inherits the lock, and a forked child lets go. Making a lease imports no JAX.
"""

import datetime
import errno
import fcntl
import json
import os
import random
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
from edit_rl_jax.names import ConfigError

FILE = "lease.json"
BEAT, EXPIRY = 15.0, 60.0  # seconds
CLAIM = "lease-"  # and a token: the file of one who is about to take the lease


NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)  # of a file system that has none


class LeaseError(ConfigError):
    """The workdir is another's. One line that names its host, process and start time."""


class Lease:
    """The right to write a workdir, from its making until `close`.

    Args:
      folder: the workdir; it is made where it does not exist. Locks are used where it is local.
      locked: False: as for a remote folder.
      beat, expiry: seconds.

    Raises LeaseError where another owner writes the folder; OSError, or what the storage raises, where it cannot be
    written.
    """

    def __init__(
        self, folder: str | os.PathLike, *, locked: bool | None = None, beat: float = BEAT, expiry: float = EXPIRY
    ):
        self.folder = epath.Path(folder)
        self._file, self._beat, self._expiry = self.folder / FILE, beat, expiry
        self._own = {
            "host": socket.gethostname(),
            "process": os.getpid(),
            "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "token": secrets.token_hex(8),
            "boot": _boot(),
        }
        self._lock: int | None = None
        self._taken: str = ""  # why the lease is lost
        self._renewed = 0.0
        _HELD.add(self)
        self.folder.mkdir(parents=True, exist_ok=True)
        if "://" not in os.fspath(folder) if locked is None else locked:
            self._lock = self._locked()
        try:
            self._take()
        except BaseException:
            self._unlock()
            raise
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._renew, daemon=True)
        self._thread.start()

    def check(self, sure: bool = True) -> None:
        """Raises LeaseError where another took the folder while this process stood still. Cheap: one small file.

        sure: False: free; the file is read only if the lease may have expired.
        """
        late = abs(time.time() - self._renewed) > self._expiry
        if (sure or late) and not self._taken:
            found = self._read()
            self._taken = self._lost(found)
            if late and found == {}:
                self._taken = (
                    f"{self._file} could not be renewed or read for {self._expiry:.0f} s: another may write here"
                )
        if self._taken:
            raise LeaseError(self._taken)

    def close(self) -> None:
        """Gives the folder back; nothing to do where another has taken it."""
        self._ended.set()
        self._thread.join()
        try:
            if not self._lost(self._read()):
                self._file.unlink(missing_ok=True)
        except Exception:  # storage has errors of its own
            pass  # it expires
        self._unlock()

    # -- The lock of a local folder ------------------------------------------------------------------------------------

    def _locked(self) -> int | None:
        while True:
            lock = os.open(os.fspath(self._file), os.O_RDWR | os.O_CREAT, 0o644)  # not inherited by other programs
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if os.fstat(lock).st_ino == os.stat(self._file).st_ino:
                    return lock
            except BlockingIOError:
                os.close(lock)
                for _ in range(20):  # it may be about to write who it is
                    if owner := self._read():
                        break
                    time.sleep(0.1)
                raise self._refusal(owner, None) from None
            except FileNotFoundError:
                pass
            except OSError as e:
                made = os.fstat(lock).st_size == 0
                os.close(lock)
                if e.errno not in NO_LOCKS:
                    raise
                if made:
                    self._file.unlink()
                return None
            os.close(lock)  # its owner left and removed it meanwhile

    def _unlock(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    # -- The file ------------------------------------------------------------------------------------------------------

    def _take(self) -> None:
        """Writes the lease where no other lives.

        Of two that try at once each leaves a claim before it looks for others' and for the lease, so at least one of
        them sees the other and comes again.
        """
        claim = self.folder / f"{CLAIM}{self._own['token']}"
        while True:
            claim.write_text("")
            try:
                now = claim.stat().mtime  # by the storage's clock
                alone = not [p for p in self.folder.glob(f"{CLAIM}*") if p.name != claim.name and self._lives(p, now)]
                old = self._read()
                same_kernel = not old or old.get("boot") == self._own["boot"]  # or none: another's lock would be seen
                mine = self._lock is not None and same_kernel
                if old is not None and not mine and self._lives(self._file, now):
                    raise self._refusal(old, now - self._file.stat().mtime)
                if alone:
                    self._write()
                    return
            finally:
                claim.unlink(missing_ok=True)
            time.sleep(random.uniform(0.05, 0.5))

    def _lives(self, path: epath.Path, now: float) -> bool:
        """Whether a file was written in the last `expiry` seconds."""
        try:
            return now - path.stat().mtime < self._expiry
        except OSError:  # removed meanwhile
            return False

    def _read(self) -> dict[str, Any] | None:
        """What the file says; {} where it cannot be read, None where there is none."""
        for _ in range(5):  # it may be in the middle of being written
            try:
                return json_files.read_object(self._file)
            except FileNotFoundError:
                return None
            except Exception:  # storage has errors of its own
                time.sleep(0.05)
        return {}

    def _write(self) -> None:
        text = json.dumps(self._own | {"renewed": time.time()}) + "\n"
        if self._lock is None:
            self._file.write_text(text)
        else:
            os.pwrite(self._lock, text.encode(), 0)
            os.ftruncate(self._lock, len(text.encode()))
        self._renewed = time.time()

    def _lost(self, found: dict[str, Any] | None) -> str:
        """Why this is the owner no more, "" while it is; found: what `_read` gives."""
        if found == {} or (found or {}).get("token") == self._own["token"]:
            return ""
        gone = f"{self.folder}: its {FILE} is gone, another may write here"
        return str(self._refusal(found, None)) if found else gone

    def _renew(self) -> None:
        while not self._ended.wait(self._beat):
            try:
                self._taken = self._taken or self._lost(self._read())
                if self._taken:
                    return
                self._write()
            except Exception:
                continue  # a network that fails for a moment; the next beat tries again

    def _refusal(self, owner: dict[str, Any] | None, age: float | None) -> LeaseError:
        known = owner or {}
        who = f"host {known.get('host', '?')}, process {known.get('process', '?')}, started {known.get('started', '?')}"
        until = "" if age is None else f"; if it is dead, the folder is free in {max(1, round(self._expiry - age))} s"
        return LeaseError(f"{self.folder}: another run writes this folder ({who}){until}")


_HELD: weakref.WeakSet[Lease] = weakref.WeakSet()


def _after_fork() -> None:
    for lease in list(_HELD):
        lease._unlock()  # the parent's own descriptor keeps the lock


os.register_at_fork(after_in_child=_after_fork)


def _boot() -> str:
    """What tells one running kernel from all others; the host's name where it does not say."""
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return socket.gethostname()


def agreed(make: Callable[[], Lease]) -> Lease | None:
    """Makes the lease on the first process; on the others None. Raises LeaseError on all where it is refused."""
    import jax

    from edit_rl_jax.training import processes

    lease, refused = None, None
    if jax.process_index() == 0:
        try:
            lease = make()
        except (LeaseError, OSError) as e:
            refused = e
        except Exception as e:  # storage has errors of its own
            refused = ConfigError(" ".join(f"--workdir: {type(e).__name__}: {e}".split()))
    if processes.agreed(refused is not None) and not refused:
        raise LeaseError("the first process may not write the workdir: its message says why")
    if refused:
        raise refused
    return lease
