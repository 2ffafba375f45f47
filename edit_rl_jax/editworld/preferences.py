"""EditWorld as preferences: two candidates of one edit, labelled on 1..4 as an annotator of chosen noise would."""

import numpy as np
from jaxtyping import Int

from edit_rl_jax.data import principles
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, PreferenceRecord, group_id
from edit_rl_jax.editworld import oracle
from edit_rl_jax.editworld.dataset import EditRecords, png
from edit_rl_jax.editworld.edits import TASKS, Candidate, Edit, random_edit
from edit_rl_jax.editworld.principles import principles_of, verdicts_of
from edit_rl_jax.editworld.render import DAMAGES, NATIVE, render
from edit_rl_jax.editworld.scene import choice, rng

# With these 20% of the pairs are ties overall, 38% in instruction following and 42% in visual quality; of EditReward's
# pairs (arXiv 2509.26346) 20.7%, 38.3% and 32.8% are.
MIXTURE = {
    "correct": 0.22,
    "half": 0.14,
    "wrong_object": 0.10,
    "over_edited": 0.12,
    "untouched": 0.06,
    **dict.fromkeys(DAMAGES, 0.09),
}
ALSO_DAMAGED = 0.3
LABELS = 4  # 1 to 4, each a quarter of the oracle's scale


def label(score: float) -> int:
    """Labels an oracle's score on 0..25: 1, 2, 3 or 4, by quarters of the scale."""
    return min(LABELS, 1 + int(score // (25 / LABELS)))


class Preferences:
    """Random access to `size` PreferenceRecords, each a function of (split, seed, index) and the options alone.

    The two candidates differ in pixels. Labels: `label` of the lower of the oracle's two scores of a dimension (success
    and over-editing, naturalness and artifacts), and `prefers` is the sign of the difference of their sums. `meta`:
    kinds, damages, success, and what noise leaves alone: oracle (scores on 0..25 by dimension and overall), labels,
    principles and verdicts (of each candidate).

    Args:
      noise: chance, on [0, 1], that a label is not the oracle's but drawn from 1..4, each alike: 1 is pure chance. The
        images stay, and a higher noise redraws what a lower one did and more. Two annotators of noise p agree about as
        (1 - p)^2 in Krippendorff's alpha; 0.2 comes near to EditReward's 0.67 and 0.60.
      annotator: whose noise; another number draws anew.
      mixture, tasks, also_damaged: as of EditRecords.

    Raises ValueError for noise outside [0, 1], an unknown split, kind or task, and when an item is asked for, where the
    mixture makes one picture only.
    """

    def __init__(
        self,
        split: str,
        size: int,
        seed: int = 0,
        resolution: int = NATIVE,
        *,
        noise: float = 0.0,
        annotator: int = 0,
        mixture: dict[str, float] | None = None,
        tasks: tuple[str, ...] = TASKS,
        also_damaged: float = ALSO_DAMAGED,
    ):
        if not 0 <= noise <= 1:
            raise ValueError(f"noise is a chance in [0, 1], not {noise}")
        self.split, self.size, self.seed, self.resolution = split, size, seed, resolution
        self.noise, self.annotator, self.tasks = noise, annotator, tasks
        self._records = EditRecords(
            split, size, seed, mixture=mixture or MIXTURE, tasks=tasks, also_damaged=also_damaged
        )

    def __len__(self) -> int:
        return self.size

    def candidates(self, index: int) -> tuple[Edit, tuple[Candidate, Candidate]]:
        """Draws what pair `index` shows, before it is rendered and scored."""
        for attempt in range(100):
            gen = rng("preferences", self.split, self.seed, index, attempt)
            edit = random_edit(gen, self.split, choice(gen, self.tasks))
            first, second = (self._records.draw(gen, edit) for _ in range(2))
            if (first.scene, first.damages) != (second.scene, second.damages):
                return edit, (first, second)
        raise ValueError("the mixture makes one picture of an edit only: two different candidates wanted")

    def annotated(self, index: int, labels: Int[np.ndarray, "2 2"]) -> Int[np.ndarray, "2 2"]:
        """Gives the labels (candidate, dimension) of pair `index` as the annotator would, from the oracle's."""
        gen = rng("annotator", self.split, self.seed, index, self.annotator)
        return np.where(gen.random((2, 2)) < self.noise, gen.integers(1, LABELS + 1, (2, 2)), labels)

    def __getitem__(self, index: int) -> PreferenceRecord:
        if not 0 <= index < self.size:
            raise IndexError(index)
        edit, made = self.candidates(index)
        images = [m.render(self.resolution) for m in made]
        verdicts = [oracle.score(image, edit) for image in images]
        exact = [(min(v.success, v.over_editing), min(v.naturalness, v.artifacts)) for v in verdicts]
        labels = np.array([[label(score) for score in scores] for scores in exact])
        given = self.annotated(index, labels)
        by_name = lambda table: dict(zip(PREFERENCE_DIMENSIONS, map(list, zip(*table)), strict=True))
        source = png(render(edit.source, self.resolution))
        return PreferenceRecord(
            key=f"preferences/{self.split}/{self.seed}/{index}",
            source=source,
            edited=(png(images[0]), png(images[1])),
            instruction=edit.instruction,
            prefers=int(np.sign(given[0].sum() - given[1].sum())),
            scores={name: (float(a), float(b)) for name, (a, b) in by_name(given).items()},
            task=edit.task,
            group=group_id(source, edit.instruction),
            meta={
                "kinds": [m.kind for m in made],
                "damages": [{kind: severity for kind, severity, _ in m.damages} for m in made],
                "success": [v.is_success for v in verdicts],
                "oracle": {**by_name(exact), "overall": [v.overall for v in verdicts]},
                "labels": by_name(labels.tolist()),
                "split": self.split,
                "principles": principles.to_json(principles_of(edit)),
                "verdicts": [list(verdicts_of(edit, v)) for v in verdicts],
            },
        )
