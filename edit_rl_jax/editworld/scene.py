"""Scenes of EditWorld: up to one object in each of the nine cells of a 3x3 grid, over a background.

NumPy only. Everything random comes from `rng(...)`, keyed by what is drawn, never by what was drawn before.
"""

import dataclasses
import zlib

import numpy as np

CELLS = ("northwest", "north", "northeast", "west", "center", "east", "southwest", "south", "southeast")
ROWS = {"north": (0, 1, 2), "middle": (3, 4, 5), "south": (6, 7, 8)}
COLUMNS = {"west": (0, 3, 6), "middle": (1, 4, 7), "east": (2, 5, 8)}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring")
COLOURS = {
    "red": (222, 38, 38),
    "orange": (246, 142, 20),
    "yellow": (250, 226, 52),
    "green": (34, 158, 60),
    "cyan": (40, 208, 214),
    "blue": (40, 72, 224),
    "purple": (132, 40, 170),
    "pink": (250, 130, 190),
}
MATERIALS = ("plain", "striped", "dotted", "checked")
SIZES = ("small", "big")
BACKGROUNDS = ("sand", "grass", "sky", "brick", "slate", "night")
ATTRIBUTES = ("size", "colour", "material", "shape")
VALUES = {"size": SIZES, "colour": tuple(COLOURS), "material": MATERIALS, "shape": SHAPES}
BACKGROUND_SLOT = 9  # a scene's slots are its nine cells, then the background
SPLITS = ("train", "validation", "test")

# Combinations that a split has to itself. Training and base pretraining see none of them, validation none of test's.
HELD_OUT = {
    "train": frozenset(),
    "validation": frozenset(
        {("red", "ring"), ("green", "square"), ("purple", "circle"), ("pink", "cross"), ("cyan", "striped")}
    ),
    "test": frozenset(
        {("blue", "star"), ("orange", "triangle"), ("yellow", "circle"), ("cyan", "cross"), ("pink", "square")}
        | {("green", "ring"), ("blue", "dotted"), ("orange", "checked"), ("purple", "striped")}
    ),
}


def rng(*key: int | str) -> np.random.Generator:
    """Generator keyed by integers and words alone."""
    return np.random.Generator(
        np.random.PCG64(np.random.SeedSequence([zlib.crc32(k.encode()) if isinstance(k, str) else k for k in key]))
    )


@dataclasses.dataclass(frozen=True)
class Obj:
    """One object. `offset` is (x, y) in 1/28 of a cell, `brightness` a factor; neither is part of its look."""

    size: str
    colour: str
    material: str
    shape: str
    offset: tuple[int, int] = (0, 0)
    brightness: float = 1.0

    @property
    def look(self) -> tuple[str, str, str, str]:
        """(size, colour, material, shape)"""
        return self.size, self.colour, self.material, self.shape

    def __str__(self) -> str:
        return " ".join(self.look)

    def differs(self, other: "Obj") -> tuple[str, ...]:
        """Names of the attributes in which two objects differ, in the order of ATTRIBUTES."""
        return tuple(a for a, x, y in zip(ATTRIBUTES, self.look, other.look) if x != y)


@dataclasses.dataclass(frozen=True)
class Scene:
    """`objects[i]` is what stands in CELLS[i], None for nothing; `brightness` is the background's factor."""

    objects: tuple[Obj | None, ...]
    background: str
    brightness: float = 1.0

    def put(self, cell: int, obj: Obj | None) -> "Scene":
        return dataclasses.replace(self, objects=self.objects[:cell] + (obj,) + self.objects[cell + 1 :])

    def slot(self, slot: int) -> tuple[str, ...] | str | None:
        """What counts as the content of a cell (a look or None) or of the background (its name)."""
        if slot == BACKGROUND_SLOT:
            return self.background
        obj = self.objects[slot]
        return None if obj is None else obj.look

    @property
    def slots(self) -> tuple:
        return (*(None if o is None else o.look for o in self.objects), self.background)

    @property
    def occupied(self) -> list[int]:
        return [i for i, o in enumerate(self.objects) if o is not None]

    @property
    def empty(self) -> list[int]:
        return [i for i, o in enumerate(self.objects) if o is None]


def held_out(obj: Obj, split: str) -> bool:
    """Whether the object is of a combination that `split` has to itself."""
    return (obj.colour, obj.shape) in HELD_OUT[split] or (obj.colour, obj.material) in HELD_OUT[split]


def allowed(obj: Obj, split: str) -> bool:
    """Whether the object may appear in `split`: no combination that belongs to another split."""
    return not any(held_out(obj, other) for other in SPLITS if other != split)


def choice(gen: np.random.Generator, values):
    values = list(values)
    return values[int(gen.integers(len(values)))]


def random_object(gen: np.random.Generator, split: str, *, special: bool = False, jitter: bool = True) -> Obj:
    """A random object that `split` may show; `special`: one of the split's own combinations (no effect in train)."""
    while True:
        offset = tuple(int(v) for v in gen.integers(-1, 2, 2)) if jitter else (0, 0)
        look = {a: choice(gen, VALUES[a]) for a in ATTRIBUTES}
        obj = Obj(**look, offset=offset, brightness=float(gen.uniform(0.93, 1.07)) if jitter else 1.0)
        if allowed(obj, split) and (not special or not HELD_OUT[split] or held_out(obj, split)):
            return obj


def random_scene(
    gen: np.random.Generator, split: str, *, objects: tuple[int, int] = (2, 5), special: bool = False
) -> Scene:
    """A random scene of `objects` (fewest, most) different looks; `special`: one is of a held-out combination."""
    count = int(gen.integers(objects[0], objects[1] + 1))
    cells = gen.permutation(9)[:count]
    scene = Scene((None,) * 9, choice(gen, BACKGROUNDS), float(gen.uniform(0.95, 1.05)))
    looks: set = set()
    for k, cell in enumerate(cells):
        obj = random_object(gen, split, special=special and k == 0)
        while obj.look in looks:
            obj = random_object(gen, split, special=special and k == 0)
        looks.add(obj.look)
        scene = scene.put(int(cell), obj)
    return scene
