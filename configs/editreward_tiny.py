"""EditReward in small: LoRA and Gaussian heads on the packaged tiny base, preferences of EditWorld.

    python scripts/train_rm.py --config configs/editreward_tiny.py --workdir runs/editreward

Hardware: two CPU cores, nine minutes. To expect: pair_accuracy 0.70 in eval.json, visual quality 0.99 and instruction
following 0.68: the packaged base compares pictures in words, one object after another, which a head cannot read.
"""

from pathlib import Path

import edit_rl_jax
from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="editreward", objective="editreward")
    c.name = "editreward_tiny"
    c.steps = 360
    c.rows = 8
    c.model.init_from = str(Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl")
    c.model.prompts = "tiny"
    c.model.remat = "none"
    c.preference.labels = "both"
    c.data.train = "editworld_preferences"
    c.data.size = 100_000
    c.data.max_pixels = 84 * 84  # what the base knows
    c.data.shuffle = False  # the world is random by index
    c.data.validation_size = 512
    c.data.buckets = ((544, 9, 36, 12),)  # three pairs
    c.data.workers = 1
    c.optim.lr = 2e-3
    c.optim.groups = (("rm_heads.", 4e-4),)
    c.optim.schedule = "linear"
    c.optim.warmup = 20
    c.optim.b2 = 0.98
    c.checkpoint.every = 100
    c.eval.every = 100
    c.eval.batches = 16
    c.eval.pairs = 528
    c.log.every = 10
    return c
