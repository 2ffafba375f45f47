"""What generating and reading share: images encoded once, common prefixes prefilled once, both kept across calls."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from edit_rl_jax.vlm.engine.loader import Loader
from edit_rl_jax.vlm.engine.placement import FeatureRing, Wave
from edit_rl_jax.vlm.engine.programs import NOWHERE, make_stores, picture_arrays, piece_arrays
from edit_rl_jax.vlm.engine.prompt import Picture, Piece, Prompt, Shape, rung


@dataclasses.dataclass
class Counters:
    """What has been computed so far.

    Attributes:
      images: passes through the vision tower, an image each.
      prefill_tokens: tokens whose keys and values were computed before decoding; `prefill_padded`: with padding.
      decode_steps: runs of the decoder over all slots; `slot_steps`: times the slots; `busy_steps`: of those, the ones
        that wrote a token.
      answers: answers written; `retries`: of those, written anew. reads: prompts that were read.
    """

    images: int = 0
    prefill_tokens: int = 0
    prefill_padded: int = 0
    decode_steps: int = 0
    slot_steps: int = 0
    busy_steps: int = 0
    answers: int = 0
    retries: int = 0
    reads: int = 0

    @property
    def occupancy(self) -> float:
        """Share of slot-steps that wrote a token."""
        return self.busy_steps / self.slot_steps if self.slot_steps else 0.0


class Prefill:
    """A model, its stores, and what fills them. `Engine` and `Reader` add what they do with a prompt's end.

    Args:
      model: an NNX module with the `Decoder` interface.
      mesh: where `model` is sharded; rows lie over its (data, fsdp) axes.
      prefill_tokens, vision_slots: about how many tokens and patches one prefill and one encoding take: shorter pieces
        go several at once, always in the same number for one length.
      feature_tokens: merged image tokens kept (a ring).
      unit: lengths are rounded up to an eighth of the next power of two, and to this: few lengths, few programs.
    """

    _programs: dict[str, Any]

    def __init__(
        self, model: Any, *, mesh: Any, prefill_tokens: int, vision_slots: int, feature_tokens: int, unit: int
    ):
        self._graphdef, state = nnx.split(model)
        self.state, self.mesh, self.unit = committed(state), mesh, unit
        self.prefill_tokens, self.vision_slots = prefill_tokens, vision_slots
        self.rows = 1 if mesh is None else int(np.prod([mesh.shape.get(a, 1) for a in ("data", "fsdp")]))
        self.counters = Counters()
        self._ring = FeatureRing(-(-feature_tokens // self.rows) * self.rows)
        self._features: Any = None
        self._shape: Shape | None = None
        self._placement: Any = None
        self._stores: Any = None
        self._merged_of: dict[tuple[int, ...], int] = {}

    @property
    def compilations(self) -> int:
        """Number of compiled programs so far."""
        return sum(p._cache_size() for p in self._programs.values())

    def update(self, weights: Any) -> None:
        """Works with other weights from now on: a model, or its state, of the same structure and shapes.

        Nothing is compiled anew; prefixes and images computed with the old weights are forgotten. Leaves that are where
        and what they should be are kept, not copied: a step that donates them spoils them until the next update.
        Raises ValueError naming a leaf that does not fit.
        """
        new = nnx.split(weights)[1] if isinstance(weights, nnx.Module) else weights

        def put(path, old, x):
            if old.shape != x.shape:
                raise ValueError(f"{jax.tree_util.keystr(path)} is {x.shape}, the engine's {old.shape}")
            return jax.device_put(x if x.dtype == old.dtype else x.astype(old.dtype), old.sharding)

        self.state = jax.tree_util.tree_map_with_path(put, self.state, new)
        self._forget()

    def _forget(self) -> None:
        self._ring, self._placement = FeatureRing(self._ring.rows), None

    def release(self) -> None:
        """Gives the memory of the stores back; the next call allocates it anew."""
        self._shape = self._stores = self._features = None
        self._forget()

    def _allocate_stores(self, shape: Shape, contexts: int, answer_tokens: int) -> None:
        if shape == self._shape:
            return
        self._stores = None  # the old ones must be gone before the new ones come
        sizes = (shape, contexts, self._ring.rows, answer_tokens, self.rows)
        with self._on_mesh():
            stores, features = make_stores(self._graphdef, self.state, *sizes)
            self._stores = self._beside(jax.jit(stores)())
            if self._features is None:
                self._features = self._beside(jax.jit(features)())
        self._shape = shape

    def _beside(self, stores: Any) -> Any:
        """The stores bound to where they are, on the weights' mesh even if that is one device: what programs return
        lies there, and jit compiles anew for stores that do not."""
        on = next((x.sharding.mesh for x in jax.tree.leaves(self.state) if isinstance(x.sharding, NamedSharding)), None)
        if self.mesh is None and on is not None:
            return jax.device_put(stores, NamedSharding(on, P()))
        return committed(stores)

    def _on_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _prefixes(self, wave: Wave, loader: Loader) -> None:
        """Runs what a wave shares: images, then prefixes from the shortest on."""
        self._encode(wave.encode, loader)
        for level in sorted({e[0] for e in wave.extend}):
            pieces = [(prompt, piece, parent, row) for at, prompt, piece, parent, row in wave.extend if at == level]
            for arrays, before, _ in self._parts(pieces):
                s = self._stores
                new = self._programs["inner"](self.state, s.contexts, self._features, *arrays, before=before)
                self._stores = dataclasses.replace(s, contexts=new)

    def _encode(self, pictures: list[tuple[Picture, int]], loader: Loader) -> None:
        by_slots: dict[int, list[tuple[Picture, int]]] = {}
        for picture, place in pictures:
            by_slots.setdefault(picture.slots, []).append((picture, place))
        for slots, group in by_slots.items():
            n = -(-max(1, self.vision_slots // slots) // self.rows) * self.rows
            for part in (group[i : i + n] for i in range(0, len(group), n)):
                loaded = [loader.take(picture) for picture, _ in part]
                arrays = picture_arrays(loaded, n)
                places = np.full((n, self._merged(arrays)), self._ring.rows, np.int32)
                for i, ((_, place), (_, index)) in enumerate(zip(part, loaded)):
                    places[i, index] = place + np.arange(len(index))
                new = self._programs["encode"](self.state, self._features, arrays, places)
                # the same layout under the same name: nothing recompiles
                self._features = jax.tree.map(lambda x, old: jax.device_put(x, old.sharding), new, self._features)
                self.counters.images += len(part)

    def _merged(self, arrays: Mapping[str, Any]) -> int:
        """Merged tokens that the tower makes of one row."""
        key = arrays["patches"].shape
        if key not in self._merged_of:
            run = lambda state, a: nnx.merge(self._graphdef, state).image_features(a)
            self._merged_of[key] = jax.tree.leaves(jax.eval_shape(run, self.state, arrays))[0].shape[1]
        return self._merged_of[key]

    def _length(self, tokens: int) -> int:
        """The padded length of a piece."""
        return rung(tokens, self.unit)

    def _before(self, tokens: int, whole: bool) -> int:
        """How a piece after so many tokens, or any piece, looks at what is before it: `before` of the programs."""
        return -1

    def _side_by_side(self, length: int) -> int:
        """How many pieces of a padded length one prefill takes."""
        return max(1, self.prefill_tokens // length)

    def _parts(
        self, pieces: list[tuple[Prompt, Piece, int, int]], most: int = NOWHERE, whole: bool = False
    ) -> Iterator[tuple[tuple[Any, ...], int, list[int]]]:
        """Pieces of one length together, as many as one prefill takes, padded to at most `most`: the arrays of
        `piece_arrays`, how much of their contexts is looked at (`before` of the programs; `whole`: as much as there
        may be), and which of `pieces` they are. Counts them."""
        groups: dict[tuple[int, int], list[int]] = {}
        for i, (_, piece, parent, _) in enumerate(pieces):
            length, before = min(self._length(piece.stop - piece.start), most), self._before(piece.start, whole)
            groups.setdefault((length, before if parent >= 0 else 0), []).append(i)
        for (T, before), group in groups.items():
            n = -(-self._side_by_side(T) // self.rows) * self.rows
            for part in (group[i : i + n] for i in range(0, len(group), n)):
                arrays = piece_arrays([pieces[i] for i in part], n, T, self._ring, before != 0)
                self.counters.prefill_tokens += int(arrays[0][3].sum())
                self.counters.prefill_padded += n * T
                yield arrays, before, part


def committed(tree: Any) -> Any:
    """The same arrays, bound to where they are: jit compiles anew when an argument that was free comes bound."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)
