"""The toy family learns colour names in seconds; see tests/training/toy_config.py."""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.toys import family  # noqa: E402
from tests.training import micro  # noqa: E402


def get_config():
    return micro.config(
        steps=12,
        rows=4,
        accum=1,
        model__kind="tests.toys.family",
        model__config=json.dumps(family.Toy().to_hf()),
        data__train="tests.training.toy:source",
        data__size=60,
        data__validation_size=8,
        data__min_pixels=64,
        data__max_pixels=32 * 32,
        data__buckets=((128, 1, 128, 24),),
        optim__lr=1e-2,
        optim__warmup=1,
        eval__every=0,
        eval__batches=0,
        log__tensorboard=False,
    )
