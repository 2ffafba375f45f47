"""Edit-R1's verifier in small: the packaged tiny base, trained on replies of EditWorld's own verifier.

    python scripts/train_rm.py --config configs/rrm_tiny.py --workdir runs/rrm_tiny

Hardware: two CPU cores, 20 minutes beside other jobs. To expect: pair_accuracy 0.86 in eval.json, verdicts 0.92 right;
with --mode think 0.87 and verify 0.39, for the base compares pictures in words. `configs/gcpo_tiny.py` goes on.
"""

from pathlib import Path

import edit_rl_jax
from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="qwen2_5_vl", objective="edit_rrm")
    c.name = "rrm_tiny"
    c.steps = 450
    c.rows = 8
    c.model.init_from = str(Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl")
    c.model.prompts = "tiny"
    c.model.trainable = "full"  # the base has never seen the letters of which a verdict's JSON is made
    c.model.remat = "none"
    c.verifier.mode = "all"  # one model that thinks, verifies, and does both
    c.data.train = "editworld_verifier"
    c.data.size = 100_000
    c.data.max_pixels = 84 * 84  # what the base knows
    c.data.shuffle = False  # the world is random by index
    c.data.validation_size = 128
    c.data.buckets = ((672, 6, 36, 560),)  # two or three edits
    c.data.workers = 1
    c.optim.name = "muon"
    c.optim.lr = 5e-3
    c.optim.adam_lr = 2e-3
    c.optim.schedule = "linear"
    c.optim.warmup = 20
    c.optim.b2 = 0.98
    c.checkpoint.every = 100
    c.eval.every = 200
    c.eval.batches = 4
    c.eval.pairs = 528
    c.log.every = 10
    return c
