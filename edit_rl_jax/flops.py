"""The one FLOP counter: a walk over the jaxpr of a function.

A multiply-add is two FLOPs; only contractions are counted (dot products, convolutions, kernels), as is usual for MFU.
Unlike XLA's own estimate, loop bodies are multiplied by their length and Pallas kernels are counted.

Conventions
    scan         body x length.        cond   the most expensive branch.
    while        body x `while_trips` (a jaxpr does not say how often it runs; 1 unless told).
    shard_map    body x number of devices of its manual axes: the result is always the total over all devices.
    pallas_call  kernel body x grid. Splash kernels with a causal mask: only the blocks on or under the diagonal.
    remat=False  *model* FLOPs, what MFU wants: what `jax.checkpoint` computes again in the backward pass, and the
                 scores that a flash kernel computes again there, are left out. `remat=True`: what the device executes,
                 so without what nothing reads (`jax.checkpoint` repeats whole kernels whose results were kept).
Masked-out scores that are computed count: plain dots as the jaxpr has them, kernels by whole blocks. For weights of N
entries a token then costs 2N forward, 4N with gradients of adapters only (LoRA), 6N with gradients of all weights,
plus attention.
"""

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import jax
from jax.extend import core
from jax.interpreters.partial_eval import dce_jaxpr

# Share of a splash kernel's dots that are not recomputation: dq repeats scores and dp, dkv repeats scores, keeps dp.
_SPLASH_MODEL_SHARE = {"_dq": 1 / 3, "_dkv": 3 / 4}


def count(fn: Callable[..., Any], *args: Any, remat: bool = False, while_trips: int = 1) -> int:
    """FLOPs of `fn(*args)` over all devices. `args` are arrays or `jax.ShapeDtypeStruct`s; nothing is run."""
    return sum(count_by_kind(fn, *args, remat=remat, while_trips=while_trips).values())


def count_by_kind(fn: Callable[..., Any], *args: Any, remat: bool = False, while_trips: int = 1) -> dict[str, int]:
    """As `count`, split: "linear" (dots without batch dimensions), "batched" (attention by dots), "conv", "kernel"."""
    return of_jaxpr(jax.make_jaxpr(fn)(*args).jaxpr, remat, while_trips)


def of_jaxpr(jaxpr: core.Jaxpr, remat: bool = False, while_trips: int = 1) -> dict[str, int]:
    """As `count_by_kind`, of what is traced already."""
    totals: dict[str, float] = defaultdict(float)
    if remat:
        jaxpr, _ = dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars), instantiate=True)
    _walk(jaxpr, 1.0, remat, while_trips, totals)
    return {kind: round(value) for kind, value in totals.items()}


def kernels(jaxpr: Any, while_trips: int = 1) -> dict[tuple[str, frozenset[tuple[int, ...]]], int]:
    """FLOPs of one call of each Pallas kernel in a jaxpr on a device, by its name and the shapes of its results."""
    found = {}
    for eqn in getattr(jaxpr, "jaxpr", jaxpr).eqns:
        if eqn.primitive.name == "pallas_call":
            shapes = frozenset(v.aval.shape for v in eqn.outvars)
            found[_kernel_name(eqn), shapes] = round(_kernel(eqn, True, while_trips))
        for sub in _subjaxprs(eqn.params):
            found |= kernels(sub, while_trips)
    return found


def _walk(jaxpr: Any, times: float, remat: bool, while_trips: int, totals: dict[str, float]) -> None:
    for eqn in jaxpr.eqns:
        # jax.checkpoint names the part of the backward pass that it computes again.
        if not remat and "rematted_computation" in str(eqn.source_info.name_stack):
            continue
        name, params = eqn.primitive.name, eqn.params
        if name == "dot_general":
            batch = params["dimension_numbers"][1][0]
            totals["batched" if batch else "linear"] += times * _dot(eqn)
        elif name in ("ragged_dot", "ragged_dot_general"):
            (m, k), n = eqn.invars[0].aval.shape[-2:], eqn.invars[1].aval.shape[-1]
            totals["linear"] += times * 2 * m * k * n
        elif name == "conv_general_dilated":
            kernel, out_dim = eqn.invars[1].aval.shape, params["dimension_numbers"].rhs_spec[0]
            totals["conv"] += times * 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(kernel) / kernel[out_dim]
        elif name == "pallas_call":
            totals["kernel"] += times * _kernel(eqn, remat, while_trips)
        elif name == "cond":
            branches = [defaultdict(float) for _ in params["branches"]]
            for branch, found in zip(params["branches"], branches):
                _walk(branch.jaxpr, times, remat, while_trips, found)
            for kind, value in max(branches, key=lambda found: sum(found.values())).items():
                totals[kind] += value
        else:
            inner = times * {"scan": params.get("length", 1), "while": while_trips}.get(name, 1)
            if name == "shard_map":
                inner *= math.prod(params["mesh"].shape[axis] for axis in params["newly_manual_axes"])
            for sub in _subjaxprs(params):
                _walk(sub, inner, remat, while_trips, totals)


def _subjaxprs(params: dict[str, Any]) -> list[Any]:
    found = []
    for value in params.values():
        for item in value if isinstance(value, (tuple, list)) else (value,):
            if isinstance(item, core.ClosedJaxpr):
                found.append(item.jaxpr)
            elif isinstance(item, core.Jaxpr):
                found.append(item)
    return found


def _dot(eqn: Any) -> int:
    (contracting, _), _ = eqn.params["dimension_numbers"]
    lhs = eqn.invars[0].aval.shape
    return 2 * math.prod(eqn.outvars[0].aval.shape) * math.prod(lhs[i] for i in contracting)


def _kernel(eqn: Any, remat: bool, while_trips: int) -> float:
    body: dict[str, float] = defaultdict(float)
    _walk(eqn.params["jaxpr"], 1.0, True, while_trips, body)
    mapping = eqn.params["grid_mapping"]
    flops = sum(body.values()) * math.prod(mapping.grid)
    name = _kernel_name(eqn)
    if not name.startswith("splash_"):
        return flops
    if mapping.num_inputs in (
        6,
        9,
    ):  # q, k, v, segments (+ 3 in the backward pass) and positions: causal, square blocks
        blocks = mapping.grid[-1]
        flops *= (blocks + 1) / (2 * blocks)
    if not remat:
        flops *= next((share for key, share in _SPLASH_MODEL_SHARE.items() if key in name), 1.0)
    return flops


def _kernel_name(eqn: Any) -> str:
    return str(eqn.params.get("name_and_src_info", eqn.params.get("name", ""))).split(" ")[0]
