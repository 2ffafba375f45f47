"""Who goes where: slots, prompts, tiles, cached prefixes and image features. The host's side; no JAX."""

import dataclasses
from collections import deque
from collections.abc import Callable
from typing import Any

import numpy as np

from edit_rl_jax.vlm.engine.decoder import Slots
from edit_rl_jax.vlm.engine.prompt import Picture, Piece, Prompt, Shape


@dataclasses.dataclass
class Job:
    """A prompt on its way. `waiting`: answers to write, by number, with their places; `answers`: those written."""

    index: int
    prompt: Prompt
    numbers: tuple[int, ...]
    limits: tuple[int, ...]
    pieces: list[Piece] = dataclasses.field(default_factory=list)
    row: int = -1
    waiting: deque = dataclasses.field(default_factory=deque)  # (order, number, tile place, own place)
    answers: dict[int, Any] = dataclasses.field(default_factory=dict)  # by order
    problem: Exception | None = None

    def __post_init__(self):
        self.pieces = self.prompt.pieces()

    @property
    def context(self) -> bytes:
        """The key of its shared prefix, b"" for none."""
        return self.pieces[-2].key if len(self.pieces) > 1 else b""


@dataclasses.dataclass
class Wave:
    """What the device has to do before the slots that were just filled can run."""

    encode: list[tuple[Picture, int]] = dataclasses.field(default_factory=list)  # place in the feature store
    extend: list[tuple[int, Prompt, Piece, int, int]] = dataclasses.field(default_factory=list)  # level, parent, row
    leaves: list[tuple[Prompt, Piece, int, int]] = dataclasses.field(default_factory=list)  # parent row, own row
    copies: list[tuple[int, int]] = dataclasses.field(default_factory=list)  # tile, context row
    contexts: set[bytes] = dataclasses.field(default_factory=set)  # in use by this wave
    pictures: set[bytes] = dataclasses.field(default_factory=set)


class FeatureRing:
    """Which rows of the feature store hold which image: a ring, where the oldest image makes room for the next."""

    def __init__(self, rows: int):
        self.rows, self.head = rows, 0
        self.found: dict[bytes, tuple[int, int]] = {}  # start, stop

    def place(self, picture: Picture, keep: set[bytes]) -> int | None:
        """Room for a picture beside those to `keep`, or None."""
        start, wrapped = self.head, False
        while True:
            stop = start + picture.tokens
            if stop > self.rows:
                if wrapped or picture.tokens > self.rows:
                    return None
                start, wrapped = 0, True
                continue
            over = [key for key, (a, b) in self.found.items() if a < stop and start < b]
            held = [self.found[key][1] for key in over if key in keep]
            if not held:
                break
            start = max(held)
        for key in over:
            del self.found[key]
        self.found[picture.key], self.head = (start, stop), stop
        return start


class Prefixes:
    """Rows of the store `contexts`, and the images that they need: which shared prefix is where."""

    def __init__(self, contexts: int, ring: FeatureRing):
        self.ring = ring
        self.contexts: dict[bytes, tuple[int, int]] = {}  # row, tokens; least recently used first
        self.free_contexts = list(range(contexts))[::-1]

    def load(self, prompt: Prompt, load: Callable[[Picture], Exception | None]) -> Exception | None:
        """Makes a prompt's pictures ready by `load(picture)`; why one of them cannot be."""
        missing = [p for _, p in prompt.pictures if p.key not in self.ring.found]
        return next((fault for p in missing if (fault := load(p)) is not None), None)

    def context(self, job: Job, wave: Wave) -> bool:
        """Makes sure that the prompt's shared prefix is or will be in `contexts`."""
        chain, parent = job.pieces[:-1], -1
        known = max((i + 1 for i, piece in enumerate(chain) if piece.key in self.contexts), default=0)
        for level, piece in enumerate(chain):
            wave.contexts.add(piece.key)
            if level < known:
                if piece.key in self.contexts:
                    self.contexts[piece.key] = self.contexts.pop(piece.key)  # the most recently used
                    parent = self.contexts[piece.key][0]
                continue
            if not all(self.picture(p, wave) for _, p in job.prompt.pictures_in(piece)):
                return False
            if not self.free_contexts:
                old = next((key for key in self.contexts if key not in wave.contexts), None)
                if old is None:
                    return False
                self.free_contexts.append(self.contexts.pop(old)[0])
            row = self.free_contexts.pop()
            self.contexts[piece.key] = (row, piece.stop)
            wave.extend.append((level, job.prompt, piece, parent, row))
            parent = row
        return True

    def picture(self, picture: Picture, wave: Wave) -> bool:
        """Makes sure that a picture is or will be in the feature store."""
        wave.pictures.add(picture.key)
        if picture.key not in self.ring.found:
            place = self.ring.place(picture, wave.pictures)
            if place is None:
                return False
            wave.encode.append((picture, place))
        return True


class Placement(Prefixes):
    """Places in the stores of one shape, and the order in which prompts get them."""

    def __init__(self, shape: Shape, contexts: int, ring: FeatureRing):
        super().__init__(contexts, ring)
        B, P, G = shape.slots, shape.prompts, shape.tiles
        zeros = lambda n, dtype=np.int32: np.zeros(n, dtype)
        names = ("token", "fed", "position", "limit", "state", "item", "purpose", "number")
        nowhere = {"tile_at": np.full(B, G * shape.queries, np.int32)}
        nowhere |= {"own_at": np.full(B, P * shape.answers, np.int32)}
        lengths = {"tile_length": zeros(G), "own_length": zeros(P)}
        form = np.full((B, *shape.form), -1, np.int32) if any(shape.form) else None
        self.slots = Slots(**{n: zeros(B) for n in names}, active=zeros(B, bool), **nowhere, **lengths, form=form)
        self.shape = shape
        self.writing: list[Any] = [None] * B  # (job, order of the answer) of each slot that writes one
        self.resident: list[Job] = []
        self.free_rows = list(range(P))[::-1]
        self.tile_key: list[bytes | None] = [None] * G
        self.tile_free = [list(range(shape.queries))[::-1] for _ in range(G)]

    def refill(self, queue: deque[Job], load: Callable[[Picture], Exception | None]) -> tuple[Wave, list[Job]]:
        """Fills the free slots from resident prompts, then from the queue; the wave, and prompts that failed to load.

        `load(picture)`: makes a picture's arrays ready, or says why there are none.
        """
        wave, failed = Wave(), []
        for b in range(self.shape.slots):
            if self.writing[b] is not None:
                continue
            job = next((j for j in self.resident if j.waiting), None)
            while job is None and queue:
                fault = self.load(queue[0].prompt, load)
                if fault is not None:
                    queue[0].problem = fault
                    failed.append(queue.popleft())
                    continue
                if not self._admit(queue[0], wave):
                    break
                job = queue.popleft()
            if job is None:
                break
            self._start(b, job)
        return wave, failed

    def _start(self, b: int, job: Job) -> None:
        order, number, tile_at, own_at = job.waiting.popleft()
        s, prompt = self.slots, job.prompt
        s.token[b], s.fed[b], s.state[b] = prompt.tokens[-1], 0, 0
        s.position[b], s.limit[b], s.active[b] = prompt.positions[:, -1].max(), job.limits[order], True
        s.item[b], s.purpose[b], s.number[b] = prompt.item, prompt.purpose, number
        s.tile_at[b], s.own_at[b] = tile_at, own_at
        if s.form is not None:
            s.form[b] = -1
        if prompt.form is not None:
            s.form[b, : prompt.form.shape[0], : prompt.form.shape[1]] = prompt.form
        self.writing[b] = (job, order)

    def _admit(self, job: Job, wave: Wave) -> bool:
        """A row, tile places, cached prefixes and image features for a prompt; False where there is no room now."""
        if not self.free_rows or not self.context(job, wave):
            return False
        places = self._tiles(job, wave)
        if places is None or not all(self.picture(p, wave) for _, p in job.prompt.pictures_in(job.pieces[-1])):
            for place in places or ():
                self._free_tile(place)
            return False
        job.row = self.free_rows.pop()
        leaf = job.pieces[-1]
        self.slots.own_length[job.row] = leaf.stop - leaf.start
        wave.leaves.append((job.prompt, leaf, self.contexts[job.context][0] if job.context else -1, job.row))
        base = job.row * self.shape.answers
        job.waiting.extend((i, n, place, base + i) for i, (n, place) in enumerate(zip(job.numbers, places)))
        self.resident.append(job)
        return True

    def _tiles(self, job: Job, wave: Wave) -> list[int] | None:
        """Places in tiles for all answers of a prompt, or None (and nothing taken)."""
        out: list[int] = []
        keys, free, Q = self.tile_key, self.tile_free, self.shape.queries
        for _ in job.numbers:
            g = next((g for g, key in enumerate(keys) if key == job.context and free[g]), None)
            if g is None:
                idle = [g for g in range(len(keys)) if len(free[g]) == Q]
                if not idle:
                    for place in out:
                        self._free_tile(place)
                    return None
                g = next((g for g in idle if keys[g] is None), idle[0])
                keys[g] = job.context
                row, length = self.contexts[job.context] if job.context else (-1, 0)
                self.slots.tile_length[g] = length
                if job.context:
                    wave.copies.append((g, row))
            out.append(g * Q + free[g].pop())
        return out

    def _free_tile(self, place: int) -> None:
        self.tile_free[place // self.shape.queries].append(place % self.shape.queries)

    def release(self, b: int, again: int | None = None) -> Job:
        """Frees a slot whose answer has ended; with `again`, the answer is written anew under that number."""
        job, order = self.writing[b]
        s = self.slots
        tile_at, own_at = int(s.tile_at[b]), int(s.own_at[b])
        self.writing[b], s.active[b] = None, False
        s.tile_at[b], s.own_at[b] = self.shape.tiles * self.shape.queries, self.shape.prompts * self.shape.answers
        if again is not None:
            job.waiting.append((order, again, tile_at, own_at))
            return job
        self._free_tile(tile_at)
        if len(job.answers) == len(job.numbers):
            self.resident.remove(job)
            self.free_rows.append(job.row)
        return job
