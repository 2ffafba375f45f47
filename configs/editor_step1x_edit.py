"""Step1X-Edit v1.1 fine-tuned on the edits that a reward model kept: EditReward's experiment on data filtering.

    python scripts/prepare_data.py --input edits.jsonl --output data/edits --validation 0.02
    python scripts/filter_data.py --data data/edits --model MODEL --output data/kept --keep 20000
    export EDIT_RL_STEP1X_PREFIX=Step1X-Edit/modules/conditioner.py
    python scripts/train_editor.py --config configs/editor_step1x_edit.py --config.topology=v5e:4x4 --workdir gs://B/edit

The text before every instruction stands in upstream's own source, which is parsed and checked by its SHA-256. Rank 64,
alpha 32 and lr 1e-4 as upstream's own fine-tuning, 16 edits a step, 2,000 steps, log-normal times with the shift by
size, bf16, all 640 states seen, padding too; the image is never dropped. Licence of the base: Apache-2.0.
Hardware: a v5e-16, v6e-8 or larger. Memory and FLOPs: `python scripts/plan.py --config configs/editor_step1x_edit.py
--topology v5e:4x4`. To expect: not measured at full size.
"""

from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="step1x_edit", objective="flow_matching")
    c.name = "editor_step1x_edit"
    c.steps = 2000
    c.rows = 16
    c.model.init_from = "stepfun-ai/Step1X-Edit-v1p1-diffusers"
    c.model.trainable = "lora"
    c.model.lora.rank = 64
    c.model.lora.alpha = 32.0
    c.model.lora.targets = "feed_forward"
    c.model.dtype = "bfloat16"
    c.data.train = "data/kept"
    sizes = ((1024, 1024), (832, 1248), (1248, 832), (512, 512))
    c.data.buckets = tuple((640, 1, *size) for size in sizes)
    c.data.workers = 16
    c.data.on_bad_record = "skip"
    c.flow.drop_references = 0.0
    c.optim.lr = 1e-4
    c.optim.schedule = "constant"
    c.optim.warmup = 100
    c.optim.weight_decay = 0.01
    c.checkpoint.every = 250
    c.eval.every = 250
    with c.unlocked():
        c.mesh_presets = {
            "v5e:4x4": {"fsdp": 16},
            "v6e:2x4": {"fsdp": 8},
            "v5p:2x2x4": {"fsdp": 16},
            "h100:8": {"fsdp": 8},
        }
    return c
