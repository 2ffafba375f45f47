"""GCPO (arXiv 2604.27505) of a reasoning verifier of 3B or 7B on about 10,000 human pairs, 8 replies an image.

    python scripts/prepare_data.py --input train.json --output data/editreward --validation 0.02
    python scripts/make_verifier_data.py --principles-only --data data/editreward --config principles.toml --output sets
    python scripts/train_rm.py --config configs/rrm.py:7b --config.topology=v5e:4x4 --workdir gs://BUCKET/rrm_7b
    python scripts/train_gcpo.py --config configs/gcpo.py:7b --config.topology=v5e:4x4 --workdir gs://BUCKET/gcpo_7b \
        --config.model.init_adapter=gs://BUCKET/rrm_7b/model --config.rl.principles=sets/principles.jsonl

Hardware: v5e-16, v6e-8, v5p-32; one H100 for 3B. A host holds whole copies of the weights, `tensor` chips to a copy:
replies are written, and learnt, without moving weights. The paper says neither N, epsilon, lr nor KL: N and epsilon are
GRPO's usual ones, lr is that of LoRA in online RL, no KL; none of them has been measured at this size. With one update
of a rollout (rl.updates) the ratio is 1 and epsilon has no say.

Memory: `python scripts/plan.py --config configs/gcpo.py:7b --topology v5e:4x4`.
"""

from edit_rl_jax.rl.vlm.config import default

MESHES = {
    "3b": {
        "v5e:2x4": {"data": 4, "fsdp": 1, "tensor": 2},
        "v5e:4x4": {"data": 8, "fsdp": 1, "tensor": 2},
        "v6e:2x4": {"data": 8, "fsdp": 1, "tensor": 1},
        "v5p:2x2x4": {"data": 8, "fsdp": 1, "tensor": 2},
        "h100:1": {"data": 1, "fsdp": 1, "tensor": 1},
        "h100:8": {"data": 8, "fsdp": 1, "tensor": 1},
    },
    "7b": {
        "v5e:4x4": {"data": 4, "fsdp": 1, "tensor": 4},
        "v6e:2x4": {"data": 4, "fsdp": 1, "tensor": 2},
        "v5p:2x2x4": {"data": 8, "fsdp": 1, "tensor": 2},
        "tpu7x:2x2x2": {"data": 8, "fsdp": 1, "tensor": 2},
        "h100:8": {"data": 4, "fsdp": 1, "tensor": 2},
    },
}

# 7b: what is kept of a layer for the backward pass; half the rows at once where chips are small.
HALVES = {"rows": 4, "model": {"remat": "gate_up"}, "rl": {"microbatches": 32}}
KEPT = {"v5e:4x4": HALVES, "v6e:2x4": HALVES}
KEPT |= dict.fromkeys(("v5p:2x2x4", "tpu7x:2x2x2"), {"model": {"remat": "gate_up"}})


def get_config(size="7b"):
    if size not in MESHES:
        raise ValueError(f"no size '{size}'; sizes: {', '.join(MESHES)}")
    c = default()
    c.name = f"gcpo_{size}"
    c.steps = 625  # 10,000 pairs
    c.rows = 8
    c.model.init_from = f"Qwen/Qwen2.5-VL-{size.upper()}-Instruct"
    c.model.dtype = "bfloat16"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.data.train = "data/editreward"
    c.data.max_pixels = 512 * 512
    c.data.on_bad_record = "skip"
    c.data.buckets = ((5120, 1, 2688, 1792),)  # about three replies to one prompt, whose two images stand once
    c.optim.lr = 2e-5
    c.optim.schedule = "constant"
    c.optim.warmup = 10
    c.checkpoint.every = 25
    c.eval.every = 100
    c.rl.pairs = 16
    c.rl.group = 8
    c.rl.shared = 1152  # ten principles and an image of 512 x 512
    c.rl.own = 384
    c.rl.max_new_tokens = 768
    c.rl.microbatches = 16  # rooms for two replies a row; what stays empty is not run
    c.rl.eval_pairs = 128
    with c.unlocked():
        c.mesh_presets = MESHES[size]
        c.presets = KEPT if size == "7b" else {}
    return c
