"""Online RL of the packaged tiny editor on EditWorld: DiffusionNFT on group-relative advantages, no KL.

    python scripts/train_grpo.py --config configs/grpo_tiny.py --workdir runs/rl --config.rl.judge.model=runs/demo/model

With `:flux_kontext` after the file's name GRPO, and with `:flux_kontext_nft` DiffusionNFT, of the FLUX.1-Kontext that
configs/editor_tiny.py:flux_kontext leaves in runs/editor_tiny_flux_kontext/model, with the oracle as reward and 192
edits a step in both: in 52 steps NFT gains 2.5 points of success (0.8 to 4.4), GRPO none (-0.7, -2.7 to 1.2), three
seeds, 8 to 12 minutes of one core each (`benchmarks/bench_editor_networks.py`).
With `:rrm` the reward is the final score of the verifier that configs/rrm_tiny.py leaves in runs/rrm_tiny/model:
`benchmarks/bench_rl_verifier.py` compares two verifiers so; one after GCPO gained 1.2 points more (0.2 to 2.3) in 24
steps, 17 minutes of a quiet core.
The reward is the reward model that `train_rm.py --config configs/rm_tiny.py` leaves in runs/demo/model; the oracle with
--config.rl.rewards="(('oracle',1.0),)".
GRPO proper: --config.rl.algorithm=policy_gradient --config.rl.steps=8 --config.rl.window=3
--config.rl.window_range="(0,4)" --config.rl.loss.train_steps=0 --config.rl.loss.clip="(3e-4,3e-4)"
--config.rl.advantage.std=group --config.rl.success_bonus=0. With 12 groups of 16 and learning rates from 1e-4 to 1e-3
it gained nothing in 15 to 27 iterations that 128 prompts show.
Hardware: one CPU core, 20 to 24 minutes. To expect, three seeds, 512 held-out prompts: the oracle's success rises from
51.6% by 3.7 points (1.2 to 6.3); with the oracle as reward, in 120 steps and 18 minutes, by 4.3 (1.8 to 6.9);
17 minutes of supervised training on the right edits give 3.5.
"""

from pathlib import Path

import edit_rl_jax
from edit_rl_jax.editors.flux_kontext.tiny import TEXT
from edit_rl_jax.rl.editors.config import default

RECIPES = ("omnigen2", "flux_kontext", "flux_kontext_nft", "rrm")


def get_config(recipe="omnigen2"):
    if recipe not in RECIPES:
        raise ValueError(f"no recipe '{recipe}'; recipes: {', '.join(RECIPES)}")
    rrm = recipe == "rrm"
    c = default("omnigen2", "edit_rrm") if rrm else default(recipe.removesuffix("_nft"))
    c.name = "grpo_tiny" if recipe == "omnigen2" else f"grpo_tiny_{recipe}"
    c.steps = 60
    c.rows = 32
    c.model.init_from = str(Path(edit_rl_jax.__file__).parent / "assets" / "tiny_editor")
    c.model.trainable = "full"
    c.model.lora.rank = 16
    c.model.lora.alpha = 32.0
    c.model.remat = "none"
    c.data.train = "editworld"
    c.data.shuffle = False  # the world is random by index
    c.optim.lr = 3e-4
    c.optim.schedule = "linear"
    c.optim.warmup = 3
    c.optim.b2 = 0.99
    c.checkpoint.every = 25
    c.eval.every = 25
    c.log.every = 5
    c.rl.prompts = 32
    c.rl.group = 6
    c.rl.updates = 3
    c.rl.size = (84, 84)
    c.rl.text = 36  # the longest of 6,000 instructions has 34 tokens
    c.rl.steps = 4  # as good as 8 here, and cheaper
    c.rl.eval_sample_steps = 8
    c.rl.schedule.kind = "static"
    c.rl.schedule.shift = 3.0  # what to change, and where, is decided near the noise
    c.rl.algorithm = "nft"
    c.rl.window = 0
    c.rl.loss.train_steps = 2
    c.rl.advantage.clip = 2.0
    c.rl.advantage.std = "global"  # in half of the groups all succeed or all fail: their small differences are noise
    c.rl.success_bonus = 0.0 if rrm else 4.0  # the overall score alone rises while success does not
    c.rl.judge.max_new_tokens = 320 if rrm else 208
    c.rl.judge.rows = 192 if rrm else 128
    c.rl.oracle_samples = 12
    c.rl.eval_prompts = 512
    c.rl.eval_during = 128
    if rrm:
        c.rl.judge.model = "runs/rrm_tiny/model"
    elif recipe != "omnigen2":
        kontext(c)
    if recipe == "flux_kontext":
        grpo(c)
    return c


def kontext(c):
    """Sets what the other network wants."""
    c.model.init_from = "runs/editor_tiny_flux_kontext/model"
    c.model.text = TEXT
    c.rl.text = TEXT
    c.rl.rewards = (("oracle", 1.0),)
    c.rl.oracle_samples = 0


def grpo(c):
    """Sets the policy gradient: groups of their own scale, noise in three of the first steps."""
    c.rl.algorithm = "policy_gradient"
    c.rl.prompts = 12
    c.rl.group = 16
    c.rl.steps = 8
    c.rl.window = 3
    c.rl.window_range = (0, 4)
    c.rl.loss.train_steps = 0
    c.rl.loss.clip = (3e-4, 3e-4)
    c.rl.advantage.std = "group"
