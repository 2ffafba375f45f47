"""Pretrain the tiny base of `assets/tiny_vl` from scratch on EditWorld perception: cells, captions, find, compare.

    python scripts/train_rm.py --config configs/base_tiny.py --workdir runs/base_tiny

Hardware: one CPU core, about 3 hours. The result is runs/base_tiny/model. The card of the packaged base says how that
one was trained: in stages, while these settings were found.

configs/base_tiny.py:qwen3_vl is a Qwen3-VL of as many parameters (2,937,984 beside 2,940,480; the feed-forward of its
decoder pays for the deepstack merger), by the same recipe; it has not been trained to the end
(after 1,000 steps of each their judges are alike: docs/figures.md).
"""

import json

from edit_rl_jax.editworld import tokenizer
from edit_rl_jax.training.config import default

TOKENIZER = tokenizer.train()  # deterministic, takes seconds
ARCHITECTURE = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 192,
    "num_hidden_layers": 5,
    "num_attention_heads": 6,
    "num_key_value_heads": 2,
    "intermediate_size": 448,
    "vocab_size": -(-TOKENIZER.get_vocab_size() // 64) * 64,
    "tie_word_embeddings": True,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]},
    "max_position_embeddings": 2048,
    "bos_token_id": TOKENIZER.token_to_id("<|endoftext|>"),
    "eos_token_id": TOKENIZER.token_to_id("<|im_end|>"),
    "vision_start_token_id": TOKENIZER.token_to_id("<|vision_start|>"),
    "vision_end_token_id": TOKENIZER.token_to_id("<|vision_end|>"),
    "image_token_id": TOKENIZER.token_to_id("<|image_pad|>"),
    "video_token_id": TOKENIZER.token_to_id("<|video_pad|>"),
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_heads": 4,
        "out_hidden_size": 192,
        "in_channels": 3,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 84,  # one 84 x 84 picture is one window
        "fullatt_block_indexes": [2],
        "hidden_act": "silu",
        "tokens_per_second": 2,
    },
}
QWEN3 = {
    "model_type": "qwen3_vl",
    "tie_word_embeddings": True,
    **{k: v for k, v in ARCHITECTURE.items() if k.startswith(("vision_start", "vision_end", "image_tok", "video_tok"))},
    "text_config": {
        "hidden_size": 192,
        "num_hidden_layers": 5,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "intermediate_size": 320,
        "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [6, 5, 5]},
        **{k: ARCHITECTURE[k] for k in ("vocab_size", "max_position_embeddings", "bos_token_id", "eos_token_id")},
    },
    "vision_config": {
        "depth": 3,
        "hidden_size": 128,
        "intermediate_size": 384,
        "num_heads": 4,
        "out_hidden_size": 192,
        "patch_size": 14,
        "num_position_embeddings": 36,  # an 84 x 84 picture is 6 x 6 patches
        "deepstack_visual_indexes": [0],
    },
}
ARCHITECTURES = {"qwen2_5_vl": ARCHITECTURE, "qwen3_vl": QWEN3}


def get_config(family="qwen2_5_vl"):
    if family not in ARCHITECTURES:
        raise ValueError(f"no family '{family}'; there are {', '.join(ARCHITECTURES)}")
    c = default(kind=family, objective="sft")
    c.name = "base_tiny" if family == "qwen2_5_vl" else f"base_tiny_{family}"
    c.steps = 9000
    c.rows = 11
    c.model.config = json.dumps(ARCHITECTURES[family])
    c.model.tokenizer = "editworld"
    c.model.trainable = "full"
    c.model.remat = "none"
    c.data.train = "editworld_perception"
    with c.unlocked():
        c.data.options.easy = 25_000
    c.data.size = 4_000_000
    c.data.max_pixels = 84 * 84
    c.data.shuffle = False  # the world is random by index, and starts with the easy tasks
    c.data.validation_size = 512
    c.data.buckets = ((240, 6, 36, 168),)
    c.data.workers = 1
    c.optim.name = "muon"
    c.optim.lr = 1e-2
    c.optim.adam_lr = 2e-3
    c.optim.schedule = "linear"
    c.optim.warmup = 50
    c.optim.end = 0.02
    c.optim.b2 = 0.98
    c.optim.weight_decay = 0.3  # unlearns what only tells unseen combinations apart
    c.checkpoint.every = 200
    c.eval.every = 200
    c.eval.batches = 16
    c.log.every = 20
    return c
