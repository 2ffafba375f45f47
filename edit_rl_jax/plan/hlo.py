"""Reads compiled modules: which collectives run how often, and how many bytes they bring to a device."""

import math
import re
from collections import defaultdict

_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """Counts the collectives of one run of a compiled module, {kind: {"count", "bytes"}}: bytes that reach a device.

    Loop bodies are multiplied by their trip counts, read from the loops' conditions; a collective that the compiler cut
    into overlapped pieces keeps its channel and counts once.
    """
    bodies: dict[str, list[str]] = {}
    entry, current = "", None
    for line in hlo.split("\n"):  # kernels in the text hold other line ends
        if m := re.match(r"(ENTRY )?%?([\w.\-]+) \(.*\) -> .* \{$", line):
            current = bodies[m[2]] = []
            entry = m[2] if m[1] else entry
        elif line == "}":
            current = None
        elif current is not None:
            current.append(line)

    found: dict[str, tuple[int, str, int]] = {}  # channel -> (times, kind, bytes)

    def walk(name: str, times: int) -> None:
        for line in bodies.get(name, ()):
            if m := re.search(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)", line):
                walk(m[2], times * _trips(bodies.get(m[1], []), bodies.get(m[2], [])))
            elif m := re.search(rf"= (.*?) ({_COLLECTIVES})(?:-start)?\(.*channel_id=(\d+)", line):
                found[m[3]] = max(found.get(m[3], (0, "", 0)), (times, m[2], _received(m[2], m[1], line)))
            else:
                for m in re.finditer(r"(?:calls|to_apply)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}", line):
                    for callee in (m[1] or m[2]).replace("%", "").split(", "):
                        walk(callee, times)

    walk(entry, 1)
    out: dict[str, dict[str, int]] = defaultdict(lambda: {"count": 0, "bytes": 0})
    for times, kind, size in found.values():
        out[kind]["count"] += times
        out[kind]["bytes"] += times * size
    return dict(out)


def _trips(condition: list[str], body: list[str]) -> int:
    """N / step of a loop "while counter < N" whose counter starts at 0; 1 where the condition has another form."""
    defined = {m[1]: line for line in (*condition, *body) if (m := re.match(r"\s*(?:ROOT )?%?([\w.\-]+) = ", line))}
    constant = lambda name: re.search(r" constant\((\d+)\)", defined.get(name, ""))
    test = next(
        (re.search(r"compare\(%?([\w.\-]+), %?([\w.\-]+)\), direction=LT", c) for c in condition if "ROOT" in c), None
    )
    bound, counter = (constant(test[2]), re.search(r"index=(\d+)", defined.get(test[1], ""))) if test else (None, None)
    if not bound or not counter:
        return 1
    root = next((re.search(r" tuple\((.*?)\)", line) for line in body if line.lstrip().startswith("ROOT")), None)
    carried = re.sub(r"/\*.*?\*/", "", root[1]).split(", ") if root else []
    update = defined.get(carried[int(counter[1])].lstrip("%"), "") if carried else ""
    added = re.search(r" add\(%?([\w.\-]+), %?([\w.\-]+)\)", update)
    step = (constant(added[2]) or constant(added[1])) if added else None
    return -(-int(bound[1]) // int(step[1] if step else 1))


def _received(kind: str, shapes: str, line: str) -> int:
    """Bytes that reach each device when a collective with that result runs once, by a ring or its equal."""
    arrays = re.findall(r"\b([a-z]+\d*)\[([\d,]*)\]", shapes)
    size = max((_BYTES.get(t, 4) * math.prod(int(n) for n in dims.split(",") if n) for t, dims in arrays), default=0)
    n = _group(line)
    factor = {"all-gather": 1 - 1 / n, "all-reduce": 2 - 2 / n, "reduce-scatter": n - 1, "all-to-all": 1 - 1 / n}
    return round(size * factor.get(kind, 1))


def _group(line: str) -> int:
    """Devices of one group of a collective."""
    if m := re.search(r"replica_groups=mesh\[([^\]]*)\] ?\{([^}]*)\}", line):
        sizes = {k: int(v) for k, v in re.findall(r"'(\w+)'=(\d+)", m[1])}
        return math.prod(sizes.get(axis, 1) for axis in re.findall(r"'(\w+)'", m[2]))
    if m := re.search(r"replica_groups=\[(\d+),(\d+)\]", line):
        return int(m[2])
    if m := re.search(r"replica_groups=\{\{([\d,]+)\}", line):
        return m[1].count(",") + 1
    return 1


def largest_gather(hlo: str) -> int:
    """Finds the largest result of an all-gather in a compiled module, in elements; 0 where there is none."""
    found = re.findall(r"= (.*?) all-gather(?:-start)?\(", hlo)
    sizes = [math.prod(int(n) for n in dims.split(",") if n) for f in found for dims in re.findall(r"\[([\d,]*)\]", f)]
    return max(sizes, default=0)
