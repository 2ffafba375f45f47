"""The generation engine: every image encoded once, every prefix prefilled once, answers side by side in refilled slots.

    engine = Engine(model, sampling, slots=64)
    for answered in engine.generate(prompts, answers=8): ...

The host decides (`placement.py`), the device computes (`decoder.py`): a wave of encodings and prefills, then a chunk of
decoding until some answers have ended, then the next wave. Nothing is compiled twice for one shape.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jaxtyping import Float32, Int32

from edit_rl_jax.vlm.engine.automaton import Constraint
from edit_rl_jax.vlm.engine.branch import Tree
from edit_rl_jax.vlm.engine.loader import Loader
from edit_rl_jax.vlm.engine.placement import Job, Placement, Wave
from edit_rl_jax.vlm.engine.prefill import Prefill
from edit_rl_jax.vlm.engine.programs import programs
from edit_rl_jax.vlm.engine.prompt import Prompt, Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling


@dataclasses.dataclass(frozen=True)
class Answer:
    """One answer: its tokens (the stop token included), whether it stopped by itself, and what `branch` said of it.

    log_probs: on request, the log-probability (nats) of each token under the model itself: temperature 1, all tokens.
    alternatives: on request, those of some tokens that could have stood at each place.
    """

    tokens: Int32[np.ndarray, " n"]
    stopped: bool
    branch: Any = None
    log_probs: Float32[np.ndarray, " n"] | None = None
    alternatives: Float32[np.ndarray, "k n"] | None = None


@dataclasses.dataclass(frozen=True)
class Answered:
    """The answers to prompt number `index`, or the problem for which there are none."""

    index: int
    answers: tuple[Answer, ...] = ()
    problem: Exception | None = None


class Engine(Prefill):
    """A model made ready to generate.

    Args:
      model: an NNX module with the `Decoder` interface.
      sampling: settings, static.
      slots: answers side by side (fewer for a small call: 2, 8, 32, ...; on a mesh always all of them).
      seed: run seed of all random numbers.
      mesh: where `model` is sharded; rows lie over its (data, fsdp) axes, which `slots` must divide.
      automaton: constrains every answer (see `automaton.py`), by the forms of their prompts.
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
        sampling: TokenSampling,
        *,
        slots: int = 64,
        seed: int = 0,
        mesh: Any = None,
        automaton: Constraint | None = None,
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
        sizes = dict(prefill_tokens=prefill_tokens, vision_slots=vision_slots, feature_tokens=feature_tokens)
        super().__init__(model, mesh=mesh, unit=unit, **sizes)
        self.sampling, self.slots, self.seed, self.chunk = sampling, slots, seed, chunk
        self.contexts, self.refill = contexts, refill
        settings = dict(automaton=automaton, tree=tree, compiler_options=compiler_options)
        self._programs = programs(self._graphdef, sampling, **settings)

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
        log_probs: bool = False,
        alternatives: tuple[int, ...] = (),
    ) -> Iterator[Answered]:
        """Answers to the prompts, as they get ready. Prompts that share a prefix should stand together.

        limits(index, number): tokens that an answer may have, default `sampling.max_new_tokens`.
        accept(index, tokens, stopped): an answer that is not accepted is written anew with other random numbers, at
        most `retries` times. branch_at(tokens): the place of the token that is the root of the engine's `tree` in an
        answer: -1 the prompt's last token, None for no tree. shape: fixes the compiled shape; default: one that suits.
        log_probs: also of every token its log-probability. alternatives: tokens whose log-probabilities are wanted at
        each place of an answer, too (each of the two is another compiled program).
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
        placement = self._allocate(shape)
        written = np.full((shape.slots, self.sampling.max_new_tokens), -1, np.int32)
        told: dict[str, np.ndarray] = {}
        if log_probs:
            told["log_probs"] = np.zeros(written.shape, np.float32)
        if alternatives:
            told["alternatives"] = np.zeros((shape.slots, len(alternatives), written.shape[1]), np.float32)
        seed = np.uint32(self.seed if seed is None else seed)
        until = np.int32(self.refill or max(1, shape.slots // 16))
        with ThreadPoolExecutor(2) as pool:
            loader = Loader(pool, self._ring, queue, most=4 + 2 * shape.prompts)
            try:
                while queue or placement.resident:
                    wave, unread = None, 0
                    while wave is None or wave.leaves:  # a wave done, its images may make room for the next
                        wave, failed = placement.refill(queue, loader.fault)
                        unread += len(failed)
                        yield from (Answered(j.index, problem=j.problem) for j in failed)
                        self._prepare(wave, loader)
                    if not placement.slots.active.any():
                        if queue and not unread:
                            raise RuntimeError(
                                f"no room for one prompt in {shape} with {self._ring.rows} feature tokens"
                            )
                        continue
                    stop = until if queue or any(j.waiting for j in placement.resident) else np.int32(shape.slots)
                    ended = self._decode(placement, written, told, alternatives, seed, stop)
                    branches = self._branches(placement, ended, written, branch_at)
                    for b in ended:
                        job = self._end(placement, b, written, told, accept, retries, answers, branches.get(b))
                        if job is not None:
                            out = tuple(job.answers[i] for i in range(answers))
                            yield Answered(job.index, out)
            finally:
                if placement.resident:  # the caller left: the slots must be free for the next call
                    self._placement = None

    def _allocate(self, shape: Shape) -> Placement:
        if self._placement is None or shape != self._shape:
            contexts = -(-(self.contexts or shape.tiles + 4) // self.rows) * self.rows
            self._allocate_stores(shape, contexts, self.sampling.max_new_tokens)
            self._placement = Placement(shape, contexts, self._ring)
        return self._placement

    def _prepare(self, wave: Wave, loader: Loader) -> None:
        """Runs a wave: images, shared prefixes from the shortest on, prompts' own parts, tiles."""
        with self._on_mesh():
            self._prefixes(wave, loader)
            for arrays, before, _ in self._parts(wave.leaves, self._shape.own):
                s = self._stores
                sources = (self.state, s.own, s.contexts, self._features, *arrays)
                self._stores = dataclasses.replace(s, own=self._programs["leaf"](*sources, before=before))
            for tile, row in wave.copies:
                at, source = np.full(self.rows, self._shape.tiles, np.int32), np.zeros(self.rows, np.int32)
                at[0], source[0] = tile, row
                tiles = self._programs["copy"](self._stores.tiles, self._stores.contexts, at, source)
                self._stores = dataclasses.replace(self._stores, tiles=tiles)

    def _decode(
        self,
        placement: Placement,
        written: np.ndarray,
        told: Mapping[str, np.ndarray],
        alternatives: tuple[int, ...],
        seed: np.uint32,
        until: np.int32,
    ) -> list[int]:
        """Runs a chunk, whose tokens go to `written` and what is told of them to `told`; the slots whose answers have
        ended."""
        s, shape = placement.slots, self._shape
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
                log_probs="log_probs" in told,
                alternatives=alternatives,
            )
        self._stores = dataclasses.replace(self._stores, answers=answers)
        got = jax.device_get(chunk)
        for name in ("token", "fed", "active", "state"):
            getattr(s, name)[:] = getattr(got, name)
        for b in np.flatnonzero(active):
            written[b, before[b] : s.fed[b]] = got.written[b, before[b] : s.fed[b]]
            for name, values in told.items():
                values[b, ..., before[b] : s.fed[b]] = getattr(got, name)[b, ..., before[b] : s.fed[b]]
        self.counters.decode_steps += int(got.steps)
        self.counters.slot_steps += int(got.steps) * shape.slots
        self.counters.busy_steps += int(got.busy)
        return np.flatnonzero(active & ~s.active).tolist()

    def _branches(
        self, placement: Placement, ended: list[int], written: np.ndarray, branch_at: Callable | None
    ) -> dict[int, np.ndarray]:
        """What the tree says of the answers in these slots; as many at once as rows lie over the mesh."""
        found: list[tuple[int, tuple]] = []
        s, shape, out = placement.slots, self._shape, {}
        for b in ended if branch_at is not None else ():
            tokens, prompt = written[b, : s.fed[b]], placement.writing[b][0].prompt
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
        self,
        placement: Placement,
        b: int,
        written: np.ndarray,
        told: Mapping[str, np.ndarray],
        accept: Callable[[int, np.ndarray, bool], bool] | None,
        retries: int,
        answers: int,
        branch: Any,
    ) -> Job | None:
        """Takes an ended answer out of its slot; its job, when that was the last."""
        job, order = placement.writing[b]
        tokens = written[b, : placement.slots.fed[b]].copy()
        stopped = bool(len(tokens)) and int(tokens[-1]) in self.sampling.stop_tokens
        number = int(placement.slots.number[b])
        self.counters.answers += 1
        if accept is not None and number // answers < retries and not accept(job.index, tokens, stopped):
            self.counters.retries += 1
            placement.release(b, again=number + answers)
            return None
        kept = {name: values[b, ..., : len(tokens)].copy() for name, values in told.items()}
        job.answers[order] = Answer(tokens, stopped, branch, **kept)
        placement.release(b)
        return job if len(job.answers) == len(job.numbers) else None
