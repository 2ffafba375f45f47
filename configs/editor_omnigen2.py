"""OmniGen2 fine-tuned on edits: flow matching, all weights of the transformer, the rest as released.

    python scripts/prepare_data.py --input edits.jsonl --output data/edits --validation 0.02
    python scripts/train_editor.py --config configs/editor_omnigen2.py --config.topology=v5e:4x4 --workdir gs://B/editor

The reference's recipe: lr 8e-7, 16 edits a step, 500 steps of warm-up, 4,000 steps, log-normal times with a shift by
size, bf16. As LoRA: --config.model.trainable=lora --config.optim.lr=1e-4. Licence of the base: Apache-2.0.
Hardware: a v5e-16, v6e-8 or larger. Memory and FLOPs: `python scripts/plan.py --config configs/editor_omnigen2.py
--topology v5e:4x4`.
"""

from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="omnigen2", objective="flow_matching")
    c.name = "editor_omnigen2"
    c.steps = 4000
    c.rows = 16
    c.model.init_from = "OmniGen2/OmniGen2"
    c.model.trainable = "full"
    c.model.lora.rank = 8
    c.model.lora.alpha = 8.0
    c.model.dtype = "bfloat16"
    c.data.train = "data/edits"
    sizes = ((1024, 1024), (832, 1216), (1216, 832), (512, 512), (416, 608), (608, 416))
    c.data.buckets = tuple((256, 1, *size) for size in sizes)
    c.data.workers = 16
    c.data.on_bad_record = "skip"
    c.optim.lr = 8e-7
    c.optim.schedule = "constant"
    c.optim.warmup = 500
    c.optim.weight_decay = 0.01
    c.optim.ema = 0.999
    c.checkpoint.every = 250
    c.eval.every = 250
    with c.unlocked():
        c.mesh_presets = {
            "v5e:4x4": {"fsdp": 16},
            "v6e:2x4": {"fsdp": 8},
            "v6e:4x4": {"fsdp": 16},
            "v5p:2x2x4": {"fsdp": 16},
            "tpu7x:2x2x2": {"fsdp": 16},
            "h100:8": {"fsdp": 8},
        }
        roomy = ("v6e:4x4", "v5p:2x2x4", "tpu7x:2x2x2")  # there is room to keep all products of a layer
        c.presets = {where: {"model": {"remat": "gate_up"}} for where in roomy}
    return c
