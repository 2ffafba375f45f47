"""Online RL of the packaged tiny editor on EditWorld: GRPO with Flow-CPS, a window of 3 noisy steps, no KL.

    python scripts/train_grpo.py --config configs/grpo_tiny.py --workdir runs/rl --config.rl.judge.model=runs/demo/model

The reward is the reward model that `train_rm.py --config configs/rm_tiny.py` leaves in runs/demo/model; the oracle with
--config.rl.rewards="(('oracle',1.0),)".
With a LoRA instead of all weights of the transformer: --config.model.trainable=lora --config.optim.lr=1e-3.
The package does not carry assets/tiny_editor yet: say --config.model.init_from=runs/editor_tiny/model.
Hardware: two CPU cores, meant for at most 20 minutes. Its gain (eval.json, oracle_success_gain_ci95) is not measured.
"""

from pathlib import Path

import edit_rl_jax
from edit_rl_jax.rl.config import default


def get_config():
    c = default()
    c.name = "grpo_tiny"
    c.steps = 150
    c.rows = 32
    c.model.init_from = str(Path(edit_rl_jax.__file__).parent / "assets" / "tiny_editor")
    c.model.trainable = "full"
    c.model.lora.rank = 16
    c.model.lora.alpha = 32.0
    c.model.remat = "none"
    c.data.train = "editworld"
    c.data.shuffle = False  # the world is random by index
    c.optim.lr = 1e-4
    c.optim.schedule = "linear"
    c.optim.warmup = 3
    c.optim.b2 = 0.99
    c.checkpoint.every = 25
    c.eval.every = 25
    c.log.every = 5
    c.rl.prompts = 12
    c.rl.group = 16
    c.rl.updates = 3
    c.rl.size = (84, 84)
    c.rl.text = 30  # of 300 instructions one is longer, and cut
    c.rl.steps = 8
    c.rl.schedule.kind = "linear"
    c.rl.noise.kind = "cps"
    c.rl.noise.level = 0.8
    c.rl.window = 3
    c.rl.window_range = (0, 4)
    # 3e-4 at 432 latent elements; the ratio's spread goes with 1 / sqrt(elements)
    c.rl.loss.clip = (2.5e-5, 2.5e-5)
    c.rl.loss.clip_elements = 65_536
    c.rl.judge.max_new_tokens = 208
    c.rl.judge.rows = 128
    c.rl.oracle_samples = 12
    c.rl.eval_prompts = 512
    c.rl.eval_during = 128
    return c
