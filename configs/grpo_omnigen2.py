"""OmniGen2 by online RL with EditScore-7B, as released (arXiv 2509.23909): GRPO on flow SDE, guidance in the loss.

    python scripts/train_grpo.py --config configs/grpo_omnigen2.py --config.topology=v5p:2x2x4 \
        --workdir gs://BUCKET/rl --config.data.train=rl_abs_9tasks.jsonl --config.rl.judge.model=EditScore/EditScore-7B

20 steps, all of them noisy, of which each microbatch trains a random 12; 12 samples of 48 prompts, two updates; rank
32, alpha 64, lr 4e-4; clip [1e-4, 5e-4], KL 0.04 in upstream's form, TempFlow weights; 512 x 512. 500 rollouts are the
released 1,000 updates.
With `:rrm` after the file's name the reasoning verifier rewards (arXiv 2604.27505): 24 samples of 24 prompts, the final
score of one reply. Principles of the prompts: docs/verifier.md.
Licences: Apache-2.0 (OmniGen2, EditScore-7B's base).
Hardware: 16 chips that also hold the reward model; `python scripts/plan.py --config configs/grpo_omnigen2.py --topology
v5e:4x4` says what fits. To expect: the paper's GEdit-Bench gain (6.28 to about 6.7 with the reward's Avg@4).
"""

from edit_rl_jax.rl.editors.config import default


def get_config(recipe="grpo"):
    if recipe not in ("grpo", "rrm"):
        raise ValueError(f"no recipe '{recipe}'; recipes: grpo, rrm")
    c = default("omnigen2", "edit_rrm" if recipe == "rrm" else "")
    c.name = f"{recipe}_omnigen2"
    c.seed = 2233
    c.steps = 500
    c.rows = 16  # with guidance in the loss each is three sequences: 48 want more than a v5e has
    c.model.init_from = "OmniGen2/OmniGen2"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.dtype = "bfloat16"
    c.data.train = "rl_abs_9tasks.jsonl"
    c.optim.lr = 4e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 1
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.01
    c.checkpoint.every = 25
    c.rl.prompts = 48
    c.rl.group = 12
    c.rl.updates = 2
    c.rl.size = (512, 512)
    c.rl.text = 888
    c.rl.steps = 20
    c.rl.schedule.base_res = 168
    c.rl.guidance = {"text": 4.0, "image": 2.0, "start": 0.0, "stop": 0.6}
    c.rl.noise.kind = "flow_sde"
    c.rl.noise.level = 0.7
    c.rl.window = 20
    c.rl.loss.clip = (1e-4, 5e-4)
    c.rl.loss.kl_weight = 0.04
    c.rl.loss.reweight = "sum"
    c.rl.loss.train_steps = 12
    c.rl.advantage.eps = 1e-8
    if recipe == "rrm":
        c.rl.prompts, c.rl.group = 24, 24
        c.rl.judge.model = "runs/rrm/model"  # of `configs/rrm.py:7b`, or after `configs/gcpo.py:7b`
    else:
        c.rl.judge.model = "EditScore/EditScore-7B"
        c.rl.judge.base = "Qwen/Qwen2.5-VL-7B-Instruct"
        c.rl.judge.passes = 4
    c.rl.judge.tensor = 4
    c.rl.eval_prompts = 0
    with c.unlocked():
        c.mesh_presets = {"v5e:4x4": {"fsdp": 16}, "v6e:4x4": {"fsdp": 16}, "v5p:2x2x4": {"fsdp": 16}}
    return c
