"""Meshes, and the one mapping from logical axis names to mesh axes."""

from __future__ import annotations

import collections
import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.experimental import mesh_utils
from jax.experimental.layout import Format, Layout
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

MESH_AXES = ("data", "fsdp", "tensor")


class ShardingError(ValueError):
    """A tensor cannot be laid out on the mesh; the message names the tensor, the dimension and the mesh axis."""


def make_mesh(shape: Mapping[str, int], devices: Sequence[Any] | None = None) -> Mesh:
    """A mesh of `AxisType.Auto` axes out of "data" (between slices), "fsdp" and "tensor", outermost first.

    One size may be -1: what the devices leave. Uses the first devices when there are more than the shape needs. With
    "data" in one slice, what lies along the other axes stays on one host where it can.
    """
    unknown = set(shape) - set(MESH_AXES)
    if unknown:
        raise ShardingError(f"mesh axes {sorted(unknown)} are not among {MESH_AXES}")
    names = tuple(a for a in MESH_AXES if a in shape)
    devices = list(jax.devices() if devices is None else devices)
    sizes = [shape[a] for a in names]
    if -1 in sizes:
        sizes[sizes.index(-1)] = len(devices) // -math.prod(sizes)
    need = math.prod(sizes)
    if need < 1 or need > len(devices):
        raise ShardingError(f"mesh {dict(zip(names, sizes))} needs {need} devices, there are {len(devices)}")
    devices = devices[:need]
    slices = slices_of(devices)
    if slices > 1:
        if names[0] != "data" or sizes[0] % slices:
            has = dict(zip(names, sizes)).get("data", 1)
            raise ShardingError(f'{slices} slices: "data", which is {has}, has to be a multiple of {slices}')
        inner = [sizes[0] // slices, *sizes[1:]]
        array = mesh_utils.create_hybrid_device_mesh(inner, [slices] + [1] * (len(sizes) - 1), devices)
    elif names[0] == "data" and _within_hosts(devices, math.prod(sizes[1:])):
        array = np.array(sorted(devices, key=lambda d: (d.process_index, d.id))).reshape(sizes)
    elif devices[0].platform == "tpu":
        array = mesh_utils.create_device_mesh(sizes, devices, allow_split_physical_axes=True)
    else:
        array = np.array(devices).reshape(sizes)
    return Mesh(array, names, axis_types=(AxisType.Auto,) * len(names))


def slices_of(devices: Sequence[Any]) -> int:
    """Counts the TPU slices that devices lie on; of other platforms 1."""
    return len({getattr(d, "slice_index", 0) if d.platform == "tpu" else 0 for d in devices})


def _within_hosts(devices: Sequence[Any], copy: int) -> bool:
    """Whether each host of several can hold whole copies of `copy` devices: its own devices then stand together."""
    hosts = collections.Counter(d.process_index for d in devices)
    return len(hosts) > 1 and all(n % copy == 0 for n in hosts.values())


def _divisors(n: int) -> str:
    return ", ".join(str(k) for k in range(1, min(n, 1024) + 1) if n % k == 0)


@dataclasses.dataclass(frozen=True)
class Rules:
    """Logical axis name -> mesh axis, several mesh axes, or None (replicated); and the names that may be replicated."""

    table: tuple[tuple[str, str | tuple[str, ...] | None], ...]
    replicable: tuple[str, ...] = ("kv_heads",)

    def replace(self, **changes: str | tuple[str, ...] | None) -> Rules:
        """The same rules with some names mapped otherwise."""
        unknown = set(changes) - dict(self.table).keys()
        if unknown:
            raise ShardingError(f"unknown logical axes {sorted(unknown)}; known: {sorted(dict(self.table))}")
        return dataclasses.replace(self, table=tuple((dict(self.table) | changes).items()))

    def spec(self, name: str, shape: Sequence[int], axes: Sequence, mesh) -> PartitionSpec:
        """Layout of the tensor `name`. Mesh axes absent from the mesh count as size 1.

        Raises ShardingError when a logical name is unknown, when two dimensions want one mesh axis, or when a
        dimension (or its number of heads) does not divide.
        """
        if len(shape) != len(axes):
            raise ShardingError(f"{name}: shape {tuple(shape)} has {len(shape)} dimensions, its axes {tuple(axes)}")
        table, used, out = dict(self.table), {}, []
        for i, (size, axis) in enumerate(zip(shape, axes)):
            logical, units = axis if isinstance(axis, tuple) else (axis, size)
            if logical is not None and logical not in table:
                raise ShardingError(f"{name}: unknown logical axis {logical!r}")
            want = None if logical is None else table[logical]
            want = (want,) if isinstance(want, str) else want or ()
            want = tuple(a for a in want if mesh.shape.get(a, 1) > 1)
            parts = math.prod(mesh.shape[a] for a in want)
            if units % parts:
                if logical in self.replicable and parts % units == 0:
                    want = ()
                else:
                    raise ShardingError(
                        f"{name}: dimension {i} ({logical}, {units} units of {tuple(shape)}) does not divide over "
                        f"{'x'.join(want)}={parts}; it does over {_divisors(units)}"
                    )
            for a in want:
                if a in used:
                    raise ShardingError(
                        f"{name}: dimensions {used[a]} and {i} of {tuple(axes)} both want mesh axis {a!r}"
                    )
                used[a] = i
            out.append(want if len(want) > 1 else want[0] if want else None)
        return PartitionSpec(*out)


DEFAULT_RULES = Rules(
    (
        # parameters
        ("layers", None),
        ("embed", "fsdp"),
        ("heads", "tensor"),
        ("kv_heads", "tensor"),
        ("mlp", "tensor"),
        ("vocab", "tensor"),
        ("vision_embed", "fsdp"),
        ("vision_qkv", None),
        ("vision_heads", "tensor"),
        ("vision_mlp", "tensor"),
        ("lora_rank", None),
        # activations
        ("batch", ("data", "fsdp")),
    )
)


def shardings(abstract_state: Any, mesh: Mesh, rules: Rules = DEFAULT_RULES) -> Any:
    """The tree of NamedSharding of a (possibly abstract) state of Variables with `axes` metadata.

    Prints once, for the tree, when there are fewer KV heads than the tensor axis has chips: their keys and values are
    then kept so many times, and their weights lie whole on every chip.
    """
    replicated: dict[str, tuple[int, int]] = {}

    def one(path, v):
        axes = v.get_metadata().get("axes")
        name = path_name(path)
        if axes is None:
            raise ShardingError(f"{name}: has no `axes` metadata")
        axes = ("layers",) * (len(v.shape) - len(axes)) + tuple(axes)
        spec = rules.spec(name, v.shape, axes, mesh)
        for axis, placed in zip(axes, spec):
            if isinstance(axis, tuple) and axis[0] in rules.replicable and placed is None:
                want = dict(rules.table)[axis[0]]
                parts = mesh.shape.get(want, 1) if isinstance(want, str) else 1
                if parts > axis[1]:
                    replicated[axis[0]] = parts // axis[1], parts
        return v.replace(NamedSharding(mesh, spec))

    tree = jax.tree.map_with_path(one, abstract_state, is_leaf=lambda x: isinstance(x, nnx.Variable))
    for logical, (factor, parts) in replicated.items():
        print(f"sharding: {logical} replicated {factor}x over the tensor axis of {dict(mesh.shape)}, weights {parts}x")
    return tree


def row_major(ndim: int, place: jax.sharding.Sharding) -> Format:
    """Lays an array out by rows, as a decode loop reads weights.

    By itself the TPU's compiler turns a matrix whose width is no multiple of 128, such as 29,568 / 16, to pad less; the
    loop wants it by rows, so each call of it would first copy all such matrices.
    """
    return Format(Layout(tuple(range(ndim))), place)


def laid_by_rows(state: Any) -> Any:
    """Lays all arrays of a state out by rows, each given up for its copy; those that are so stay."""

    def one(x: jax.Array) -> jax.Array:
        wanted = row_major(x.ndim, x.sharding)
        same = x.format.layout.major_to_minor == wanted.layout.major_to_minor
        return x if same else jax.device_put(x, wanted, donate=True)

    return jax.tree.map(one, state)


def path_name(path) -> str:
    """A pytree path as a dotted name."""
    return ".".join(str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in path)


def batch_shardings(batch: Any, mesh: Mesh, accum: bool = False, rules: Rules = DEFAULT_RULES) -> Any:
    """NamedSharding of every array of a batch: rows over (data, fsdp); `accum`: a leading accumulation axis before."""
    lead = (None,) if accum else ()

    def one(path, a):
        axes = (*lead, "batch") + (None,) * (len(a.shape) - len(lead) - 1)
        return NamedSharding(mesh, rules.spec(path_name(path), a.shape, axes, mesh))

    return jax.tree.map_with_path(one, batch)


def row_shards(rules: Rules = DEFAULT_RULES) -> int:
    """Counts the parts that rows of a batch are laid out in on the mesh of `jax.set_mesh`; 1 outside of it."""
    axes = dict(rules.table)["batch"] or ()
    mesh = jax.sharding.get_abstract_mesh()
    return math.prod(mesh.shape.get(a, 1) for a in ((axes,) if isinstance(axes, str) else axes))


def shard(x: jax.Array, *axes, rules: Rules = DEFAULT_RULES) -> jax.Array:
    """Constrains an activation to the layout of its logical axes; does nothing outside `jax.set_mesh`."""
    mesh = jax.sharding.get_abstract_mesh()
    if mesh.empty:
        return x
    return jax.lax.with_sharding_constraint(x, rules.spec("activation", x.shape, axes, mesh))
