"""What the processes of a run agree on, and what a process knows of itself."""

import functools
import os
from collections.abc import Callable

import jax
import numpy as np
from jax.experimental import multihost_utils


def start(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the processes of the run: by the flags, or by what Cloud TPU says of its hosts; else this one is alone."""
    if coordinator:
        jax.distributed.initialize(coordinator, count, index)
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()


def agreed(answer: bool) -> bool:
    """Gives every process the first one's answer."""
    return bool(multihost_utils.broadcast_one_to_all(np.int32(answer)) if jax.process_count() > 1 else answer)


def wait_for_all(name: str) -> None:
    """Returns when every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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
