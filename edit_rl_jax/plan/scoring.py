"""Scoring planned: prefill and decode of a reward model that writes, prefill and reading of one that has heads.

Weights of a scoring engine lie over the axis "tensor" alone and are whole along "data": the decode loop then moves
activations between chips, never weights.
"""

import dataclasses
import math
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edit_rl_jax.chips import Chip
from edit_rl_jax.plan.compiled import DoesNotFit, Job, lower, resident
from edit_rl_jax.sharding import DEFAULT_RULES, make_mesh, row_major, shardings
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.engine import cache
from edit_rl_jax.vlm.engine.placement import FeatureRing, Placement
from edit_rl_jax.vlm.engine.programs import make_stores, programs
from edit_rl_jax.vlm.engine.prompt import Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.family import Architecture

NEW_TOKENS, EDITS, PASSES = 512, 12, 4  # an answer's limit; edits of one source, answers to each
SHARED, OWN, PIECE = 768, 448, 384  # text and one image of 512 x 512; another image and the turn's end; a prefill
SOURCE, EDITED, END = 512, 288, 512  # of a prompt that is read: instruction and an image of 448 x 448; another; a text
STOP = (151645,)  # "<|im_end|>" of Qwen's
KINDS = {"state": "frozen", "features": "image features"}
KINDS |= dict.fromkeys(("own", "contexts", "answers", "tiles"), "KV cache")


def tensor_parallel(cfg: Architecture, chips: int, hbm: int, bytes_: int) -> int:
    """The smallest power of two that leaves 40% of each chip's memory free of weights and divides heads and widths."""
    fits = [
        t
        for t in (1, 2, 4, 8, 16)
        if chips % t == 0 and all(u % t == 0 for u in cfg.shards) and bytes_ / t <= 0.6 * hbm
    ]
    if not fits:
        raise DoesNotFit(f"{bytes_ / 2**30:.0f} GiB of weights in {chips} chips of {hbm / 2**30:.1f}", None)
    return fits[0]


@dataclasses.dataclass(frozen=True)
class Scoring:
    """A scoring engine on a described mesh: weights lie over "tensor" alone, copies of them along "data".

    Attributes:
      cfg: its architecture. mesh: described. tensor: chips that share a copy of the weights.
      graphdef, state: the abstract model. weight_bytes: of one whole copy.
      readout: of a prompt's last hidden state, for a model that does not write (see `vlm.engine.read`).
    """

    cfg: Architecture
    mesh: Mesh
    tensor: int
    graphdef: nnx.GraphDef
    state: Any
    weight_bytes: int
    readout: Any = None

    @property
    def bytes_per_device(self) -> int:
        """Bytes of weights on each device."""
        return self.weight_bytes // self.tensor


def describe(
    cfg: Architecture,
    chip: Chip,
    devices: list[Any],
    tensor: int = 0,
    judge: Any = None,
    dtype: Any = jnp.bfloat16,
    attention: str = "splash",
) -> Scoring:
    """Lays a reward model of this architecture over described devices.

    tensor: chips that share a copy of the weights, 0 = as few as leave room. judge: its class, which may have a
    `network(cfg) -> (model, readout)` of its own. dtype, attention: as a TPU's by default. Raises DoesNotFit where no
    number of chips leaves room.
    """
    kind, readout = judge.network(cfg) if hasattr(judge, "network") else (family.of(cfg).model, None)
    make = partial(kind, cfg, dtype=dtype, attention=attention, remat="none")
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))))
    weight_bytes = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(abstract))
    tensor = tensor or tensor_parallel(cfg, len(devices), chip.hbm, weight_bytes)
    mesh = make_mesh({"data": len(devices) // tensor, "tensor": tensor}, devices)
    places = shardings(abstract, mesh)
    by_rows = lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=row_major(x.ndim, s))
    state = jax.tree.map(by_rows, abstract, places)
    return Scoring(cfg, mesh, tensor, graphdef, state, weight_bytes, readout)


def jobs(
    scoring: Scoring,
    chip: Chip,
    slots: int,
    beside: Mapping[str, int] | None = None,
    sizes: "Sizes | None" = None,
    log_probs: bool = False,
    sampling: TokenSampling | None = None,
) -> Iterator[Job]:
    """Lowers one prefill and one decode step of `slots` answers side by side; of a model that is read, one prefill and
    one reading, of as many prompts as rows lie over the mesh, with `slots` contexts.

    beside: as `Job.beside`; the stores that a program does not take lie there too. sizes: of the stores, by default
    those of edits that share a source. log_probs: as `Engine.generate`. sampling: as EditScore samples by default."""
    mesh, data = scoring.mesh, scoring.mesh.shape["data"]
    sizes = sizes or usual(scoring, slots)
    shape, (stores, features) = sizes.shape, abstract_stores(scoring, sizes)
    sampling = sampling or TokenSampling(max_new_tokens=sizes.new_tokens, stop_tokens=STOP)
    jitted = programs(scoring.graphdef, sampling, readout=scoring.readout)
    whole = lambda x: jax.ShapeDtypeStruct(np.shape(x), np.asarray(x).dtype)  # from the host, placed by the compiler
    ints = lambda *s: whole(np.zeros(s, np.int32))
    count, length = sizes.prefill or (data, PIECE)
    axes = scoring.cfg.position_axes
    pieces = lambda n, rows=data: (ints(rows, n), ints(rows, axes, n), ints(rows, n), ints(rows))
    piece, first = pieces(min(length, shape.own), count), (ints(count), ints(count), ints(count))
    rows = (ints(data), ints(data), ints(data))
    state = scoring.state
    with jax.set_mesh(mesh):
        lowered = (
            {
                "prefill": lower(
                    jitted["inner"], state, stores.contexts, features, pieces(EDITED), *rows, before=SOURCE
                ),
                "read": lower(
                    jitted["read"], state, stores.contexts, features, pieces(END), *rows, before=SOURCE + EDITED
                ),
            }
            if scoring.readout
            else {
                "prefill": lower(
                    jitted["leaf"], scoring.state, stores.own, stores.contexts, features, piece, *first, before=-1
                ),
                "decode": lower(
                    jitted["decode"],
                    scoring.state,
                    stores.answers,
                    stores.tiles,
                    stores.own,
                    jax.tree.map(whole, Placement(shape, 1, FeatureRing(1)).slots),
                    whole(np.uint32(0)),
                    whole(np.int32(0)),
                    whole(np.int32(0)),
                    places=(shape.queries, shape.answers),
                    log_probs=log_probs,
                ),
            }
        )
    matrices = [
        math.prod(x.shape[1:]) for x in jax.tree.leaves(scoring.state) if len(x.shape) == 3 and x.dtype == jnp.bfloat16
    ]
    facts = {
        "weight_bytes": scoring.weight_bytes,
        "smallest_weight_matrix": min(matrices, default=0),
        "mesh": dict(mesh.shape),
    }
    facts["shape"] = vars(shape) | ({"end": END} if scoring.readout else {"new": sizes.new_tokens})
    # memory-bound: a step reads the weights once; attention's reads of the stores are on top
    least = {"step_s_at_least": scoring.bytes_per_device / chip.bandwidth}
    idle = {"prefill": (stores.answers, stores.tiles), "decode": (stores.contexts, features)}
    idle = {} if scoring.readout else {k: {"idle stores": resident(v)} for k, v in idle.items()}
    for name, low in lowered.items():
        there = dict(beside or {}) | idle.get(name, {})
        more = facts | (least if name == "decode" else {})
        items = (slots, "tokens") if name == "decode" else (data, "prompts")
        yield Job(name, low, mesh.size, there, mesh=mesh, items=items, kinds=KINDS, more=more)


class Sizes(NamedTuple):
    """What an engine's stores hold: `Engine`'s shape, shared prefixes kept, tokens of an answer; and, where it is not
    the usual one, a prefill: (pieces, tokens of each)."""

    shape: Shape
    contexts: int
    new_tokens: int
    prefill: tuple[int, int] | None = None


def usual(scoring: Scoring, slots: int) -> Sizes:
    """Gives the sizes of scoring edits, a group of one source at a time."""
    up, each = lambda n: -(-n // scoring.mesh.shape["data"]) * scoring.mesh.shape["data"], EDITS * PASSES
    if scoring.readout:
        return Sizes(Shape(SOURCE + EDITED, own=1, slots=0, prompts=0, answers=1, tiles=0, queries=1), slots, 1)
    shape = Shape(
        shared=SHARED,
        own=OWN,
        slots=up(slots),
        prompts=up(-(-7 * slots // (4 * PASSES))),
        answers=PASSES,
        tiles=up(-(-slots // each) * 2 + 1),
        queries=each,
    )
    return Sizes(shape, shape.tiles + 4, NEW_TOKENS)


def abstract_stores(scoring: Scoring, sizes: Sizes) -> tuple[cache.Stores, Any]:
    """Gives the stores of keys and values, and the feature store, abstract, laid over the mesh."""
    mesh, data = scoring.mesh, scoring.mesh.shape["data"]
    up = lambda n: -(-n // data) * data
    args = (sizes.shape, up(sizes.contexts), up(8192), sizes.new_tokens, data)
    with jax.set_mesh(mesh):
        stores, features = make_stores(scoring.graphdef, scoring.state, *args)

    def placed(x, axes):
        spec = DEFAULT_RULES.spec("store", x.shape, axes, mesh) if axes else PartitionSpec()
        return jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec))

    over = lambda tree, axes: jax.tree.map(lambda x: placed(x, axes), tree)
    return over(jax.eval_shape(stores), cache.AXES), over(jax.eval_shape(features), ())
