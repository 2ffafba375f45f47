"""The demo: a LoRA judge on the packaged tiny base, EditScore objective, EditWorld.

    python scripts/train_rm.py --config configs/rm_tiny.py --workdir runs/demo

Hardware: two CPU cores, eight minutes. To expect: pair_accuracy 0.92 in eval.json.
"""

from pathlib import Path

import edit_rl_jax
from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="qwen2_5_vl", objective="editscore")
    c.name = "rm_tiny"
    c.steps = 500
    c.rows = 11
    c.model.init_from = str(Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl")
    c.model.prompts = "tiny"
    c.model.remat = "none"
    c.data.train = "editworld"
    c.data.size = 100_000
    c.data.max_pixels = 84 * 84  # what the model knows: a photograph is shrunk to that
    c.data.shuffle = False  # the world is random by index
    c.data.validation_size = 128
    c.data.buckets = ((256, 6, 36, 208),)
    c.data.workers = 1
    c.optim.lr = 2e-3
    c.optim.schedule = "linear"
    c.optim.warmup = 20
    c.optim.b2 = 0.98
    c.checkpoint.every = 100
    c.eval.every = 200
    c.eval.batches = 4
    c.eval.pairs = 528
    c.log.every = 10
    return c
