"""OmniGen2 by online RL with EditScore-7B, the cheap way: Flow-CPS, a window of 3 of 12 steps, no guidance, no KL.

    python scripts/train_grpo.py --config configs/grpo_omnigen2_fast.py --config.topology=v5e:4x4 \
        --workdir gs://BUCKET/rl_fast --config.data.train=rl_abs_9tasks.jsonl

A sample costs 12 forwards, and 3 with a gradient; `grpo_omnigen2` costs 46, and 12 steps of up to 3 forwards with one
besides the reference's. The guided policy is what RL finds without guidance (Flow-GRPO's advice). Clip of 1e-5 at 512 x
512. Licences and hardware: as `grpo_omnigen2`. To expect: not measured at full size.
"""

from edit_rl_jax.rl.editors.config import default


def get_config():
    c = default()
    c.name = "grpo_omnigen2_fast"
    c.steps = 500
    c.rows = 96
    c.model.init_from = "OmniGen2/OmniGen2"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.dtype = "bfloat16"
    c.data.train = "rl_abs_9tasks.jsonl"
    c.optim.lr = 3e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 1
    c.optim.b2 = 0.95
    c.optim.weight_decay = 0.01
    c.checkpoint.every = 25
    c.rl.prompts = 48
    c.rl.group = 12
    c.rl.updates = 2
    c.optim.ema = 0.9
    c.rl.size = (512, 512)
    c.rl.text = 888
    c.rl.steps = 12
    c.rl.schedule.base_res = 168
    c.rl.noise.kind = "cps"
    c.rl.noise.level = 0.8
    c.rl.window = 3
    c.rl.window_range = (0, 6)
    c.rl.loss.clip = (1e-5, 1e-5)
    c.rl.loss.clip_elements = 65_536
    c.rl.judge.model = "EditScore/EditScore-7B"
    c.rl.judge.base = "Qwen/Qwen2.5-VL-7B-Instruct"
    c.rl.judge.expected = "empty"
    c.rl.judge.tensor = 4
    c.rl.eval_prompts = 0
    with c.unlocked():
        c.mesh_presets = {"v5e:4x4": {"fsdp": 16}, "v6e:4x4": {"fsdp": 16}, "v5p:2x2x4": {"fsdp": 16}}
    return c
