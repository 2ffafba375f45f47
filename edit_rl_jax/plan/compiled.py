"""Compiles the programs of a job for devices that are only described, and says what each costs.

Every kind of job is a sequence of `Job`s, one a program; every program of every plan has the same figures.
"""

import contextlib
import dataclasses
import math
import re
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax

from edit_rl_jax import flops
from edit_rl_jax.chips import Chip
from edit_rl_jax.plan import counts, links, predict
from edit_rl_jax.plan.hlo import Module, collectives, largest_gather

EFFORT = "jax_exec_time_optimization_effort"  # a setting of JAX, from -1 to 1
KINDS = {  # of arguments by their names in the programs
    "state['trainable']": "trainable",
    "state['opt_state']": "optimizer",
    "state['ema']": "moving average",
    "state['old']": "old weights",
    "trainable": "trainable",
}


class DoesNotFit(RuntimeError):
    """A program wants more HBM than a device has. `over`: bytes too many on a device; None where it is not said."""

    def __init__(self, message: str, over: int | None):
        super().__init__(message)
        self.over = over


class Lowered(NamedTuple):
    """A program, lowered, the FLOPs of its kernels, which a compiled module does not tell, and its jaxpr."""

    stage: Any
    kernels: counts.Kernels
    jaxpr: Any

    def flops(self) -> dict[str, int]:
        """Counts {"model": those that the mathematics needs, "executed": those that are done} over all devices."""
        count = lambda remat: sum(flops.of_jaxpr(self.jaxpr, remat).values())
        return {"model": count(False), "executed": count(True)}


def lower(program: Any, *args: Any, **static: Any) -> Lowered:
    """Lowers a jitted program for these arguments."""
    traced = program.trace(*args, **static)
    return Lowered(traced.lower(), flops.kernels(traced.jaxpr), traced.jaxpr.jaxpr)


@dataclasses.dataclass(frozen=True)
class Job:
    """One program of a plan, lowered.

    Attributes:
      name: how tables and files call it.
      lowered: what `lower` gave.
      devices: how many it runs on.
      beside: {what: bytes a device} of arrays that lie there and are no arguments of it.
      resident: bytes a device of weights that lie there whether the program reads them or not (0: those that it reads).
      model, executed: FLOPs that its mathematics needs and that are done, over all devices; None where not counted.
      mesh: what it lies on, for the rates of its links. items: (how many of what one run handles).
      kinds: beginnings of its arguments' names -> what they are, beside `KINDS`. host: bytes on a host, by occasion.
      more: further figures, as they are.
    """

    name: str
    lowered: Lowered
    devices: int
    beside: Mapping[str, int] = dataclasses.field(default_factory=dict)
    resident: int = 0
    model: int | None = None
    executed: int | None = None
    mesh: Any = None
    items: tuple[int, str] | None = None
    kinds: Mapping[str, str] = dataclasses.field(default_factory=dict)
    host: Mapping[str, int] = dataclasses.field(default_factory=dict)
    more: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def resident(tree: Any) -> int:
    """Counts the bytes of an abstract tree on one device."""
    return sum(math.prod(x.sharding.shard_shape(x.shape)) * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _by_kind(arguments: Mapping[str, int], kinds: Mapping[str, str]) -> dict[str, int]:
    out: dict[str, int] = defaultdict(int)
    for name, size in arguments.items():
        known = next((kind for start, kind in kinds.items() if name.startswith(start)), None)
        out[known or re.split(r"[\[.]", name)[0]] += size
    return dict(out)


def compile_job(job: Job, chip: Chip, price: float | None = None, quick: bool = False) -> dict[str, Any]:
    """Compiles a program and returns its figures: bytes are a device's, FLOPs all devices' together, times seconds.

    price: US dollars a chip and hour. quick: see `compile_fitting`; what needs HBM traffic is then at most so.

    Raises DoesNotFit where the compiler refuses it, or where it and what lies beside it want more than a device has.
    """
    start = time.monotonic()
    compiled = compile_fitting(job.lowered.stage, quick)
    seconds = time.monotonic() - start
    memory, text = compiled.memory_analysis(), compiled.as_text()
    beside = dict(job.beside)
    if (unread := job.resident - memory.argument_size_in_bytes) > 0:
        beside["weights that it does not read"] = unread
    module = Module(text)
    moved, (done, uncounted) = collectives(module), counts.flops(module, job.lowered.kernels)
    out = {
        "program": job.name,
        "bytes_per_device": {
            "arguments": memory.argument_size_in_bytes,
            "by_kind": _by_kind(counts.arguments(module), {**job.kinds, **KINDS}),
            "temporaries": memory.temp_size_in_bytes,
            "outputs": memory.output_size_in_bytes,
            "aliased": memory.alias_size_in_bytes,
            "peak": memory.peak_memory_in_bytes,
            "beside": beside,
            "together": memory.peak_memory_in_bytes + sum(beside.values()),
            "usable_hbm": chip.hbm,
        },
        "collectives": moved,
        "largest_gather": largest_gather(module),
        "compile_s": round(seconds, 1),
        **job.more,
    }
    traffic, with_host = counts.traffic(module), counts.host(module)
    each, rates = {"all": moved}, {"all": chip.ici}
    if job.mesh is not None:
        each = collectives(module, job.mesh.shape)
        rates = {axes: links.bandwidth(job.mesh, axes, chip) for axes in each}
        out["collectives_by_axes"] = each
    received = {axes: (sum(c["bytes"] for c in kinds.values()), rates[axes]) for axes, kinds in each.items()}
    out["flops"] = {"model": job.model, "executed": job.executed, "program": sum(done.values()) * job.devices}
    out["flops_by_kind"], out["hbm_traffic"], out["host_bytes"] = done, traffic, dict(job.host)
    if any(with_host.values()):
        processes = [0] if job.mesh is None else [d.process_index for d in job.mesh.devices.flat]
        out["host_traffic"] = with_host
        out["host_bytes"]["offloaded"] = memory.host_temp_size_in_bytes * processes.count(processes[0])
    out["not_counted"] = {"kernels": uncounted, "loops": sorted(module.unknown)}
    out["predicted"] = predict.predict(
        chip,
        job.devices,
        flops=done,
        traffic=traffic,
        links=received,
        host=max(with_host.values()),
        model=job.model,
        items=job.items,
        price=price,
    )
    refuse(out)
    return out


def refuse(program: Mapping[str, Any]) -> None:
    """Raises DoesNotFit where the figures of a program say that it and what lies beside it do not fit."""
    memory = program["bytes_per_device"]
    if (over := memory["together"] - memory["usable_hbm"]) > 0:
        beside = ", ".join(f"{name} {size}" for name, size in memory["beside"].items())
        what = f"{program['program']} ({memory['peak']} bytes)" + (
            f" and what lies beside it ({beside})" if beside else ""
        )
        raise DoesNotFit(f"{what}: {memory['together']} of {memory['usable_hbm']} bytes a device", over)


def compile_fitting(lowered: Any, quick: bool = False) -> Any:
    """Compiles a lowered program; the compiler's refusal for want of memory becomes DoesNotFit.

    quick: with the least effort. FLOPs and collectives are then those of the whole compilation, peaks within 6% of its;
    instructions are fused less, so HBM traffic is up to 2.3 times as much (measured: docs/plan.md).
    """
    try:
        with _least_effort() if quick else contextlib.nullcontext():
            return lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        raise _refusal(str(error)) from error


@contextlib.contextmanager
def _least_effort() -> Iterator[None]:
    """Lets the compiler do the least for a short execution."""
    before = getattr(jax.config, EFFORT)
    jax.config.update(EFFORT, -1.0)
    try:
        yield
    finally:
        jax.config.update(EFFORT, before)


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
