"""What a compiled training step costs: bytes a device, FLOPs, collectives, and the time that a roofline predicts."""

import math
import re
from collections import defaultdict
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from edit_rl_jax.topology import Chip
from edit_rl_jax.training.build import Program

ASSUMPTIONS = (
    "roofline: matrix units at their peak, every ICI link busy, HBM traffic not counted; step_s overlaps computation "
    "and communication perfectly, step_no_overlap_s not at all"
)
_COLLECTIVES = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "s64": 8, "u64": 8, "f64": 8}


class DoesNotFit(RuntimeError):
    """The compiler refused a program for want of HBM. `over`: bytes too many on a device; None where it is not said."""

    def __init__(self, message: str, over: int | None):
        super().__init__(message)
        self.over = over


def compile_step(program: Program, bucket: Any) -> Any:
    """The compiled step of one bucket, also for devices only described. Raises DoesNotFit, with the overshoot."""
    number = jax.ShapeDtypeStruct((), jnp.int32)
    with jax.set_mesh(program.mesh):
        batch = program.batches[bucket]
        return compile_fitting(program.step.lower(program.trainable, program.opt_state, program.frozen, batch, number))


def compile_fitting(lowered: Any) -> Any:
    """`lowered.compile()`; the compiler's refusal for want of memory becomes DoesNotFit."""
    try:
        return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _refusal(str(error)) from error


def _refusal(text: str) -> DoesNotFit:
    size = lambda m: float(m[1]) * {"K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}[m[2]]
    if m := re.search(r"[Ee]xceed(?:ed|s) hbm capacity by ([\d.]+)([KMGT])", text):
        over = size(m)
    else:
        need = re.search(r"([\d.]+)([KMGT])\)? exceeds available HBM", text)
        have = re.search(r"exceeds available HBM \(([\d.]+)([KMGT])\)", text)
        over = size(need) - size(have) if need and have else None
    first = next((line for line in text.splitlines() if re.search("hbm", line, re.I)), text.splitlines()[0])
    return DoesNotFit(first.strip(), None if over is None else round(over))


def report(program: Program, bucket: Any, compiled: Any, chip: Chip) -> dict[str, Any]:
    """Figures of one bucket's step, as `figures`."""
    model, executed = program.model_flops(bucket), program.model_flops(bucket, remat=True)
    return {"bucket": str(bucket)} | figures(program.mesh, compiled, chip, model, executed)


def figures(mesh: Mesh, compiled: Any, chip: Chip, model: int, executed: int) -> dict[str, Any]:
    """Figures of a compiled program whose mathematics needs `model` and whose devices do `executed` FLOPs; bytes are a
    device's, FLOPs are all devices' together, seconds a run's."""
    memory, devices = compiled.memory_analysis(), mesh.size
    moved = collectives(compiled.as_text())
    compute_s = executed / devices / chip.flops
    ici_s = sum(c["bytes"] for c in moved.values()) / chip.ici
    step_s = max(compute_s, ici_s)
    return {
        "bytes_per_device": {
            "arguments": memory.argument_size_in_bytes,
            "temporaries": memory.temp_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "usable_hbm": chip.hbm,
        },
        "flops": {"model": model, "executed": executed},
        "collectives": moved,
        "predicted": {
            "compute_s": compute_s,
            "ici_s": ici_s,
            "step_s": step_s,
            "step_no_overlap_s": compute_s + ici_s,
            "mfu_at_most": model / devices / chip.flops / step_s,
        },
    }


def collectives(hlo: str) -> dict[str, dict[str, int]]:
    """{kind: {"count", "bytes"}} of one run of a compiled module: executions, and bytes that reach a device.

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
