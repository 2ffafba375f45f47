"""GCPO of the tiny verifier on EditWorld's pairs: LoRA on runs/rrm_tiny/model, which `configs/rrm_tiny.py` makes.

    python scripts/train_gcpo.py --config configs/gcpo_tiny.py --workdir DIR

The baselines: --config.rl.algorithm=grpo_pointwise, or verdicts.
Hardware: a CPU core, 42 seconds a step, or 45 minutes for these 60 steps. It gains nothing in them (docs/verifier.md
says with what it gained a little).
"""

from edit_rl_jax.rl.vlm.config import default


def get_config():
    c = default()
    c.name = "gcpo_tiny"
    c.steps = 60
    c.rows = 1  # 0.86 of an update's tokens are real; rows of 1,664 have 0.91 and take a third longer
    c.model.init_from = "runs/rrm_tiny/model"
    c.model.remat = "none"
    c.data.max_pixels = 84 * 84  # what the base knows
    c.data.shuffle = False  # the world is random by index
    c.data.validation_size = 2048
    c.data.buckets = ((704, 2, 72, 640),)
    c.optim.lr = 2e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 5
    c.optim.b2 = 0.98
    c.checkpoint.every = 10
    c.eval.every = 20
    c.rl.pairs = 8
    c.rl.group = 8
    c.rl.slots = 128  # all replies at once
    c.rl.shared = 160
    c.rl.own = 32
    c.rl.max_new_tokens = 320  # replies have 240, and at most 319
    c.rl.microbatches = 80
    c.rl.eval_pairs = 64
    return c
