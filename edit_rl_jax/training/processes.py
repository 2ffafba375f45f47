"""What the processes of a run agree on and tell each other, and what a process knows of itself.

Waiting is bounded: JAX's coordination service ends every process within `DEAD` seconds of the death of one, `swap` and
`together` name the processes that did not come.
"""

import contextlib
import functools
import itertools
import json
import logging
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import numpy as np
from jax._src import clusters, distributed  # as other libraries take them: there is no public way to hosts and keys
from jax.experimental import multihost_utils

log = logging.getLogger("train")
DEAD = 60  # seconds without a sign of life of a process, and that a process waits for the others before it ends
LATE = 600.0  # seconds that a process waits for what another tells it
BEAT = 2.0  # seconds between two notes of where a process is


class PeerError(RuntimeError):
    """A process that did not come in time; the message names it."""


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of the run: by the flags, or by what Cloud TPU says of its hosts; else this one is alone.

    Raises PeerError on one of several hosts of which that is not told.
    """
    how = dict(heartbeat_timeout_seconds=DEAD, shutdown_timeout_seconds=DEAD)
    if coordinator:
        jax.distributed.initialize(coordinator, count, index, **how)
    elif "tpu" in (jax.config.jax_platforms or "tpu"):
        if hosts() > 1:
            jax.distributed.initialize(**how)
        elif jax.process_count() > 1:  # libtpu knows of others, and nothing could be told to them
            raise PeerError(
                "the devices are of several hosts, which nothing names: --coordinator, --processes, --process"
            )


def hosts() -> int:
    """Counts the hosts of all slices as Cloud TPU tells them: GKE in the environment, a VM's metadata; else 1."""
    for cluster in (clusters.GkeTpuCluster, clusters.GceTpuCluster):  # as `jax.distributed` asks
        with contextlib.suppress(OSError):  # no metadata server
            if cluster.is_env_present():
                return cluster.get_process_count()
    return 1


def agreed(answer: bool) -> bool:
    """Gives every process the first one's answer."""
    return bool(number(int(answer)))


def any_says(answer: bool) -> bool:
    """Says whether any process answers yes."""
    return bool(multihost_utils.process_allgather(np.int32(answer)).any() if jax.process_count() > 1 else answer)


def number(answer: int) -> int:
    """Gives every process the first one's number."""
    return int(multihost_utils.broadcast_one_to_all(np.int32(answer)) if jax.process_count() > 1 else answer)


def everyone(mine: bytes) -> list[bytes]:
    """Gives every process what each one says, in their order, over the devices' links: for pictures, which are too
    large for the coordination service, where `Exchange` tells numbers."""
    if jax.process_count() == 1:
        return [mine]
    lengths = multihost_utils.process_allgather(np.int32(len(mine))).tolist()
    padded = np.zeros(1 << max(lengths).bit_length(), np.uint8)  # few shapes: each is compiled once
    padded[: len(mine)] = np.frombuffer(mine, np.uint8)
    every = multihost_utils.process_allgather(padded)
    return [row[:length].tobytes() for row, length in zip(every, lengths, strict=True)]


def wait_for_all(name: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


_exchanges = itertools.count()


class Exchange:
    """The `data.planning.Exchange` of the shares of a batch's rows (see `feed.data_shard`), through JAX's coordination
    service; processes that feed the same share tell the same. Every process makes the same ones in the same order.

    late: seconds that `swap` waits.
    """

    def __init__(self, index: int, count: int, late: float = LATE):
        self._index, self._count, self._late = index, count, late
        self._name, self._mine, self._closed = f"exchange/{next(_exchanges)}", [], threading.Event()

    def swap(self, name: str, mine: bytes) -> list[bytes]:
        """Gives what each share told under this name. Raises PeerError for one that tells nothing in time."""
        # All have read what was told two calls ago: they told the last, which this process read. Of processes that feed
        # the same share one may be behind, by some batches at most: the devices wait for all.
        self._tell(name, mine, kept=2 if jax.process_count() == self._count else 100)
        return self._hear(name, mine)

    def summed(self, name: str, mine: dict[str, int]) -> dict[str, int]:
        """Gives the first process the sums of all shares' counts, used as `swap`; to the others their own."""
        self._tell(name, json.dumps(mine).encode(), kept=100)  # steps: no process is so far behind
        if jax.process_index():
            return mine
        every = [json.loads(text) for text in self._hear(name, json.dumps(mine).encode())]
        return {key: sum(counts[key] for counts in every) for key in mine}

    def _tell(self, name: str, mine: bytes, kept: int) -> None:
        client = distributed.global_state.client
        client.key_value_set_bytes(f"{self._name}/{name}/{self._index}", mine, allow_overwrite=True)
        self._mine.append(f"{self._name}/{name}/{self._index}")
        if len(self._mine) > kept:
            with contextlib.suppress(jax.errors.JaxRuntimeError):  # another process of this share was first
                client.key_value_delete(self._mine.pop(0))

    def _hear(self, name: str, mine: bytes) -> list[bytes]:
        return [mine if share == self._index else self._get(name, share) for share in range(self._count)]

    def _get(self, name: str, share: int) -> bytes:
        client, key = distributed.global_state.client, f"{self._name}/{name}/{share}"
        end = time.monotonic() + self._late
        while not self._closed.is_set():
            try:
                return client.blocking_key_value_get_bytes(key, 1000)
            except jax.errors.JaxRuntimeError as e:
                if "DEADLINE_EXCEEDED" not in str(e):
                    raise PeerError(f"the processes cannot hear each other: {' '.join(str(e).split())[:200]}") from e
            if time.monotonic() > end:
                raise PeerError(f"share {share} of the rows told nothing of its records for {self._late:.0f} s")
        raise PeerError("closed")

    def close(self) -> None:
        """Ends the waiting of a thread that reads ahead."""
        self._closed.set()


def exchange(index: int, count: int) -> Exchange | None:
    """Makes an `Exchange`; None where there is nobody to share with."""
    return Exchange(index, count) if jax.process_count() > 1 and count > 1 else None


@contextlib.contextmanager
def together(what: str, late: float = LATE) -> Iterator[None]:
    """Has all processes do what is in the block, by itself or with the others, and leave it within `late` seconds.

    Where some do not, or where it fails in one while others are still in it, a line names those and where they are.
    Late, the process ends with status 1: what it waits for cannot be interrupted.
    """
    if jax.process_count() == 1:
        yield
        return
    client, me, main = distributed.global_state.client, jax.process_index(), threading.get_ident()
    left, folder = threading.Event(), f"together/{what}/{next(_exchanges)}"
    note = lambda **at: client.key_value_set(f"{folder}/{me}", json.dumps(at), allow_overwrite=True)

    def missing() -> str:
        """Names the processes that are in the block and do not just wait for others, when they had time for a note."""
        time.sleep(2 * BEAT)
        notes = {int(k.rsplit("/", 1)[1]): json.loads(v) for k, v in client.key_value_dir_get(f"{folder}/")}
        there = {p: notes.get(p, {"at": "no word from it", "waits": False}) for p in range(jax.process_count())}
        return "; ".join(f"process {p} is missing ({n['at']})" for p, n in there.items() if not n["waits"])

    def watch() -> None:
        end = time.monotonic() + late
        while not left.wait(BEAT):
            try:
                note(**_place(main))
                if time.monotonic() < end:
                    continue
                problem = missing() or "every process waits for another"
            except jax.errors.JaxRuntimeError as e:
                problem = f"the coordinator does not answer: {' '.join(str(e).split())[:200]}"
            if not left.is_set():
                log.error("%s: not through after %.0f s: %s", what, late, problem)
                sys.stderr.flush()
                os._exit(1)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
        note(at="done", waits=True)
        client.wait_at_barrier(folder, int(1000 * late) + 60_000)  # the watch is first
    except Exception as e:  # perhaps the network's patience with another process was shorter
        left.set()
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            note(at=f"failed: {type(e).__name__}", waits=True)
            if absent := missing():
                log.error("%s: failed (%s): %s", what, " ".join(str(e).split())[:200], absent)
        raise
    finally:
        left.set()


def _place(thread: int) -> dict[str, Any]:
    """Where a thread is, and whether it waits for other processes: then it is in JAX."""
    frame = sys._current_frames().get(thread)
    if frame is None:
        return {"at": "ended", "waits": False}
    file, code = frame.f_code.co_filename, frame.f_code
    return {
        "at": f"in {code.co_qualname}, {os.path.basename(file)}:{frame.f_lineno}",
        "waits": f"{os.sep}jax{os.sep}" in file,
    }


@functools.cache
def _compiled() -> list[str]:
    seen: list[str] = []
    listen = lambda name, *_, **__: seen.append(name) if "backend_compile" in name else None
    jax.monitoring.register_event_duration_secs_listener(listen)
    return seen


def count_compilations() -> Callable[[], int]:
    """Returns a function that counts the programs compiled in this process since the first call of this one."""
    seen = _compiled()
    return lambda: len(seen)
