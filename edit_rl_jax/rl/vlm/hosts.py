"""What a process does of a rollout: it writes the replies about some pairs with the weights on its own devices; then
every process has them all."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding

from edit_rl_jax.names import ConfigError
from edit_rl_jax.rl.shares import part
from edit_rl_jax.vlm.engine.engine import Answer


def own(mesh: Mesh) -> Mesh:
    """Gives the part of a mesh on this process's devices, whole copies of the weights along "data".

    Raises ConfigError where the mesh parts a copy between processes.
    """
    if jax.process_count() == 1:
        return mesh
    tensor, me = mesh.shape.get("tensor", 1), jax.process_index()
    copies = [c for c in mesh.devices.reshape(-1, tensor) if all(d.process_index == me for d in c)]
    if mesh.shape.get("fsdp", 1) > 1 or len(copies) * tensor != len(mesh.local_devices):
        raise ConfigError(
            f"config key 'mesh': {dict(mesh.shape)} parts the weights between processes; each writes replies by "
            "itself: the axis data over processes, tensor within one, fsdp 1"
        )
    return Mesh(np.array(copies), ("data", "tensor"), axis_types=(AxisType.Auto,) * 2)


def weights(tree: Any, mesh: Mesh) -> Any:
    """Gives weights as arrays on `own(mesh)`; nothing is copied."""
    if jax.process_count() == 1:
        return tree
    here = own(mesh)

    def one(x: jax.Array) -> jax.Array:
        place, shards = NamedSharding(here, x.sharding.spec), [s.data for s in x.addressable_shards]
        return jax.make_array_from_single_device_arrays(x.shape, place, shards)

    return jax.tree.map(one, tree)


def share(count: int) -> range:
    """Gives the items of this process, of `count`: neighbours, as many as of every other but the last."""
    return part(count, jax.process_index(), jax.process_count())


def gather(found: Sequence[tuple[Answer, ...]], pairs: int, group: int, longest: int) -> list[tuple[Answer, ...]]:
    """Gives every process all answers, `group` to each of two prompts a pair, from those to its `share` of the pairs.

    longest: tokens of an answer.
    """
    if jax.process_count() == 1:
        return list(found)
    count, most = 2 * pairs, 2 * -(-pairs // jax.process_count())
    tokens = np.full((most, group, longest), -1, np.int32)
    log_probs, stopped = np.zeros(tokens.shape, np.float32), np.zeros((most, group), np.bool_)
    for i, answers in enumerate(found):
        for n, one in enumerate(answers):
            tokens[i, n, : len(one.tokens)], stopped[i, n] = one.tokens, one.stopped
            log_probs[i, n, : len(one.tokens)] = one.log_probs
    every = multihost_utils.process_allgather((tokens, log_probs, stopped))
    tokens, log_probs, stopped = (x.reshape(-1, *x.shape[2:])[:count] for x in every)

    def one(i: int, n: int) -> Answer:
        length = int((tokens[i, n] >= 0).sum())
        return Answer(tokens[i, n, :length], bool(stopped[i, n]), None, log_probs[i, n, :length])

    return [tuple(one(i, n) for n in range(group)) for i in range(count)]


def total(counts: dict[str, int]) -> dict[str, int]:
    """Sums counts over the processes."""
    if jax.process_count() == 1:
        return counts
    every = multihost_utils.process_allgather(np.array(list(counts.values()), np.int32))
    return dict(zip(counts, every.sum(0).tolist()))
