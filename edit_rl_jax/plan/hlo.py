"""Reads compiled modules: which instructions run how often, and the collectives among them with the bytes they bring.

Loop bodies are multiplied by their trip counts, which the compiler notes or the loops' conditions say; of a conditional
every branch counts.
"""

import dataclasses
import math
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping

import numpy as np

COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}
_OP = re.compile(r"\s*(ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\(((?:[^()]|\([^()]*\))*)\)(.*)", re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Array:
    """One array of a result: its dtype's name, shape, whether it lies in HBM (not on the chip, `S(1)`), and whether in
    the host's memory (`S(5)`)."""

    dtype: str
    shape: tuple[int, ...]
    hbm: bool = True
    host: bool = False

    @property
    def bytes(self) -> int:
        """Its size, padding of the layout not counted."""
        return _BYTES.get(self.dtype, 1 if self.dtype.startswith("f8") else 4) * math.prod(self.shape)


@dataclasses.dataclass(frozen=True)
class Op:
    """One instruction: name, kind ("fusion"), results, names of operands, and what is written after them."""

    name: str
    kind: str
    results: tuple[Array, ...]
    operands: tuple[str, ...]
    attributes: str
    root: bool

    @property
    def outputs(self) -> tuple[Array, ...]:
        """What it gives; of one that only starts, which may name its operands first and then scratch, what it will.

        The compiler combines collectives: one instruction then has several operands and as many outputs.
        """
        n = len(self.operands)
        if self.kind in ("dynamic-slice-start", "dynamic-update-slice-start"):
            return self.results[n : n + 1]
        if not self.kind.endswith("-start") or len(self.results) < 2 * n:
            return self.results
        return self.results[:n] if self.kind == "copy-start" else self.results[n : 2 * n]

    @property
    def callees(self) -> list[str]:
        """Names of the computations that it runs once: those of fusions, calls and conditionals."""
        if self.kind == "conditional":
            found = re.search(r"branch_computations=\{([^}]*)\}", self.attributes)
            names = (
                found[1] if found else ",".join(re.findall(r"(?:true|false)_computation=(%?[\w.\-]+)", self.attributes))
            )
            return names.replace("%", "").replace(" ", "").split(",")
        return re.findall(r"(?:calls|to_apply)=%?([\w.\-]+)", self.attributes)


def _arrays(text: str) -> tuple[Array, ...]:
    found = re.findall(r"\b([a-z]+\d*\w*)\[([\d,]*)\](\{[^{}]*\})?", text)
    return tuple(
        Array(t, tuple(int(n) for n in dims.split(",") if n), not re.search(r"S\([1-9]", place), "S(5)" in place)
        for t, dims, place in found
    )


class Module:
    """A compiled module: {computation: {name: Op}}, the name of the first computation that runs, and `unknown`: loops
    whose trip count is not said, which are counted once."""

    def __init__(self, text: str):
        self.computations: dict[str, dict[str, Op]] = {}
        self.entry, self.unknown, current = "", set[str](), None
        for line in text.split("\n"):  # kernels in the text hold other line ends
            if m := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
                current = self.computations[m[2]] = {}
                self.entry = m[2] if m[1] else self.entry
            elif line == "}":
                current = None
            elif current is not None and (m := _OP.match(line)):
                operands = tuple(re.findall(r"%([\w.\-]+)", m[5])) or tuple(filter(None, [m[5].strip()]))
                current[m[2]] = Op(m[2], m[4], _arrays(m[3]), operands, m[6], bool(m[1]))

    def runs(
        self, name: str = "", times: int = 1, fused: bool = False
    ) -> Iterator[tuple[dict[str, Op], Op, int, bool]]:
        """Yields (its computation, instruction, how often it runs, whether it is part of a fusion)."""
        inside = self.computations.get(name or self.entry, {})
        for op in inside.values():
            yield inside, op, times, fused
            if op.kind == "while":
                condition, body = (re.search(rf"{k}=%?([\w.\-]+)", op.attributes)[1] for k in ("condition", "body"))
                yield from self.runs(body, times * self._trips(op, condition, body), fused)
            else:
                for callee in op.callees:
                    yield from self.runs(callee, times, fused or op.kind == "fusion")

    def _trips(self, loop: Op, condition: str, body: str) -> int:
        """What the compiler noted, or N / step of "while counter < N" whose counter starts at 0; 1 if neither is."""
        if m := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.attributes):
            return int(m[1])
        tests, moves = self.computations.get(condition, {}), self.computations.get(body, {})
        constant = lambda name: next(
            (int(op.operands[0]) for ops in (tests, moves) if (op := ops.get(name)) and op.kind == "constant"), None
        )
        root = next((op for op in tests.values() if op.root), None)
        less = root and root.kind == "compare" and "direction=LT" in root.attributes
        counter = tests.get(root.operands[0]) if less else None
        bound = constant(root.operands[1]) if less else None
        index = re.search(r"index=(\d+)", counter.attributes) if counter else None
        if bound is None or not index:
            self.unknown.add(loop.name)
            return 1
        carried = next((op for op in moves.values() if op.root), None)
        update = moves.get(carried.operands[int(index[1])]) if carried and carried.kind == "tuple" else None
        added = [constant(x) for x in update.operands] if update and update.kind == "add" else []
        return -(-bound // next((n for n in reversed(added) if n), 1))


def collectives(hlo: str | Module, mesh: Mapping[str, int] | None = None) -> dict[str, dict]:
    """Counts the collectives of one run of a module, {kind: {"count", "bytes"}}: bytes that reach a device.

    With a mesh ({axis: size}, outermost first), {axes: {kind: ...}} by the mesh axes that a group spans: "fsdp", or
    "data+fsdp". A collective that the compiler cut into overlapped pieces keeps its channel and counts once.
    """
    found: dict[str, tuple[int, str, int, str]] = {}  # channel -> (times, kind, bytes, axes)
    for _, op, times, _ in (hlo if isinstance(hlo, Module) else Module(hlo)).runs():
        kind, channel = op.kind.removesuffix("-start"), re.search(r"channel_id=(\d+)", op.attributes)
        if kind in COLLECTIVES and channel:
            groups = _groups(op.attributes)
            size = _received(kind, op, max(map(len, groups), default=1))
            new = (times, kind, size, _axes(groups, mesh) if mesh else "")
            found[channel[1]] = max(found.get(channel[1], (0, "", 0, "")), new)
    out: dict = defaultdict(lambda: defaultdict(lambda: {"count": 0, "bytes": 0}))
    for times, kind, size, axes in found.values():
        out[axes][kind]["count"] += times
        out[axes][kind]["bytes"] += times * size
    plain = {axes: dict(kinds) for axes, kinds in out.items()}
    return plain if mesh else plain.get("", {})


def _received(kind: str, op: Op, n: int) -> int:
    """Bytes that reach each device when a collective runs once among n, by a ring or its equal."""
    size = sum(a.bytes for a in op.outputs)
    factor = {"all-gather": 1 - 1 / n, "all-reduce": 2 - 2 / n, "reduce-scatter": n - 1, "all-to-all": 1 - 1 / n}
    return round(size * factor.get(kind, 1))


def _groups(attributes: str) -> list[list[int]]:
    """Groups of devices of a collective, by their places in the mesh; of a permutation its (source, target) pairs."""
    ints = lambda text: [int(n) for n in re.findall(r"\d+", text)]
    if m := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", attributes):
        sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", m[1])}
        over = [axis for axis in re.findall(r"'(\w+)'", m[2]) if axis in sizes]
        ids = np.arange(math.prod(sizes.values())).reshape(list(sizes.values()))
        ids = np.moveaxis(ids, [list(sizes).index(a) for a in over], range(-len(over), 0))
        return ids.reshape(-1, math.prod(sizes[a] for a in over)).tolist()
    if m := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", attributes):
        ids = np.arange(int(m[1]) * int(m[2])).reshape(ints(m[3]))
        return (ids.transpose(ints(m[4])) if m[4] else ids).reshape(int(m[1]), int(m[2])).tolist()
    if m := re.search(r"(?:replica_groups|source_target_pairs)=\{(\{[\d,{} ]*\})\}", attributes):
        return [ints(group) for group in re.findall(r"\{([\d, ]+)\}", m[1])]
    return []


def _axes(groups: list[list[int]], mesh: Mapping[str, int]) -> str:
    """Names the mesh axes along which the devices of a group differ; of no groups all axes."""
    shape, spanned = tuple(mesh.values()), np.zeros(len(mesh), bool)
    for group in groups:
        places = np.stack(np.unravel_index(group, shape))
        spanned |= (places != places[:, :1]).any(1)
    named = [axis for axis, spans in zip(mesh, spanned if groups else np.ones(len(mesh), bool)) if spans]
    return "+".join(named) or "none"


def largest_gather(hlo: str | Module) -> int:
    """Finds the largest result of an all-gather in a compiled module, in elements; 0 where there is none."""
    module = hlo if isinstance(hlo, Module) else Module(hlo)
    gathers = (op for ops in module.computations.values() for op in ops.values() if op.kind.startswith("all-gather"))
    return max((math.prod(a.shape) for op in gathers for a in op.results), default=0)
