"""FLUX.1-Kontext-dev by online RL with EditScore-7B, after Flow-GRPO: 6 steps, guidance 2.5 in the network.

    python scripts/train_grpo.py --config configs/grpo_flux_kontext.py --config.topology=v5p:2x2x4 \
        --workdir gs://BUCKET/kontext --config.data.train=rl_abs_9tasks.jsonl

Sources and edits of 512 x 512, flow SDE with a = 0.9 in all steps but the last; 24 samples of 48 prompts, two updates;
rank 64, alpha 128 on attention and feed-forwards, lr 3e-4, 128 tokens of T5's text, evaluated in 28 steps. A step is
one forward: the guidance is the network's input. Licences: FLUX.1 [dev] Non-Commercial, the adapter's too.
Hardware: `python scripts/plan.py --config configs/grpo_flux_kontext.py --topology v5p:2x2x4` says what fits. To expect:
not measured at full size.
"""

from edit_rl_jax.rl.editors.config import default


def get_config():
    c = default("flux_kontext")
    c.name = "grpo_flux_kontext"
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
    c.rl.judge.model = "EditScore/EditScore-7B"
    c.rl.judge.base = "Qwen/Qwen2.5-VL-7B-Instruct"
    c.rl.judge.expected = "empty"
    c.rl.judge.tensor = 4
    c.rl.eval_prompts = 0
    c.rl.eval_sample_steps = 28
    with c.unlocked():
        c.mesh_presets = {"v5e:4x4": {"fsdp": 16}, "v6e:4x4": {"fsdp": 16}, "v5p:2x2x4": {"fsdp": 16}}
    return c
