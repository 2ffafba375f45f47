"""Weights at the jit boundary: flat dicts {dotted name: array}, sorted by name.

Optimizer masks, checkpoints, checksums and error messages all speak in these names; `nnx.State` with its metadata
(logical axes) is kept abstract and used only to derive shardings and to merge the model back together.
"""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, UInt32

Flat = dict[str, Any]


def flatten(state: nnx.State) -> Flat:
    """Flattens a state: {dotted path: value} of every variable."""
    return {
        ".".join(map(str, path)): v.get_value() for path, v in sorted(nnx.to_flat_state(state), key=lambda x: str(x[0]))
    }


def unflatten(template: nnx.State, flat: Mapping[str, Any]) -> nnx.State:
    """Makes a state shaped like `template` (abstract or not) of `flat`'s values. KeyError names a missing one."""
    return nnx.from_flat_state([(p, v.replace(flat[".".join(map(str, p))])) for p, v in nnx.to_flat_state(template)])


def abstract(tree: Any, shardings: Any) -> Any:
    """Makes `tree` abstract: `jax.ShapeDtypeStruct`s that carry the shardings."""
    return jax.tree.map(lambda a, s: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=s), tree, shardings)


def global_norm(flat: Any) -> Array:
    """Computes the L2 norm over all leaves, fp32."""
    return jnp.sqrt(sum((jnp.sum(jnp.square(x.astype(jnp.float32))) for x in jax.tree.leaves(flat)), jnp.float32(0)))


def checksum(x: Array) -> UInt32[Array, ""]:
    """Adds up the bits, weighted by position, modulo 2^32: the same on every mesh, changed by any one flipped bit.

    Integer addition is associative, so the order in which devices add does not matter; the weights are odd, so a flip
    of bit k changes the sum by 2^k times an odd number, which is never 0 modulo 2^32.
    """
    size = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[x.dtype.itemsize]
    bits = x.astype(jnp.uint8) if x.dtype == jnp.bool_ else jax.lax.bitcast_convert_type(x, size)
    weights = jnp.zeros(x.shape, jnp.uint32)
    stride = 1
    for axis in reversed(range(x.ndim)):  # row-major index, built by broadcasting so that it shards like x
        weights = weights + jax.lax.broadcasted_iota(jnp.uint32, x.shape, axis) * jnp.uint32(stride % 2**32)
        stride *= x.shape[axis]
    return jnp.sum(bits.astype(jnp.uint32) * (2 * weights + 1), dtype=jnp.uint32)


@jax.jit
def checksums(tree: Any) -> Any:
    """Takes the `checksum` of every leaf."""
    return jax.tree.map(checksum, tree)


def digest(plain: Any) -> str:
    """Takes the SHA-256, in hex, of a value that JSON can hold: the same after it was written and read."""
    return hashlib.sha256(json.dumps(json.loads(json.dumps(plain)), sort_keys=True).encode()).hexdigest()


def whole_checksum(tree: Any) -> str:
    """Adds up the `checksums` of a tree on the devices: 8 hex digits."""
    return f"{sum(int(c) for c in checksums(tree).values()) % 2**32:08x}"
