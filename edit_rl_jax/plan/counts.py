"""Counts what one run of a compiled module does on a device: FLOPs, HBM traffic, bytes of arguments by name."""

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from edit_rl_jax.plan.hlo import Array, Module, Op

_FREE = (
    "parameter constant tuple get-tuple-element bitcast while conditional call iota after-all partition-id"
).split()
_FREE += ["replica-id", "opt-barrier", "add-dependency"]
Kernels = Mapping[tuple[str, frozenset[tuple[int, ...]]], int]
"""FLOPs of one call of each kernel on a device, by name and shapes of its results: what `flops.kernels` returns."""


def flops(module: Module, kernels: Kernels | None = None) -> tuple[dict[str, int], dict[str, int]]:
    """Counts FLOPs: ({"dot", "convolution", "kernel": FLOPs}, {kernel: calls} of kernels that `kernels` does not know).

    A multiply-add is two; only contractions count, as in `edit_rl_jax.flops`. A TPU's compiler writes products as
    convolutions.
    """
    found, unknown = defaultdict(int), defaultdict(int)
    for inside, op, times, _ in module.runs():
        if op.kind in ("dot", "convolution"):
            sides = [inside[name].results[0].shape for name in op.operands]
            found[op.kind] += times * (_dot if op.kind == "dot" else _convolution)(op, *sides)
        elif op.kind == "custom-call" and 'custom_call_target="tpu_custom_call"' in op.attributes:
            name = op.name.split(".")[0]
            one = (kernels or {}).get((name, frozenset(a.shape for a in op.results)))
            if one is None:
                unknown[name] += times
            else:
                found["kernel"] += times * one
    return dict(found), dict(unknown)


def _ints(pattern: str, text: str) -> list[int]:
    found = re.search(pattern, text)
    return [int(n) for n in re.split("[,x]", found[1]) if n] if found else []


def _dot(op: Op, lhs: tuple[int, ...], _: tuple[int, ...]) -> int:
    contracted = _ints(r"lhs_contracting_dims=\{([\d,]*)\}", op.attributes)
    return 2 * math.prod(op.results[0].shape) * math.prod(lhs[i] for i in contracted)


def _convolution(op: Op, lhs: tuple[int, ...], rhs: tuple[int, ...]) -> int:
    """Only products of two entries count, as XLA's own analysis has it: no padding and no dilation."""
    left, right, out = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", op.attributes).groups()
    window = re.search(r"window=\{([^}]*)\}", op.attributes)
    spatial, window = sum(c.isdigit() for c in out), window[1] if window else ""
    each = lambda key, default: _ints(rf"\b{key}=([\dx]+)", window) or [default] * spatial
    padding = re.search(r"\bpad=([\-\d_x]+)", window)
    before = [int(p.split("_")[0]) for p in padding[1].split("x")] if padding else [0] * spatial
    size, stride, dilate, spread = each("size", 1), each("stride", 1), each("lhs_dilate", 1), each("rhs_dilate", 1)
    products = 1
    for i in range(spatial):
        there, here = lhs[left.index(str(i))], op.results[0].shape[out.index(str(i))]
        places = (o * stride[i] + w * spread[i] - before[i] for o in range(here) for w in range(size[i]))
        products *= sum(p % dilate[i] == 0 and 0 <= p < (there - 1) * dilate[i] + 1 for p in places)
    groups = _ints(r"batch_group_count=(\d+)", op.attributes) or [1]
    features = rhs[right.index("i")]  # already a group's
    shape = op.results[0].shape
    return 2 * products * features * shape[out.index("b")] * shape[out.index("f")] // groups[0]


def traffic(module: Module) -> int:
    """Estimates bytes read from and written to HBM: every instruction reads its operands and writes its results once.

    What lies on the chip (`S(1)`) moves nothing; a fusion that slices an operand, or updates a slice of its result,
    moves the slice. Kernels count the same: what they read again for another block is not counted.
    """
    total = 0
    for inside, op, times, fused in module.runs():
        if fused or op.kind in _FREE or op.kind.endswith("-done") or "AllocateBuffer" in op.attributes:
            continue
        arrays = [inside[name].results for name in op.operands if name in inside]
        if op.kind.endswith("-start") and arrays and op.results:
            written = sum(a.bytes for a in op.outputs)
            source = min(_size(tuple(a for found in arrays for a in found)), written)
            total += times * (source + _size(op.outputs))
            continue
        read = sum(
            min(_read(module, inside, op, i), sum(a.bytes for a in arrays_))
            for i, arrays_ in enumerate(arrays)
            if any(a.hbm for a in arrays_)
        )
        total += times * (read + _written(module, inside, op))
    return total


def host(module: Module) -> dict[str, int]:
    """Counts bytes between a device and its host's memory: {"out", "back"}, what is written there and what is read."""
    found = {"out": 0, "back": 0}
    for inside, op, times, _ in module.runs():
        kind = op.kind.removesuffix("-start")
        if kind not in ("copy", "dynamic-update-slice", "dynamic-slice"):
            continue
        given = [a for name in op.operands if name in inside for a in inside[name].results[:1]]
        there, made = bool(given) and given[0].host, op.outputs[0]
        if kind == "copy" and given and there != made.host:
            found["back" if there else "out"] += times * made.bytes
        elif kind == "dynamic-update-slice" and there:
            found["out"] += times * given[1].bytes
        elif kind == "dynamic-slice" and there:
            found["back"] += times * made.bytes
    return found


def _size(arrays: tuple[Array, ...]) -> int:
    return sum(a.bytes for a in arrays if a.hbm)


def _read(module: Module, inside: dict[str, Op], op: Op, i: int) -> int:
    """Bytes of its i-th operand that an instruction reads."""
    if op.kind in ("dynamic-slice", "slice", "gather") and i == 0:
        return sum(a.bytes for a in op.results)
    if op.kind == "tuple" or (op.kind == "dynamic-update-slice" and i == 0):
        return 0  # passed on, or updated where it lies
    whole = sum(a.bytes for a in inside[op.operands[i]].results) if op.operands[i] in inside else 0
    if op.kind != "fusion" or not op.callees:
        return whole
    body = module.computations.get(op.callees[0], {})
    place = next((o.name for o in body.values() if o.kind == "parameter" and o.operands == (str(i),)), "")
    return min(whole, _used(module, body, place)) if place else whole


def _used(module: Module, body: dict[str, Op], name: str) -> int:
    return sum(
        _used(module, body, op.name) if _renames(module, op) else _read(module, body, op, op.operands.index(name))
        for op in body.values()
        if name in op.operands
    )


def _renames(module: Module, op: Op) -> bool:
    """Says whether a part of a fusion moves nothing: a bitcast, or a copy into another tiling where it lies (tpu7x)."""
    if op.kind != "fusion" or "output_to_operand_aliasing={{}: (0, {})}" not in op.attributes:
        return op.kind == "bitcast"
    return {o.kind for o in module.computations.get(op.callees[0], {}).values()} == {"parameter", "copy"}


def _written(module: Module, inside: dict[str, Op], op: Op, fused: bool = False) -> int:
    """Bytes of its results that an instruction writes to HBM."""
    if op.kind == "parameter" or not _size(op.results):
        return 0
    if op.kind == "dynamic-update-slice":
        return sum(a.bytes for a in inside[op.operands[1]].results)
    if (op.kind == "bitcast" or fused and _renames(module, op)) and op.operands[0] in inside:
        return _written(module, inside, inside[op.operands[0]], fused)
    if op.kind == "fusion" and op.callees:
        body = module.computations.get(op.callees[0], {})
        root = next((o for o in body.values() if o.root), None)
        if root:
            parts = [body[x] for x in root.operands if x in body] if root.kind == "tuple" else [root]
            if len(parts) == len(op.results):
                return sum(min(a.bytes, _written(module, body, p, True)) for a, p in zip(op.results, parts) if a.hbm)
    return _size(op.results)


def arguments(module: Module) -> dict[str, int]:
    """Counts a device's bytes of arguments, {name as "state['opt_state']": bytes}: the first two parts of the path."""
    out: dict[str, Any] = defaultdict(int)
    for op in module.computations.get(module.entry, {}).values():
        if op.kind == "parameter":
            name = re.search(r'op_name="([^"]*)"', op.attributes)
            path = re.match(r"\w+(?:\[[^\]]*\]|\.\w+)?", name[1].replace("\\'", "'")) if name else None
            out[path[0] if path else "unnamed"] += sum(a.bytes for a in op.results)
    return dict(out)
