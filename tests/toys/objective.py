"""An objective from outside the package: cross-entropy times an option of its own, `toy.alpha`. This file is also its
config: train_rm.py --config tests/toys/objective.py --config.toy.alpha=0.25 --config.model.tokenizer=DIR --workdir DIR
"""

import dataclasses
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.data.example import Example
from edit_rl_jax.names import ConfigError
from edit_rl_jax.ranges import knob
from edit_rl_jax.vlm import cross_entropy


@dataclasses.dataclass(frozen=True)
class Options:
    alpha: float = knob(1.0, "(0, 2]")
    style: str = knob("plain", ("plain", "squared"))


class Toy:
    SECTIONS = {"toy": Options}

    def __init__(self, options: Options):
        self.options = options

    @classmethod
    def configured(cls, config: Any) -> "Toy":
        options = Options(**config.toy.to_dict())
        if options.style == "squared" and options.alpha > 1:
            raise ConfigError("config key 'toy.alpha' is at most 1 where toy.style is squared")
        return cls(options)

    def to_examples(self, example: Example, seed: int = 0) -> list[Example]:
        return [example]

    def loss(self, model: Any, batch: Mapping):
        total, weight, metrics = cross_entropy.loss(model, batch)
        alpha = self.options.alpha ** (2 if self.options.style == "squared" else 1)
        return alpha * total, weight, {**metrics, "alpha": (alpha * weight, weight)}


def get_config():
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.training import micro

    return micro.config(
        objective="tests.toys.objective:Toy",
        steps=2,
        rows=4,
        accum=1,
        model__config=json.dumps(micro.ARCHITECTURE),
        data__train="tests.training.toy:source",
        data__size=20,
        data__buckets=((64, 1, 64, 16),),
        optim__lr=1e-2,
        eval__batches=0,
        log__tensorboard=False,
    )
