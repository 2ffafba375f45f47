"""The generation engine: every image encoded once, every prefix prefilled once, answers side by side in refilled slots.

    engine = Engine(model, sampling, slots=64)
    for answered in engine.generate(prompts, answers=8): ...

The host decides (`schedule.py`), the device computes (`decoder.py`): a wave of encodings and prefills, then a chunk of
decoding until some answers have ended, then the next wave. Nothing is compiled twice for one shape.
"""

import contextlib
import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Int32

from edit_rl_jax.vlm.engine import cache, decoder
from edit_rl_jax.vlm.engine.automaton import Automaton
from edit_rl_jax.vlm.engine.branch import Tree, score_tree
from edit_rl_jax.vlm.engine.placement import FeatureRing, Job, Schedule, Wave
from edit_rl_jax.vlm.engine.prompt import Picture, Prompt, Shape, rung
from edit_rl_jax.vlm.engine.sampler import Sampling


@dataclasses.dataclass
class Counters:
    """What has been computed so far.

    Attributes:
      images: passes through the vision tower, an image each.
      prefill_tokens: tokens whose keys and values were computed before decoding; `prefill_padded`: with padding.
      decode_steps: runs of the decoder over all slots; `slot_steps`: times the slots; `busy_steps`: of those, the ones
        that wrote a token.
      answers: answers written; `retries`: of those, written anew.
    """

    images: int = 0
    prefill_tokens: int = 0
    prefill_padded: int = 0
    decode_steps: int = 0
    slot_steps: int = 0
    busy_steps: int = 0
    answers: int = 0
    retries: int = 0

    @property
    def occupancy(self) -> float:
        """Share of slot-steps that wrote a token."""
        return self.busy_steps / self.slot_steps if self.slot_steps else 0.0


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: its tokens (the stop token included), whether it stopped by itself, and what `branch` said of it."""

    tokens: Int32[np.ndarray, " n"]
    stopped: bool
    branch: Any = None


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answers to prompt number `index`, or the problem for which there are none."""

    index: int
    answers: tuple[Answer, ...] = ()
    problem: Exception | None = None


def programs(
    graphdef: Any,
    sampling: Sampling,
    *,
    automaton: Automaton | None = None,
    tree: Tree | None = None,
    compiler_options: Mapping | None = None,
) -> dict[str, Any]:
    """The jitted functions of an engine, by name; the first argument of each (but copy) is the model's state."""
    jit = partial(jax.jit, compiler_options=dict(compiler_options) if compiler_options else None)
    merge = partial(nnx.merge, graphdef)

    def encode(state, features, arrays, places):
        return decoder.encode(merge(state), features, arrays, places)

    def inner(state, contexts, features, piece, rows, parents, known, follows):
        context = (contexts, parents, known) if follows else None
        new = decoder.extend(merge(state), features, *piece, context)
        return decoder.put_contexts(contexts, new, rows, parents, known)

    def leaf(state, own, contexts, features, piece, rows, parents, known, follows):
        context = (contexts, parents, known) if follows else None
        return decoder.put_own(own, decoder.extend(merge(state), features, *piece, context), rows)

    def decode(state, answers, tiles, own, slots, seed, steps, until, places):
        settings = dict(sampling=sampling, places=places, automaton=automaton)
        return decoder.decode_chunk(merge(state), tiles, own, answers, slots, seed, steps, until, **settings)

    def copy(tiles, contexts, rows, sources):  # of its own: engines that jit one function share its cache
        return decoder.copy_rows(tiles, contexts, rows, sources)

    def branch(state, tiles, own, answers, *where):
        return score_tree(merge(state), (tiles, own, answers), *where, tree=tree)

    return {
        "branch": jit(branch),
        "encode": jit(encode, donate_argnums=1),
        "inner": jit(inner, donate_argnums=1, static_argnames="follows"),
        "leaf": jit(leaf, donate_argnums=1, static_argnames="follows"),
        "copy": jit(copy, donate_argnums=0),
        "decode": jit(decode, donate_argnums=1, static_argnames="places"),
    }


class Engine:
    """A model made ready to generate.

    Args:
      model: an NNX module with the `Decoder` interface.
      sampling: settings, static.
      slots: answers side by side (fewer for a small call: 2, 8, 32, ...; on a mesh always all of them).
      seed: run seed of all random numbers.
      mesh: where `model` is sharded; rows lie over its (data, fsdp) axes, which `slots` must divide.
      automaton: constrains every answer (see `automaton.py`).
      tree: continuations that are scored at a place of every answer (see `branch.py`).
      prefill_tokens, vision_slots: about how many tokens and patches one prefill and one encoding take: shorter pieces
        go several at once, always in the same number for one length.
      feature_tokens: merged image tokens kept (a ring). contexts: shared prefixes kept, across calls (default: as many
        as tiles, and 4 more).
      refill: ended answers that make the loop stop to refill, default 1 in 16.
      chunk: most steps between two looks of the host.
      unit: lengths are rounded up to an eighth of the next power of two, and to this: few lengths, few programs.
      compiler_options: of `jax.jit`.
    """

    def __init__(
        self,
        model: Any,
        sampling: Sampling,
        *,
        slots: int = 64,
        seed: int = 0,
        mesh: Any = None,
        automaton: Automaton | None = None,
        tree: Tree | None = None,
        prefill_tokens: int = 512,
        vision_slots: int = 1024,
        feature_tokens: int = 8192,
        contexts: int | None = None,
        refill: int | None = None,
        chunk: int = 256,
        unit: int = 32,
        compiler_options: Mapping | None = None,
    ):
        self._graphdef, state = nnx.split(model)
        self.state = _committed(state)
        self.sampling, self.slots, self.seed, self.mesh = sampling, slots, seed, mesh
        self.prefill_tokens, self.vision_slots, self.chunk = prefill_tokens, vision_slots, chunk
        self.contexts, self.refill, self.unit = contexts, refill, unit
        self.rows = 1 if mesh is None else int(np.prod([mesh.shape.get(a, 1) for a in ("data", "fsdp")]))
        self.counters = Counters()
        self._ring = FeatureRing(-(-feature_tokens // self.rows) * self.rows)
        self._features: Any = None
        self._shape: Shape | None = None
        self._schedule: Schedule | None = None
        self._stores: Any = None
        self._merged_of: dict[tuple[int, ...], int] = {}
        settings = dict(automaton=automaton, tree=tree, compiler_options=compiler_options)
        self._programs = programs(self._graphdef, sampling, **settings)

    @property
    def compilations(self) -> int:
        """Number of compiled programs so far."""
        return sum(p._cache_size() for p in self._programs.values())

    def release(self) -> None:
        """Gives the memory of the stores back; the next call allocates it anew."""
        self._shape = self._schedule = self._stores = self._features = None
        self._ring = FeatureRing(self._ring.rows)

    def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        answers: int = 1,
        limits: Callable[[int, int], int] | None = None,
        accept: Callable[[int, np.ndarray, bool], bool] | None = None,
        retries: int = 0,
        branch_at: Callable[[np.ndarray], int | None] | None = None,
        shape: Shape | None = None,
        seed: int | None = None,
    ) -> Iterator[Answered]:
        """Answers to the prompts, as they get ready. Prompts that share a prefix should stand together.

        limits(index, number): tokens that an answer may have, default `sampling.max_new_tokens`.
        accept(index, tokens, stopped): an answer that is not accepted is written anew with other random numbers, at
        most `retries` times. branch_at(tokens): the place of the token that is the root of the engine's `tree` in an
        answer: -1 the prompt's last token, None for no tree. shape: fixes the compiled shape; default: one that suits.
        Raises ValueError when a prompt does not fit `shape`, RuntimeError when the stores are too small for one prompt.
        """
        if not prompts:
            return
        shape = shape or Shape.of(list(prompts), answers, self.slots, self.rows, self.unit)
        bad = next((i for i, p in enumerate(prompts) if not shape.fits(p)), None)
        if bad is not None or answers != shape.answers:
            raise ValueError(f"prompt {bad} or {answers} answers do not fit {shape}")
        limit = limits or (lambda index, number: self.sampling.max_new_tokens)
        numbers = tuple(range(answers))
        queue = deque(Job(i, p, numbers, tuple(limit(i, n) for n in numbers)) for i, p in enumerate(prompts))
        schedule = self._allocate(shape)
        written = np.full((shape.slots, self.sampling.max_new_tokens), -1, np.int32)
        seed = np.uint32(self.seed if seed is None else seed)
        until = np.int32(self.refill or max(1, shape.slots // 16))
        with ThreadPoolExecutor(2) as pool:
            loader = _Loader(pool, self._ring, queue, most=4 + 2 * shape.prompts)
            try:
                while queue or schedule.resident:
                    wave, unread = None, 0
                    while wave is None or wave.leaves:  # a wave done, its images may make room for the next
                        wave, failed = schedule.refill(queue, loader.fault)
                        unread += len(failed)
                        yield from (Answered(j.index, problem=j.problem) for j in failed)
                        self._prepare(wave, loader)
                    if not schedule.slots.active.any():
                        if queue and not unread:
                            raise RuntimeError(
                                f"no room for one prompt in {shape} with {self._ring.rows} feature tokens"
                            )
                        continue
                    stop = until if queue or any(j.waiting for j in schedule.resident) else np.int32(shape.slots)
                    ended = self._decode(schedule, written, seed, stop)
                    branches = self._branches(schedule, ended, written, branch_at)
                    for b in ended:
                        job = self._end(schedule, b, written, accept, retries, answers, branches.get(b))
                        if job is not None:
                            out = tuple(job.answers[i] for i in range(answers))
                            yield Answered(job.index, out)
            finally:
                if schedule.resident:  # the caller left: the slots must be free for the next call
                    self._schedule = None

    def _allocate(self, shape: Shape) -> Schedule:
        if self._schedule is not None and shape == self._shape:
            return self._schedule
        cfg = jax.eval_shape(self._probe, self.state)
        (L, _, H, _, d), dtype, width = cfg[0].shape, cfg[0].dtype, cfg[1].shape[-1]
        make = lambda rows, tokens: cache.empty(L, rows, H, tokens, d, dtype)
        contexts = -(-(self.contexts or shape.tiles + 4) // self.rows) * self.rows

        def stores():
            parts = {
                "contexts": make(contexts, shape.shared),
                "tiles": make(shape.tiles, shape.shared),
                "own": make(shape.prompts, shape.own),
                "answers": make(shape.slots, self.sampling.max_new_tokens),
            }
            return cache.Stores(**parts)

        self._stores = None  # the old ones must be gone before the new ones come
        with self._on_mesh():
            self._stores = _committed(jax.jit(stores)())
            if self._features is None:
                self._features = _committed(jax.jit(lambda: jnp.zeros((self._ring.rows, width), dtype))())
        self._shape, self._schedule = shape, Schedule(shape, contexts, self._ring)
        return self._schedule

    def _probe(self, state):
        """The shapes of one row's keys and values, and of an embedding."""
        model, n = nnx.merge(self._graphdef, state), self.rows
        tokens = jnp.zeros((n, 1), jnp.int32)
        x = model.embed(tokens, tokens - 1)
        attend = lambda q, k, v, _: (q, cache.to_heads(k))
        return model.language_model(x, jnp.zeros((n, 3, 1), jnp.int32), attend)[1], x

    def _on_mesh(self):
        return contextlib.nullcontext() if self.mesh is None else jax.set_mesh(self.mesh)

    def _prepare(self, wave: Wave, loader: "_Loader") -> None:
        """Runs a wave: images, shared prefixes from the shortest on, prompts' own parts, tiles."""
        with self._on_mesh():
            self._encode(wave.encode, loader)
            for level in sorted({e[0] for e in wave.extend}):
                pieces = [(prompt, piece, parent, row) for at, prompt, piece, parent, row in wave.extend if at == level]
                self._extend("inner", pieces)
            self._extend("leaf", wave.leaves)
            for tile, row in wave.copies:
                at, source = np.full(self.rows, self._shape.tiles, np.int32), np.zeros(self.rows, np.int32)
                at[0], source[0] = tile, row
                tiles = self._programs["copy"](self._stores.tiles, self._stores.contexts, at, source)
                self._stores = dataclasses.replace(self._stores, tiles=tiles)

    def _encode(self, pictures: list[tuple[Picture, int]], loader: "_Loader") -> None:
        by_slots: dict[int, list[tuple[Picture, int]]] = {}
        for picture, place in pictures:
            by_slots.setdefault(picture.slots, []).append((picture, place))
        for slots, group in by_slots.items():
            n = -(-max(1, self.vision_slots // slots) // self.rows) * self.rows
            for part in (group[i : i + n] for i in range(0, len(group), n)):
                loaded = [loader.take(picture) for picture, _ in part]
                rows = [arrays for arrays, _ in loaded]
                blank = {k: np.zeros(x.shape, x.dtype) for k, x in rows[0].items()}
                rows += [blank] * (n - len(rows))
                on_device = any(isinstance(x, jax.Array) for r in rows for x in r.values())
                arrays = {k: (jnp if on_device else np).stack([r[k] for r in rows]) for k in blank}
                merged = max(int(index.max()) for _, index in loaded) + 1
                places = np.full((n, self._merged(arrays, merged)), self._ring.rows, np.int32)
                for i, ((_, place), (_, index)) in enumerate(zip(part, loaded)):
                    places[i, index] = place + np.arange(len(index))
                place = self._features.sharding
                new = self._programs["encode"](self.state, self._features, arrays, places)
                self._features = jax.device_put(new, place)  # the same layout under the same name: nothing recompiles
                self.counters.images += len(part)

    def _merged(self, arrays: Mapping[str, Any], least: int) -> int:
        """Merged tokens that the tower makes of one row."""
        key = arrays["patches"].shape
        if key not in self._merged_of:
            run = lambda state, a: nnx.merge(self._graphdef, state).visual(*(a[k] for k in decoder.VISION))
            self._merged_of[key] = jax.eval_shape(run, self.state, arrays).shape[1]
        return self._merged_of[key]

    def _extend(self, kind: str, pieces: list[tuple[Prompt, Any, int, int]]) -> None:
        groups: dict[tuple[int, bool], list] = {}
        for prompt, piece, parent, row in pieces:
            length = min(rung(piece.stop - piece.start, self.unit), self._shape.own if kind == "leaf" else 1 << 30)
            groups.setdefault((length, parent >= 0), []).append((prompt, piece, parent, row))
        nowhere = 1 << 30
        for (T, follows), group in groups.items():
            n = -(-max(1, self.prefill_tokens // T) // self.rows) * self.rows
            for part in (group[i : i + n] for i in range(0, len(group), n)):
                tokens, positions = np.zeros((n, T), np.int32), np.zeros((n, 3, T), np.int32)
                feature_at, lengths = np.full((n, T), -1, np.int32), np.zeros(n, np.int32)
                rows, parents, known = np.full(n, nowhere, np.int32), np.zeros(n, np.int32), np.zeros(n, np.int32)
                for i, (prompt, piece, parent, row) in enumerate(part):
                    m = lengths[i] = piece.stop - piece.start
                    tokens[i, :m] = prompt.tokens[piece.start : piece.stop]
                    positions[i, :, :m] = prompt.positions[:, piece.start : piece.stop]
                    for at, picture in prompt.pictures_in(piece):
                        place = at - piece.start
                        start = self._ring.found[picture.key][0]
                        feature_at[i, place : place + picture.tokens] = start + np.arange(picture.tokens)
                    rows[i], parents[i], known[i] = row, max(parent, 0), piece.start if follows else 0
                s = self._stores
                arrays = (self._features, (tokens, positions, feature_at, lengths), rows, parents, known)
                if kind == "inner":
                    new = self._programs[kind](self.state, s.contexts, *arrays, follows=follows)
                    self._stores = dataclasses.replace(s, contexts=new)
                else:
                    new = self._programs[kind](self.state, s.own, s.contexts, *arrays, follows=follows)
                    self._stores = dataclasses.replace(s, own=new)
                self.counters.prefill_tokens += int(lengths.sum())
                self.counters.prefill_padded += n * T

    def _decode(self, schedule: Schedule, written: np.ndarray, seed: np.uint32, until: np.int32) -> list[int]:
        """Runs a chunk; the slots whose answers have ended."""
        s, shape = schedule.slots, self._shape
        before, active = s.fed.copy(), s.active.copy()
        with self._on_mesh():
            answers, chunk = self._programs["decode"](
                self.state,
                self._stores.answers,
                self._stores.tiles,
                self._stores.own,
                s,
                seed,
                np.int32(self.chunk),
                until,
                places=(shape.queries, shape.answers),
            )
        self._stores = dataclasses.replace(self._stores, answers=answers)
        got = jax.device_get(chunk)
        for name in ("token", "fed", "active", "state"):
            getattr(s, name)[:] = getattr(got, name)
        for b in np.flatnonzero(active):
            written[b, before[b] : s.fed[b]] = got.written[b, before[b] : s.fed[b]]
        self.counters.decode_steps += int(got.steps)
        self.counters.slot_steps += int(got.steps) * shape.slots
        self.counters.busy_steps += int(got.busy)
        return np.flatnonzero(active & ~s.active).tolist()

    def _branches(
        self, schedule: Schedule, ended: list[int], written: np.ndarray, branch_at: Callable | None
    ) -> dict[int, np.ndarray]:
        """What the tree says of the answers in these slots; as many at once as rows lie over the mesh."""
        found: list[tuple[int, tuple]] = []
        s, shape, out = schedule.slots, self._shape, {}
        for b in ended if branch_at is not None else ():
            tokens, prompt = written[b, : s.fed[b]], schedule.writing[b][0].prompt
            at = branch_at(tokens)
            if at is not None:
                tile, own = int(s.tile_at[b]) // shape.queries, int(s.own_at[b]) // shape.answers
                lengths = (s.tile_length[tile], s.own_length[own], at + 1)
                root = tokens[at] if at >= 0 else prompt.tokens[-1]
                found.append((b, ((tile, own, b), lengths, root, s.position[b] + at + 1)))
        stores = (self._stores.tiles, self._stores.own, self._stores.answers)
        for part in (found[i : i + self.rows] for i in range(0, len(found), self.rows)):
            padded = part + part[:1] * (self.rows - len(part))
            where = [np.array(column, np.int32) for column in zip(*(w for _, w in padded))]
            with self._on_mesh():
                logp = np.asarray(self._programs["branch"](self.state, *stores, *where))
            out |= {b: x for (b, _), x in zip(part, logp)}
        return out

    def _end(
        self, schedule: Schedule, b: int, written: np.ndarray, accept, retries: int, answers: int, branch: Any
    ) -> Job | None:
        """Takes an ended answer out of its slot; its job, when that was the last."""
        job, order = schedule.writing[b]
        tokens = written[b, : schedule.slots.fed[b]].copy()
        stopped = bool(len(tokens)) and int(tokens[-1]) in self.sampling.stop_tokens
        number = int(schedule.slots.number[b])
        self.counters.answers += 1
        if accept is not None and number // answers < retries and not accept(job.index, tokens, stopped):
            self.counters.retries += 1
            schedule.release(b, again=number + answers)
            return None
        job.answers[order] = Answer(tokens, stopped, branch)
        schedule.release(b)
        return job if len(job.answers) == len(job.numbers) else None


def _committed(tree: Any) -> Any:
    """The same arrays, bound to where they are: jit compiles anew when an argument that was free comes bound."""
    return jax.tree.map(lambda x: jax.device_put(x, x.sharding), tree)


class _Loader:
    """Images made ready in threads, ahead of the queue."""

    def __init__(self, pool: ThreadPoolExecutor, ring: FeatureRing, queue: deque[Job], most: int):
        self._pool, self._ring, self._most = pool, ring, most
        self._ready: dict[bytes, Future] = {}
        self._ahead = iter([p for job in queue for _, p in job.prompt.pictures])
        self._fill()

    def _fill(self) -> None:
        while len(self._ready) < self._most and (picture := next(self._ahead, None)) is not None:
            self._want(picture)

    def _want(self, picture: Picture) -> None:
        if picture.key not in self._ready and picture.key not in self._ring.found:
            self._ready[picture.key] = self._pool.submit(picture.load)

    def fault(self, picture: Picture) -> Exception | None:
        """Why the picture cannot be loaded; None when it is ready."""
        self._want(picture)
        fault = self._ready[picture.key].exception()
        if fault is not None and not isinstance(fault, ValueError):
            raise fault
        if fault is not None:
            self._ready.pop(picture.key)
            self._fill()
        return fault

    def take(self, picture: Picture) -> tuple[dict[str, Any], np.ndarray]:
        """The picture's arrays; they are forgotten."""
        out = self._ready.pop(picture.key).result() if picture.key in self._ready else picture.load()
        self._fill()
        return out
