"""Qwen-Image-Edit-2509 fine-tuned on the edits that a reward model kept: EditReward's experiment on data filtering.

    python scripts/prepare_data.py --input edits.jsonl --output data/edits --validation 0.02
    python scripts/filter_data.py --data data/edits --model MODEL --output data/kept --keep 20000
    python scripts/train_editor.py --config configs/editor_qwen_image_edit.py --config.topology=v5e:8x8 \\
        --workdir gs://BUCKET/editor

For the original or 2511: --config.model.init_from=Qwen/Qwen-Image-Edit-2511 (the original's language model sees the
image at its full size: text of 1,600 tokens in `data.buckets`). Rank 64, alpha 128 on attention and feed-forwards, lr
1e-4, 16 edits a step, 2,000 steps, log-normal times with the shift by size that it samples with (what Qwen-Image
trained with is not known), bf16; the image is never dropped. The chat around every instruction is read from diffusers'
source, which is installed, or which EDIT_RL_QWEN_TEMPLATE names.
Licence of the base: Apache-2.0.
Hardware: `python scripts/plan.py --config configs/editor_qwen_image_edit.py --topology v5e:8x8` says what fits. To
expect: not measured at full size.
"""

from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="qwen_image_edit", objective="flow_matching")
    c.name = "editor_qwen_image_edit"
    c.steps = 2000
    c.rows = 16
    c.model.init_from = "Qwen/Qwen-Image-Edit-2509"
    c.model.trainable = "lora"
    c.model.lora.rank = 64
    c.model.lora.alpha = 128.0
    c.model.lora.targets = "feed_forward"
    c.model.dtype = "bfloat16"
    c.data.train = "data/kept"
    sizes = ((1024, 1024), (832, 1248), (1248, 832), (512, 512))
    c.data.buckets = tuple((384, 1, *size) for size in sizes)
    c.data.workers = 16
    c.data.on_bad_record = "skip"
    c.flow.drop_references = 0.0
    c.flow.max_shift = 0.9
    c.flow.max_tokens = 8192
    c.optim.lr = 1e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 100
    c.optim.weight_decay = 0.01
    c.checkpoint.every = 250
    c.eval.every = 250
    with c.unlocked():
        c.mesh_presets = {
            "v5e:4x4": {"fsdp": 16},
            "v5e:8x8": {"fsdp": 16, "tensor": 4},
            "v6e:4x4": {"fsdp": 16},
            "v5p:2x2x4": {"fsdp": 16},
            "tpu7x:2x2x2": {"fsdp": 16},
            "h100:8": {"fsdp": 8},
        }
        roomy = ("v5p:2x2x4", "tpu7x:2x2x2")  # there is room to keep all products of a layer
        c.presets = {where: {"model": {"remat": "gate_up"}} for where in roomy}
    return c
