"""EditScore reward model on Qwen/Qwen2.5-VL-3B-Instruct: LoRA by cross-entropy on the judge's replies.

    python scripts/prepare_data.py --input reward.json --output data/editscore --validation 0.02
    python scripts/train_rm.py --config configs/rm_3b.py --config.topology=v5e:2x4 --workdir gs://BUCKET/rm_3b

Recipe of arXiv 2509.23909: rank 32, alpha 64, lr 1e-4, cosine, warm-up 0.1, 3 epochs, about 128 samples a step (rows x
accum, packed), images of at most 512 x 512 pixels, bf16. Licence of the base: Qwen Research License (no commercial
use).
Hardware: a v5e-8 or larger; one H100. Memory and FLOPs: `python scripts/plan.py --config configs/rm_3b.py --topology
v5e:2x4`. To expect: no figure is published for 3B.
"""

from edit_rl_jax.training.config import default


def get_config():
    c = default()
    c.name = "rm_3b"
    c.objective = "editscore"
    c.epochs = 3.0
    c.rows = 16
    c.accum = 2
    c.model.init_from = "Qwen/Qwen2.5-VL-3B-Instruct"
    c.model.prompts = "standard"
    c.model.lora.rank = 32
    c.model.lora.alpha = 64.0
    c.model.dtype = "bfloat16"
    c.data.train = "data/editscore"
    c.data.max_pixels = 512 * 512
    c.data.buckets = ((3584, 2, 2688, 1280), (3584, 2, 3072, 1280))
    c.data.workers = 16
    c.data.on_bad_record = "skip"
    c.optim.lr = 1e-4
    c.optim.schedule = "cosine"
    c.optim.warmup = 0.1
    c.checkpoint.every = 250
    c.eval.every = 250
    with c.unlocked():
        c.mesh_presets = {
            "v5e:2x4": {"fsdp": 8},
            "v5e:4x4": {"fsdp": 16},
            "v6e:2x2": {"fsdp": 4},
            "v6e:2x4": {"fsdp": 8},
            "v5p:2x2x1": {"fsdp": 4},
            "h100:1": {"fsdp": 1},
            "h100:8": {"fsdp": 8},
        }
    return c
