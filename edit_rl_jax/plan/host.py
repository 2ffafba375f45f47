"""Host memory of a load and of a checkpoint, by formula."""

import math
from typing import Any

import jax

ASSUMPTIONS = (
    "host memory, the host that needs most: a load holds one stacked tensor's slices of the host's devices at a time, "
    "in the dtype of the model, and one layer's tensor as it is read; an asynchronous save holds a copy of every part "
    "of the state that lies on the host's devices, each once; Python, the compiler and the data pipeline come on top"
)


def share(x: Any, process: int) -> int:
    """Bytes of the distinct parts of an abstract array that lie on the devices of a process."""
    places = x.sharding.devices_indices_map(x.shape).items()
    parts = {str(index) for device, index in places if device.process_index == process}
    return len(parts) * math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize


def memory(frozen: Any, state: Any) -> dict[str, int]:
    """Gives {"load", "checkpoint": bytes} of abstract weights and of what a checkpoint holds."""
    everything = jax.tree.leaves(state)
    devices = everything[0].sharding.device_set
    processes = {d.process_index for d in devices}

    def load(x, process):  # the first axis of a stacked tensor is its layers
        layer = math.prod(x.shape[1:] if len(x.shape) > 2 else x.shape) * x.dtype.itemsize
        return share(x, process) + layer

    return {
        "load": max(load(x, p) for p in processes for x in jax.tree.leaves(frozen) or everything),
        "checkpoint": max(sum(share(x, p) for x in everything) for p in processes),
    }
