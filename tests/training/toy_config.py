"""A run of seconds: a micro model learns colour names. `--config.model.tokenizer DIR` is required.

python scripts/train_rm.py --config tests/training/toy_config.py --workdir runs/toy --config.model.tokenizer DIR
"""

import json
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training import micro  # noqa: E402


def get_config():
    return micro.config(
        steps=40,
        rows=4,
        accum=2,
        model__config=json.dumps(micro.ARCHITECTURE),
        data__train="tests.training.toy:source",
        data__size=60,
        data__validation_size=8,
        data__workers=2,
        data__buckets=((64, 1, 64, 16), (96, 1, 96, 24)),
        optim__lr=1e-2,
        checkpoint__every=6,
        eval__every=0,
        eval__batches=1,
        log__tensorboard=False,
    )
