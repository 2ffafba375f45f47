"""Perception tasks on EditWorld, for pretraining the tiny base: what is where, what a phrase means, what changed, how
damaged a picture is. No task judges an edit, and the `train` split shows none of the held-out combinations.

`cell` names the content of one cell, `grid` describes a picture, `find` marks the objects that fit a phrase, `refer`
restates an instruction and says where in the picture it wants what, `compare` describes two pictures cell by cell,
`request` does both, `count` numbers the changes, `damage` grades damage, `say` repeats words. With `json`, the share of
examples whose answer is wanted as a JSON object with two numbers of the prompt, the base also learns to write replies.
"""

import dataclasses
import json
from collections.abc import Mapping

import numpy as np

from edit_rl_jax.data.example import Example
from edit_rl_jax.editworld import language
from edit_rl_jax.editworld.edits import Edit, candidate, change, random_edit
from edit_rl_jax.editworld.render import DAMAGES, damage, paint, quantise, render
from edit_rl_jax.editworld.scene import (
    ATTRIBUTES,
    BACKGROUNDS,
    CELLS,
    COLOURS,
    MATERIALS,
    SHAPES,
    SIZES,
    Scene,
    allowed,
    choice,
    random_object,
    random_scene,
    rng,
)

MIXTURE = {
    "cell": 0.02,
    "grid": 0.12,
    "find": 0.10,
    "refer": 0.05,
    "compare": 0.05,
    "request": 0.22,
    "count": 0.04,
    "damage": 0.38,
    "say": 0.02,
}
# What everything else rests on and is learnt slowly beside it: what a cell holds, and to copy words.
EASY = {"cell": 0.25, "grid": 0.35, "say": 0.4}
PROMPTS = {
    "cell": "What is at {c}?",
    "grid": "Describe the picture.",
    "find": "Find {o}.",
    "refer": "What is asked: {i}",
    "compare": "Compare the pictures.",
    "damage": "How damaged is the picture?",
    "request": "Compare the pictures. What is asked: {i}",
    "count": "Compare the pictures. Number the changes.",
    "say": "Say: {t}",
}
REPLY = " Reply in JSON with score {a} and {b}."
WORDS = (
    *(SIZES + MATERIALS + SHAPES + CELLS + BACKGROUNDS + tuple(COLOURS) + language.LEVELS + language.DONE),
    *"asked : to done extra number new gone same changed background any . ,".split(),
    *"0123456789",
)
CHANGED_KINDS = ("correct", "half", "wrong_object", "over_edited", "untouched")


def chat(text: str, images: list[np.ndarray]) -> tuple[str | np.ndarray, ...]:
    """ChatML up to the assistant's turn: the text, then the images (uint8 [H, W, 3])."""
    parts: list[str | np.ndarray] = [f"<|im_start|>user\n{text}"]
    for image in images:
        parts[-1] = f"{parts[-1]}<|vision_start|>"
        parts += [image, "<|vision_end|>"]
    parts[-1] = f"{parts[-1]}<|im_end|>\n<|im_start|>assistant\n"
    return tuple(parts)


def _damaged(gen: np.random.Generator, image: np.ndarray) -> tuple[np.ndarray, dict[str, float]]:
    """The picture with no, one or two kinds of damage, and their severities."""
    kinds = gen.permutation(DAMAGES)[: gen.choice(3, p=[0.1, 0.6, 0.3])]
    found = {}
    for kind in kinds:
        found[str(kind)] = float(gen.uniform(0.05, 1.0) ** 0.6)  # visible damage is learnt first
        image = damage(image, str(kind), found[str(kind)], gen)
    return image, found


def _changed(gen: np.random.Generator, split: str) -> tuple[Edit, Scene]:
    """An edit and what an editor might have made of its scene; in some, half of all cells differ, so that the second
    picture must be looked at and not taken for the first."""
    while True:
        edit = random_edit(gen, split)
        if gen.random() < 0.4:
            return edit, _reshuffled(gen, edit.source, split)
        found = candidate(gen, edit, choice(gen, CHANGED_KINDS), float(gen.uniform(0, 1)), split)
        if found is not None:
            return edit, found.scene


def _reshuffled(gen: np.random.Generator, scene: Scene, split: str) -> Scene:
    """The scene with about half of its objects gone, changed or replaced, and a few new ones."""
    for cell in range(9):
        obj, chance = scene.objects[cell], gen.random()
        if obj is None:
            scene = scene.put(cell, random_object(gen, split)) if chance < 0.2 and len(scene.occupied) < 5 else scene
        elif chance < 0.2:
            scene = scene.put(cell, None)
        elif chance < 0.6:
            other = random_object(gen, split)
            mixed = change(other, name := choice(gen, ATTRIBUTES), getattr(obj, name))
            scene = scene.put(cell, mixed if allowed(mixed, split) else other)
    return dataclasses.replace(scene, background=choice(gen, BACKGROUNDS)) if gen.random() < 0.3 else scene


def _phrase(gen: np.random.Generator) -> str:
    """Words of the world in random order: what is learnt here is to copy, on which finding and resolving rest."""
    return " ".join(WORDS[i] for i in gen.permutation(len(WORDS))[: gen.integers(2, 17)])


def _find(gen: np.random.Generator, scene: Scene, split: str) -> tuple[str, str]:
    """A phrase that any number of the scene's objects may fit, and the scene with those marked."""
    while True:
        obj = scene.objects[choice(gen, scene.occupied)] if gen.random() < 0.8 else random_object(gen, split)
        said = {str(a): getattr(obj, a) for a in gen.permutation(ATTRIBUTES)[: gen.integers(1, 4)]}
        words = language.words_of(**said)
        mixed = [language.mixed(o, words) for o in scene.objects if o is not None]
        if all(allowed(o, split) for o in mixed):
            break
    clauses = [f"asked {words} ."]
    for i, other in zip(scene.occupied, mixed):
        fits = other.look == scene.objects[i].look
        clauses.append(" ".join([*language.checked(i, scene.objects[i], words), *(["asked"] if fits else []), "."]))
    return language.phrase(said), " ".join(clauses)


def example(
    gen: np.random.Generator, task: str, split: str, resolution: int, key: str, json_share: float = 0.0
) -> Example:
    """A random example of one task. Raises ValueError for an unknown task."""
    fill: dict[str, str] = {}
    if task in ("cell", "grid", "find"):
        scene = random_scene(gen, split)
        cell = int(gen.integers(9)) if task == "cell" else choice(gen, scene.occupied)
        if task == "cell":
            fill, answer = {"c": CELLS[cell]}, f"{language.content(scene.objects[cell])} ."
        elif task == "find":
            fill["o"], answer = _find(gen, scene, split)
        else:
            answer = language.describe(scene)
        images = [render(scene, resolution)]
    elif task == "refer":
        edit = random_edit(gen, split)
        fill, images = {"i": edit.instruction}, [render(edit.source, resolution)]
        answer = f"{language.requests(edit)} {language.expect(edit)}"
    elif task in ("compare", "request", "count"):
        edit, found = _changed(gen, split)
        edited = paint(found, resolution)
        if gen.random() < 0.3:
            edited, _ = _damaged(gen, edited)
        images = [render(edit.source, resolution), quantise(edited)]
        asked = edit if task == "request" else None
        answer = language.compare(edit.source, found, asked, count="number" if task == "count" else "")
        if task == "request":
            fill, answer = {"i": edit.instruction}, f"{language.requests(edit)} {answer}"
    elif task == "damage":
        image, severities = _damaged(gen, paint(random_scene(gen, split), resolution))
        answer, images = language.pq_reasoning(severities), [quantise(image)]
    elif task == "say":
        answer, images = _phrase(gen), []
        fill = {"t": answer}
    else:
        raise ValueError(f"unknown task {task!r}; one of {sorted(PROMPTS)}")
    text = PROMPTS[task].format(**fill)
    if gen.random() < json_share:
        a, b = (int(n) for n in gen.integers(26, size=2))
        text += REPLY.format(a=a, b=b)
        answer = json.dumps({"reasoning": answer, "score": [a, b]})
    return Example(chat(text, images), f"{answer}<|im_end|>", key)


class Perception:
    """Random access to `size` examples; item i depends on (split, seed, i) alone.

    mixture: task -> weight. The first `easy` items are of EASY instead. `json_share` of the others are wanted as JSON.
    Raises ValueError for an unknown task.
    """

    def __init__(
        self,
        split: str,
        size: int,
        seed: int = 0,
        *,
        resolution: int = 84,
        mixture: Mapping[str, float] = MIXTURE,
        easy: int = 0,
        json_share: float = 0.4,
    ):
        if unknown := set(mixture) - set(PROMPTS):
            raise ValueError(f"unknown tasks {sorted(unknown)}; they are {sorted(PROMPTS)}")
        self._split, self._size, self._seed, self._resolution = split, size, seed, resolution
        self._easy, self._json_share = easy, json_share
        self._mixture = mixture

    def __len__(self) -> int:
        return self._size

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < self._size:
            raise IndexError(index)
        gen = rng("perception", self._split, self._seed, index)
        mixture = EASY if index < self._easy else self._mixture
        tasks = sorted(mixture)
        weights = np.array([mixture[t] for t in tasks], float)
        task = str(gen.choice(tasks, p=weights / weights.sum()))
        share = self._json_share if index >= self._easy else 0.0
        key = f"{self._split}/{self._seed}/{index}/{task}"
        return example(gen, task, self._split, self._resolution, key, share)
