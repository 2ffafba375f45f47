"""The end of a prompt read instead of answered: a value of each prompt's last hidden state, without sampling.

    reader = Reader(model, readout)
    for read in reader.read(prompts): ...

Images are encoded once and shared prefixes prefilled once, as for generation; a prompt's last piece is one forward pass
that leaves nothing behind, so there are no stores but that of the prefixes.
"""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax

from edit_rl_jax.vlm.engine.loader import Loader
from edit_rl_jax.vlm.engine.placement import Job, Prefixes, Wave
from edit_rl_jax.vlm.engine.prefill import Prefill
from edit_rl_jax.vlm.engine.programs import programs
from edit_rl_jax.vlm.engine.prompt import Piece, Prompt, Shape, rung

FINE = 16  # lengths are rounded up to so many parts of a power of two


@dataclasses.dataclass(frozen=True)
class Read:
    """What was read at the end of prompt number `index` (leaves [...] of the host), or the problem for which there is
    nothing."""

    index: int
    value: Any = None
    problem: Exception | None = None


class Reader(Prefill):
    """A model made ready to be read.

    Args:
      model: an NNX module with the `Decoder` interface; `readout` may use whatever else it has.
      readout: (model, hidden [B, D] of last tokens, after the final norm) -> pytree of [B, ...]; row by row.
      prompts: prompts side by side, with one wave of images and prefixes.
      mesh: where `model` is sharded; rows lie over its (data, fsdp) axes.
      prefill_tokens, vision_slots, feature_tokens: see `Prefill`. unit: lengths are rounded up to a sixteenth of the
        next power of two, and to this.
      contexts: shared prefixes kept, across calls (default: as many as prompts).
      compiler_options: of `jax.jit`.
    """

    def __init__(
        self,
        model: Any,
        readout: Callable[[Any, Any], Any],
        *,
        prompts: int = 64,
        mesh: Any = None,
        prefill_tokens: int = 512,
        vision_slots: int = 1024,
        feature_tokens: int = 8192,
        contexts: int | None = None,
        unit: int = 16,
        compiler_options: Mapping | None = None,
    ):
        sizes = dict(prefill_tokens=prefill_tokens, vision_slots=vision_slots, feature_tokens=feature_tokens)
        super().__init__(model, mesh=mesh, unit=unit, **sizes)
        self.prompts, self.contexts = prompts, -(-(contexts or prompts) // self.rows) * self.rows
        self._programs = programs(self._graphdef, readout=readout, compiler_options=compiler_options)

    def read(self, prompts: Sequence[Prompt], *, shared: int = 0) -> Iterator[Read]:
        """Reads the prompts, as they get ready. Prompts that share a prefix should stand together.

        shared: tokens of a shared prefix at most, which fixes the compiled shape; default: what suits the call.
        At one such number a prompt's value follows from its content alone, bit for bit, whatever is read with it.
        Raises ValueError when a prompt does not fit, RuntimeError when the stores are too small for one prompt.
        """
        if not prompts:
            return
        queue = deque(Job(i, prompt, (), ()) for i, prompt in enumerate(prompts))
        longest = max(job.pieces[-1].start for job in queue)
        if shared and longest > shared:
            raise ValueError(f"a shared prefix of {longest} tokens does not fit {shared}")
        placement = self._allocate(shared or self._length(max(longest, 1)))
        running: list[tuple[list[int], Any]] = []
        with ThreadPoolExecutor(2) as pool:
            loader = Loader(pool, self._ring, queue, most=4 + 2 * self.prompts)
            while queue:
                wave, chosen, failed = self._choose(placement, queue, loader)
                if not (chosen or failed or wave.encode or wave.extend):
                    room = f"{self.contexts} contexts of {self._shape.shared} tokens"
                    raise RuntimeError(f"no room for one prompt in {room} and {self._ring.rows} feature tokens")
                try:
                    with self._on_mesh():
                        self._prefixes(wave, loader)
                        ready, running = running, self._start(wave, chosen)
                except BaseException:  # what was to be in the stores may not be there
                    self._forget()
                    raise
                yield from (Read(j.index, problem=j.problem) for j in failed)
                yield from _values(ready)  # while the device works on the next wave
        yield from _values(running)

    def _allocate(self, shared: int) -> Prefixes:
        shape = Shape(shared, own=1, slots=0, prompts=0, answers=1, tiles=0, queries=1)
        if self._placement is None or shape != self._shape:
            self._allocate_stores(shape, self.contexts, 1)
            self._placement = Prefixes(self.contexts, self._ring)
        return self._placement

    def _choose(self, placement: Prefixes, queue: deque[Job], loader: Loader) -> tuple[Wave, list[int], list[Job]]:
        """Takes the prompts of the next wave from the queue: the wave, the numbers of those that it reads, and those
        that failed to load."""
        wave, chosen, failed = Wave(), [], []
        while queue and len(chosen) < self.prompts:
            job = queue[0]
            job.problem = placement.load(job.prompt, loader.fault)
            if job.problem is not None:
                failed.append(queue.popleft())
                continue
            pictures = [p for _, p in job.prompt.pictures_in(job.pieces[-1])]
            if not placement.context(job, wave) or not all(placement.picture(p, wave) for p in pictures):
                break
            leaf, row = job.pieces[-1], placement.contexts[job.context][0] if job.context else -1
            wave.leaves.append((job.prompt, Piece(leaf.key, leaf.start, leaf.stop + 1), row, 0))  # the last token, too
            chosen.append(queue.popleft().index)
        return wave, chosen, failed

    def _length(self, tokens: int) -> int:
        return rung(tokens, self.unit, FINE)

    def _before(self, tokens: int, whole: bool) -> int:
        return self._shape.shared if whole else min(self._length(tokens), self._shape.shared)

    def _side_by_side(self, length: int) -> int:
        return 1 << max(1, self.prefill_tokens // length).bit_length() - 1  # divides a wave of a power of two

    def _start(self, wave: Wave, chosen: list[int]) -> list[tuple[list[int], Any]]:
        """Starts reading the ends of a wave's prompts: their numbers, and what will be there."""
        out, contexts = [], self._stores.contexts
        for arrays, before, part in self._parts(wave.leaves, whole=True):  # ends are short, and fill their batches so
            values = self._programs["read"](self.state, contexts, self._features, *arrays, before=before)
            out.append(([chosen[i] for i in part], values))
            self.counters.reads += len(part)
        return out


def _values(running: list[tuple[list[int], Any]]) -> Iterator[Read]:
    for indices, values in running:
        values = jax.device_get(values)
        yield from (Read(index, jax.tree.map(lambda x, i=i: x[i], values)) for i, index in enumerate(indices))
