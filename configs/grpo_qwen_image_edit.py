"""Qwen-Image-Edit by online RL with EditScore-7B; after Flow-GRPO, its fast form, or Edit-R1.

    python scripts/train_grpo.py --config configs/grpo_qwen_image_edit.py --config.topology=v5p:2x2x4 \
        --workdir gs://BUCKET/qwen --config.data.train=rl_abs_9tasks.jsonl

As Flow-GRPO has it: the original model, results of 512 x 512, 10 steps with true guidance 4 (two forwards a step, in
the loss too), flow SDE with a = 1.0 in all steps but the last, rank 64, alpha 128 on attention and feed-forwards, lr
3e-4; 32 samples of 16 prompts, two updates; standard deviation over all, no average of the weights; evaluated in 50
steps. There the source has about 1024 x 1024 pixels, here those of the result.
`:fast` after the file's name: without guidance in rollouts and loss, a = 1.5 in a window of 4 steps in the first half.
`:nft` as Edit-R1 (arXiv 2510.16888): the model 2509, DiffusionNFT on DPM2's samples in 6 steps without guidance, 24
samples of 12 prompts, one update at five of the six steps; rank 32, alpha 64 on attention; the samples are drawn by a
moving average of which min(0.001 n, 0.5) stays after n rollouts; KL 1e-4, evaluated in 15 steps.
`:rrm`, Flow-GRPO's setting rewarded by the reasoning verifier (arXiv 2604.27505): 24 samples, KL 0.04, standard
deviation of the group; what else the paper does not tell is as above. Principles of the prompts: docs/verifier.md.
Another reward: --config.rl.rewards="(('editreward', 1.0),)" with --config.rl.judge.model=DIR.
Licence: Apache-2.0.
Hardware: `python scripts/plan.py --config configs/grpo_qwen_image_edit.py:nft --topology v5p:2x2x4` says what fits. To
expect: not measured at full size.
"""

from edit_rl_jax.rl.editors.config import default

RECIPES = ("grpo", "fast", "nft", "rrm")


def get_config(recipe="grpo"):
    if recipe not in RECIPES:
        raise ValueError(f"no recipe '{recipe}'; recipes: {', '.join(RECIPES)}")
    c = default("qwen_image_edit", "edit_rrm" if recipe == "rrm" else "")
    c.name = f"{recipe}_qwen_image_edit"
    c.steps = 500
    c.rows = 16
    c.model.init_from = "Qwen/Qwen-Image-Edit"
    c.model.lora.rank = 64
    c.model.lora.alpha = 128.0
    c.model.lora.targets = "feed_forward"
    c.model.dtype = "bfloat16"
    c.data.train = "rl_abs_9tasks.jsonl"
    c.optim.lr = 3e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 1
    c.optim.weight_decay = 1e-4
    c.checkpoint.every = 25
    c.rl.prompts = 16
    c.rl.group = 32
    c.rl.updates = 2
    c.rl.size = (512, 512)
    c.rl.text = 512  # 324 of them are the image's
    c.rl.steps = 10
    c.rl.schedule.kind = "exponential"
    c.rl.schedule.max_shift = 0.9
    c.rl.schedule.max_tokens = 8192
    c.rl.schedule.terminal = 0.02
    c.rl.guidance.text = 4.0
    c.rl.noise.kind = "flow_sde"
    c.rl.noise.level = 1.0
    c.rl.window = 9
    c.rl.window_range = (0, 9)
    c.rl.loss.clip = (1e-4, 1e-4)
    c.rl.advantage.std = "global"
    c.rl.judge.tensor = 4
    if recipe == "rrm":
        verified(c)
    else:
        c.rl.judge.model = "EditScore/EditScore-7B"
        c.rl.judge.base = "Qwen/Qwen2.5-VL-7B-Instruct"
        c.rl.judge.expected = "empty"
    c.rl.eval_prompts = 0
    c.rl.eval_sample_steps = 50
    if recipe in ("fast", "nft"):
        c.rl.guidance.text = 1.0
    if recipe == "fast":
        c.rl.noise.level = 1.5
        c.rl.window = 4
        c.rl.window_range = (0, 5)
    if recipe == "nft":
        edit_r1(c)
    with c.unlocked():
        c.mesh_presets = {"v5e:8x8": {"fsdp": 16, "tensor": 4}, "v6e:4x4": {"fsdp": 16}, "v5p:2x2x4": {"fsdp": 16}}
    return c


def edit_r1(c):
    """Sets what Edit-R1 has otherwise."""
    c.model.init_from = "Qwen/Qwen-Image-Edit-2509"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.lora.targets = "attention"
    c.optim.ema = 0.9
    c.rl.algorithm = "nft"
    c.rl.prompts = 12
    c.rl.group = 24
    c.rl.updates = 1
    c.rl.steps = 6
    c.rl.text = 384
    c.rl.solver = "dpm2"
    c.rl.window = 0
    c.rl.window_range = (0, 0)
    c.rl.loss.kl_weight = 1e-4
    c.rl.loss.beta = 1.0
    c.rl.loss.train_steps = 5
    c.rl.old = 0.5
    c.rl.old_rise = 0.001
    c.rl.eval_sample_steps = 15


def verified(c):
    """Sets what RL with the reasoning verifier has otherwise."""
    c.rl.judge.model = "runs/rrm/model"  # of `configs/rrm.py:7b`, or after `configs/gcpo.py:7b`
    c.rl.group = 24
    c.rl.advantage.std = "group"
    c.rl.loss.kl_weight = 0.04
