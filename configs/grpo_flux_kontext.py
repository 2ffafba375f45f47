"""FLUX.1-Kontext-dev by online RL with EditScore-7B: 6 steps, guidance 2.5 in the network; after Flow-GRPO or Edit-R1.

    python scripts/train_grpo.py --config configs/grpo_flux_kontext.py --config.topology=v5p:2x2x4 \
        --workdir gs://BUCKET/kontext --config.data.train=rl_abs_9tasks.jsonl

Sources and edits of 512 x 512, flow SDE with a = 0.9 in all steps but the last; 24 samples (there 21) of 48 prompts,
two updates; standard deviation over all; rank 64, alpha 128 on attention and feed-forwards, lr 3e-4, 128 tokens of T5's
text, evaluated in 28 steps. A step is one forward: the guidance is the network's input.
With `:nft` after the file's name as Edit-R1 (arXiv 2510.16888) has it: DiffusionNFT on DPM2's samples, 12 of each of 24
prompts, one update at five of the six steps; rank 32, alpha 64 on attention; the samples are drawn by a moving average
of which min(0.001 n, 0.5) stays after n rollouts; KL 1e-4, evaluated in 15 steps. Its filter of groups is
`--config.rl.advantage.min_std=0.05`, off as there.
With `:rrm`, Flow-GRPO's setting rewarded by the reasoning verifier (arXiv 2604.27505): 24 samples, KL 0.04, standard
deviation of the group; what else the paper does not tell is as above. Principles of the prompts: docs/verifier.md.
Licences: FLUX.1 [dev] Non-Commercial, the adapter's too.
Hardware: `python scripts/plan.py --config configs/grpo_flux_kontext.py --topology v5p:2x2x4` says what fits. To expect:
not measured at full size.
"""

from edit_rl_jax.rl.editors.config import default


def get_config(recipe="grpo"):
    if recipe not in ("grpo", "nft", "rrm"):
        raise ValueError(f"no recipe '{recipe}'; recipes: grpo, nft, rrm")
    c = default("flux_kontext", "edit_rrm" if recipe == "rrm" else "")
    c.name = f"{recipe}_flux_kontext"
    c.steps = 500
    c.rows = 16
    c.model.init_from = "black-forest-labs/FLUX.1-Kontext-dev"
    c.model.text = 128
    c.model.lora.rank = 64
    c.model.lora.alpha = 128.0
    c.model.lora.targets = "feed_forward"
    c.model.dtype = "bfloat16"
    c.data.train = "rl_abs_9tasks.jsonl"
    c.optim.lr = 3e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 1
    c.optim.weight_decay = 1e-4
    c.optim.ema = 0.9
    c.checkpoint.every = 25
    c.rl.prompts = 48
    c.rl.group = 24
    c.rl.updates = 2
    c.rl.size = (512, 512)
    c.rl.text = 128
    c.rl.steps = 6
    c.rl.schedule.kind = "exponential"
    c.rl.guidance = {"text": 2.5, "image": 1.0, "start": 0.0, "stop": 1.0}
    c.rl.noise.kind = "flow_sde"
    c.rl.noise.level = 0.9
    c.rl.window = 5
    c.rl.window_range = (0, 5)
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
    c.rl.eval_sample_steps = 28
    if recipe == "nft":
        edit_r1(c)
    with c.unlocked():
        c.mesh_presets = {"v5e:4x4": {"fsdp": 16}, "v6e:4x4": {"fsdp": 16}, "v5p:2x2x4": {"fsdp": 16}}
    return c


def edit_r1(c):
    """Sets what Edit-R1 has otherwise."""
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.lora.targets = "attention"
    c.rl.algorithm = "nft"
    c.rl.prompts = 24
    c.rl.group = 12
    c.rl.updates = 1
    c.rl.solver = "dpm2"
    c.rl.window = 0
    c.rl.window_range = (0, 0)
    c.rl.loss.kl_weight = 1e-4
    c.rl.loss.beta = 1.0
    c.rl.old = 0.5
    c.rl.old_rise = 0.001
    c.rl.eval_sample_steps = 15


def verified(c):
    """Sets what RL with the reasoning verifier has otherwise."""
    c.rl.judge.model = "runs/rrm/model"  # of `configs/rrm.py:7b`, or after `configs/gcpo.py:7b`
    c.rl.group = 24
    c.rl.advantage.std = "group"
    c.rl.loss.kl_weight = 0.04
