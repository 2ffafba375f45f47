"""FLUX.1-Kontext-dev fine-tuned on edits: flow matching, a LoRA of attention and feed-forwards, the rest as released.

    python scripts/prepare_data.py --input edits.jsonl --output data/edits --validation 0.02
    python scripts/train_editor.py --config configs/editor_flux_kontext.py --config.topology=v5e:4x4 --workdir gs://B/edit

Rank 64, alpha 128, lr 1e-4, 16 edits a step, 2,000 steps, log-normal times with FLUX's shift by size, bf16, guidance 1
as the network's input, all 512 tokens of T5's text seen, padding too. Licence of the base: FLUX.1 [dev] Non-Commercial;
so are adapters, and its edits are no training data for a model that competes with it.
Hardware: a v5e-16, v6e-8 or larger. Memory and FLOPs: `python scripts/plan.py --config configs/editor_flux_kontext.py
--topology v5e:4x4`. To expect: not measured at full size.
"""

from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="flux_kontext", objective="flow_matching")
    c.name = "editor_flux_kontext"
    c.steps = 2000
    c.rows = 16
    c.model.init_from = "black-forest-labs/FLUX.1-Kontext-dev"
    c.model.trainable = "lora"
    c.model.lora.rank = 64
    c.model.lora.alpha = 128.0
    c.model.lora.targets = "feed_forward"
    c.model.dtype = "bfloat16"
    c.data.train = "data/edits"
    sizes = ((1024, 1024), (832, 1248), (1248, 832), (512, 512))
    c.data.buckets = tuple((512, 1, *size) for size in sizes)
    c.data.workers = 16
    c.data.on_bad_record = "skip"
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
            "v6e:4x4": {"fsdp": 16},
            "v5p:2x2x4": {"fsdp": 16},
            "tpu7x:2x2x2": {"fsdp": 16},
            "h100:8": {"fsdp": 8},
        }
        # there is room to keep all products of a layer, on v6e those of attention
        kept = {"v6e:4x4": "attention", "v5p:2x2x4": "gate_up", "tpu7x:2x2x2": "gate_up"}
        c.presets = {where: {"model": {"remat": what}} for where, what in kept.items()}
    return c
