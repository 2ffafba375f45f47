"""EditWorld as a dataset: labelled records of edits, and pairs of records for evaluation. Rendered when asked for."""

import dataclasses
import functools
import io
import math

import numpy as np
from PIL import Image

from edit_rl_jax.data import principles
from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.records import EditRecord, group_id
from edit_rl_jax.editworld import language, oracle
from edit_rl_jax.editworld.edits import KINDS, TASKS, Candidate, Edit, candidate, random_edit, third
from edit_rl_jax.editworld.principles import principles_of, verdicts_of
from edit_rl_jax.editworld.render import DAMAGES, NATIVE, render
from edit_rl_jax.editworld.scene import SPLITS, choice, rng

# Shares of the kinds of candidates. Damage comes with the right edit, and with ALSO_DAMAGED of the others.
MIXTURE = {
    "correct": 0.2,
    "half": 0.19,
    "wrong_object": 0.12,
    "over_edited": 0.17,
    "untouched": 0.08,
    **dict.fromkeys(DAMAGES, 0.06),
}
ALSO_DAMAGED = 0.15
GAP = 3.0  # least difference of oracle overall within a pair


def png(image: np.ndarray) -> bytes:
    """uint8 [H, W, 3] as PNG."""
    out = io.BytesIO()
    Image.fromarray(image).save(out, "png", compress_level=1)
    return out.getvalue()


@functools.lru_cache(maxsize=64)
def _source(edit: Edit, resolution: int) -> bytes:
    return png(render(edit.source, resolution))


def make_record(edit: Edit, made: Candidate, key: str, split: str, resolution: int = NATIVE) -> EditRecord:
    """A candidate as a record: scores by the oracle from the pixels, reasons from what was drawn.

    `meta`: kind, severity, third, damages {kind: severity}, overall, success, split, principles (as `data.principles`
    reads them) and verdicts (on each, 0 or 1).
    """
    image = made.render(resolution)
    verdict = oracle.score(image, edit)
    fractions, extra = oracle.judge(made.scene, edit)
    drawn = {kind: severity for kind, severity, _ in made.damages}
    source = _source(edit, resolution)
    return EditRecord(
        key=key,
        source=source,
        edited=png(image),
        instruction=edit.instruction,
        task=edit.task,
        sc=verdict.sc,
        pq=verdict.pq,
        sc_reasoning=language.sc_reasoning(edit, made.scene, fractions, extra, verdict.sc),
        pq_reasoning=language.pq_reasoning({k: verdict.severities[k] for k in drawn}, oracle.quality),
        group=group_id(source, edit.instruction),
        meta={
            "kind": made.kind,
            "severity": made.severity,
            "third": third(made.severity),
            "damages": drawn,
            "overall": verdict.overall,
            "success": verdict.is_success,
            "split": split,
            "principles": principles.to_json(principles_of(edit)),
            "verdicts": list(verdicts_of(edit, verdict)),
        },
    )


class EditRecords:
    """Random access to `size` records, each a function of (split, seed, index) alone.

    `group` consecutive records share their source and instruction. `mixture`: shares of the kinds of candidates;
    `tasks`: the tasks drawn from; `also_damaged`: share of the candidates neither right nor damaged by kind that are
    damaged too. Raises ValueError for an unknown split, kind or task.
    """

    def __init__(
        self,
        split: str,
        size: int,
        seed: int = 0,
        resolution: int = NATIVE,
        *,
        group: int = 4,
        mixture: dict[str, float] | None = None,
        tasks: tuple[str, ...] = TASKS,
        also_damaged: float = ALSO_DAMAGED,
    ):
        mixture = mixture or MIXTURE
        for what, names, known in (("split", (split,), SPLITS), ("kind", mixture, KINDS), ("task", tasks, TASKS)):
            if wrong := [n for n in names if n not in known]:
                raise ValueError(f"unknown {what} {wrong[0]!r}; known: {', '.join(known)}")
        self.split, self.size, self.seed, self.resolution = split, size, seed, resolution
        self.group, self.tasks, self.also_damaged = group, tasks, also_damaged
        self._kinds = tuple(mixture)
        weights = np.array([mixture[k] for k in self._kinds], float)
        self._weights = weights / weights.sum()

    def __len__(self) -> int:
        return self.size

    def edit(self, index: int) -> Edit:
        """The edit that record `index` is a candidate of."""
        gen = rng("edit", self.split, self.seed, index // self.group)
        return random_edit(gen, self.split, choice(gen, self.tasks))

    def candidate(self, index: int) -> tuple[Edit, Candidate]:
        """What record `index` shows, before it is rendered and scored."""
        edit = self.edit(index)
        return edit, self.draw(rng("candidate", self.split, self.seed, index), edit)

    def draw(self, gen: np.random.Generator, edit: Edit) -> Candidate:
        """Draws a candidate of an edit from the mixture."""
        made = None
        while made is None:
            kind = str(gen.choice(self._kinds, p=self._weights))
            made = candidate(gen, edit, kind, float(gen.uniform(0.05, 1.0)), self.split)
        if not made.damages and made.kind != "correct" and gen.random() < self.also_damaged:
            extra = (choice(gen, DAMAGES), float(gen.uniform(0.05, 1.0)), int(gen.integers(2**31)))
            made = dataclasses.replace(made, damages=(extra,))
        return made

    def __getitem__(self, index: int) -> EditRecord:
        if not 0 <= index < self.size:
            raise IndexError(index)
        edit, made = self.candidate(index)
        key = f"{self.split}/{self.seed}/{index}"
        return make_record(edit, made, key, self.split, self.resolution)


class RightEdits:
    """Random access to `size` right edits, each a function of (split, seed, index) alone: what an editor learns from.

    Where several results are right, it is one of them at random. terse: share of instructions that are
    `language.terse`; first: so many items, from the beginning, are all of them.
    """

    def __init__(
        self,
        split: str,
        size: int,
        seed: int = 0,
        resolution: int = NATIVE,
        tasks: tuple[str, ...] = TASKS,
        terse: float = 0.0,
        first: int = 0,
    ):
        self.split, self.size, self.seed, self.resolution, self.tasks = split, size, seed, resolution, tasks
        self.terse, self.first = terse, first

    def __len__(self) -> int:
        return self.size

    def edit(self, index: int) -> Edit:
        """The edit of item `index`."""
        gen = rng("right edit", self.split, self.seed, index)
        return random_edit(gen, self.split, choice(gen, self.tasks))

    def __getitem__(self, index: int) -> EditExample:
        if not 0 <= index < self.size:
            raise IndexError(index)
        edit = self.edit(index)
        result = choice(rng("right result", self.split, self.seed, index), edit.targets).scene
        images = [render(scene, self.resolution) for scene in (edit.source, result)]
        terse = index < self.first or rng("terse", self.split, self.seed, index).random() < self.terse
        text = language.terse(edit.ops) if terse else edit.instruction
        return EditExample(text, (images[0],), images[1], f"{self.split}/{self.seed}/{index}")


@dataclasses.dataclass(frozen=True)
class Pair:
    """Two records of one group; the oracle holds `better` at least GAP above `worse`. `kind` and `third` (0, 1, 2)
    describe the worse one's error."""

    better: EditRecord
    worse: EditRecord
    task: str
    kind: str
    third: int


def pairs(split: str, n: int = 528, seed: int = 0, resolution: int = NATIVE, tries: int = 160) -> list[Pair]:
    """At least `n` pairs, equally many of every task x error kind x severity third, in a fixed order.

    The better one is the right edit in half of the pairs, else any other candidate that is good enough, and in a pair
    with a damaged worse one, where that can be found, one that is farther from the source in pixels. A stratum in
    which no difference of GAP is found in `tries` draws has no pairs; untouched has the top third only. Raises
    ValueError for an unknown split.
    """
    if split not in SPLITS:
        raise ValueError(f"unknown split {split!r}; known: {', '.join(SPLITS)}")
    strata = [
        (task, kind, part)
        for task in TASKS
        for kind in KINDS[1:]
        for part in range(3)
        if kind != "untouched" or part == 2
    ]
    found: dict[tuple, list[Pair]] = {s: [] for s in strata}
    rounds = 0
    while sum(map(len, found.values())) < n and found:
        for stratum in list(found):
            pair = _pair(split, stratum, rounds, seed, resolution, tries)
            if pair is not None:
                found[stratum].append(pair)
            elif not rounds:  # nothing of the sort exists
                del found[stratum]
        rounds += 1
    return [p for group in found.values() for p in group]


def _expected(edit: Edit, made: Candidate) -> float:
    """The overall that a candidate should get, without rendering it."""
    natural = oracle.quality(*(s for k, s, _ in made.damages if k in ("blur", "cast")))
    clean = oracle.quality(*(s for k, s, _ in made.damages if k in ("noise", "blocks")))
    return math.sqrt(min(oracle.semantic(*oracle.judge(made.scene, edit))) * min(natural, clean))


def _changed(edit: Edit, made: Candidate, resolution: int) -> float:
    """Mean absolute difference of a candidate's pixels from the source's."""
    return float(np.abs(made.render(resolution) - render(edit.source, resolution).astype(np.float32)).mean())


def _pair(
    split: str, stratum: tuple[str, str, int], number: int, seed: int, resolution: int, tries: int
) -> Pair | None:
    task, kind, part = stratum
    others = [k for k in KINDS if k not in ("untouched", kind)]
    correct = rng("better", split, seed, task, kind, part, number).random() < 0.5
    for attempt in range(tries):
        key = f"pairs/{split}/{seed}/{task}/{kind}/{part}/{number}/{attempt}"
        gen = rng("pairs", split, seed, task, kind, part, number, attempt)
        edit = random_edit(gen, split, task)
        worse = candidate(gen, edit, kind, float(gen.uniform(part / 3 + 0.01, (part + 1) / 3)), split)
        other = "correct" if correct or attempt >= tries // 2 else choice(gen, others)
        better = candidate(gen, edit, other, float(gen.uniform(0.05, 1)), split)
        if better is None or worse is None or third(worse.severity) != part:
            continue
        if _expected(edit, better) - _expected(edit, worse) < GAP - 0.5:
            continue
        # damage takes pixels away from the source: without this the plain pixel distance would judge well
        if kind in DAMAGES and not correct and attempt < tries // 2:
            if _changed(edit, better, resolution) < _changed(edit, worse, resolution):
                continue
        records = [make_record(edit, c, f"{key}/{w}", split, resolution) for c, w in ((better, "a"), (worse, "b"))]
        if records[0].meta["overall"] - records[1].meta["overall"] >= GAP:
            return Pair(records[0], records[1], task, kind, part)
    return None
