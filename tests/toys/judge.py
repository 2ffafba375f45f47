"""A judge from outside: statistics of pixels, with dimensions, scales and a rule for several sources of its own."""

import dataclasses
from pathlib import Path

import numpy as np

from edit_rl_jax import json_files
from edit_rl_jax.data.images import decode_image
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement, option


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of the toy."""

    near: float = option(0.9, "closeness that is enough")
    blind: bool = option(False, "leave the colour out")


class Pixels(Judge):
    """Likes edits that stay close to the mean of their sources, and colour; `weight` of the first is in its folder."""

    Options = Options

    def __init__(self, weight: float, options: Options):
        self.weight, self.options = weight, options

    @classmethod
    def from_folder(cls, folder: Path, options: Options, *, base=None, mesh=None, verify=True) -> "Pixels":
        return cls(json_files.read_object(folder / "pixels.json")["weight"], options)

    def dimensions(self):
        return ("closeness",) if self.options.blind else ("closeness", "colour")

    def settings(self):
        return {"weight": self.weight, **dataclasses.asdict(self.options)}

    def score(self, edits, *, only=None, progress=True):
        return [self._one(edit, only or self.dimensions()) for edit in edits]

    def _one(self, edit, names):
        pixels = lambda x: np.asarray(decode_image(x) if isinstance(x, bytes) else x, np.float64)
        try:
            sources, edited = [pixels(x) for x in edit.sources], pixels(edit.edited)
            away = np.abs(np.mean(sources, 0) - edited) / 255
        except ValueError as error:
            return Judgement(problem=str(error))
        colour = float((edited.max(-1) - edited.min(-1)).mean())
        near = Dimension(1 - float(away.mean()), float(away.std()))
        found = {"closeness": near, "colour": Dimension(colour, None, 255.0)}
        found = {name: found[name] for name in names}
        if set(found) != set(self.dimensions()):
            return Judgement(found)
        other = found["colour"].share if "colour" in found else near.share
        overall = Dimension(self.weight * near.share + (1 - self.weight) * other)
        said = (f"{edit.extras.get('asked', 'looked')} at {len(edit.sources)}",)
        return Judgement(found, overall, near.value >= self.options.near, said, details={"words": edit.instruction})
