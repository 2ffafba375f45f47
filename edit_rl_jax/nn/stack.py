"""Layers of one kind stacked on a leading axis and run by scan with rematerialisation."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, TypeVar

import jax
from flax import nnx

M = TypeVar("M", bound=nnx.Module)

# What a layer names of what it computes (`vlm.text`, `attention`, the editors' blocks), by the work that each saves a
# token: the projections q, k and v; the attention's output; its projection; the halves of the gated feed-forward (a
# plain one has "up" alone); what it gives ("down"), where the backward pass wants it.
ATTENTION = ("qkv", "attention", "attended")
_save = jax.checkpoint_policies.save_only_these_names
_offload = jax.checkpoint_policies.save_and_offload_only_these_names

REMAT_POLICIES = {
    "nothing_saveable": jax.checkpoint_policies.nothing_saveable,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "attention": _save(*ATTENTION),
    "gate": _save(*ATTENTION, "gate"),
    "feed_forward": _save("attended", "gate", "up", "down"),
    "gate_up": _save(*ATTENTION, "gate", "up", "down"),
    "offload": _offload(
        names_which_can_be_saved=[*ATTENTION, "down"],
        names_which_can_be_offloaded=["gate", "up"],
        offload_src="device",
        offload_dst="pinned_host",
    ),
    "everything_saveable": jax.checkpoint_policies.everything_saveable,
}


def stack(make: Callable[[nnx.Rngs], M], depth: int, rngs: nnx.Rngs) -> M:
    """`depth` independent modules as one whose arrays have a leading layers axis."""
    return jax.vmap(lambda key: make(nnx.Rngs(key)))(jax.random.split(rngs.params(), depth))


def checkpointed(body: Callable, remat: str) -> Callable:
    """`body` under jax.checkpoint with the policy of that name; "none" leaves it alone."""
    if remat == "none":
        return body
    if remat not in REMAT_POLICIES:
        raise ValueError(f"remat {remat!r} is not one of {sorted([*REMAT_POLICIES, 'none'])}")
    # Inside a scan the loop boundary already prevents the common-subexpression merge that prevent_cse guards against.
    return jax.checkpoint(body, policy=REMAT_POLICIES[remat], prevent_cse=False)


def scan_layers(body: Callable[[Any, Any], tuple[Any, Any]], x: Any, xs: Any, *, remat: str) -> tuple[Any, Any]:
    """x, ys = scan of `body(x, layer_xs)` over the leading axis of `xs`, each layer rematerialised."""
    return jax.lax.scan(checkpointed(body, remat), x, xs)


def runs(kinds: tuple[Any, ...]) -> list[tuple[Any, int, int]]:
    """(kind, start, stop) of each run of equal neighbours."""
    out: list[tuple[Any, int, int]] = []
    for i, kind in enumerate(kinds):
        if out and out[-1][0] == kind:
            out[-1] = (kind, out[-1][1], i + 1)
        else:
            out.append((kind, i, i + 1))
    return out


def period(kinds: tuple[Any, ...]) -> int:
    """The shortest p dividing the length such that `kinds` repeats every p entries."""
    n = len(kinds)
    return next(p for p in range(1, n + 1) if n % p == 0 and kinds == kinds[:p] * (n // p))


def scan_pattern(
    bodies: dict[Any, Callable[[Any, Any], Any]], kinds: tuple[Any, ...], x: Any, layers: Any, *, remat: str
):
    """Runs stacked `layers` whose kind varies: `x = bodies[kind](x, layer)`.

    The stack [L, ...] is viewed as [L/p, p, ...] with p the period of `kinds`; an outer scan runs the periods and an
    inner one each run of equal kinds, so the compiled code holds one body a run of one period, whatever the depth. A
    pattern without a period falls back to one body a run.
    """
    p = period(kinds)
    n = len(kinds) // p
    segments = runs(kinds[:p])

    def group(x, layers):
        for kind, start, stop in segments:
            part = jax.tree.map(operator.itemgetter(slice(start, stop)), layers)
            body = lambda x, layer, run=bodies[kind]: (run(x, layer), None)
            x, _ = scan_layers(body, x, part, remat=remat)
        return x, None

    if n == 1:
        return group(x, layers)[0]
    return jax.lax.scan(group, x, jax.tree.map(lambda a: a.reshape(n, p, *a.shape[1:]), layers))[0]
