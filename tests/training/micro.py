"""A model and batches small enough for seconds: what the tests of training share."""

import json

import jax
import numpy as np

from edit_rl_jax.training import config as config_lib

ARCHITECTURE = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 300,
    "tie_word_embeddings": True,
    "rms_norm_eps": 1e-6,
    "rope_theta": 10000.0,
    "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]},
    "max_position_embeddings": 512,
    "vision_start_token_id": 258,
    "vision_end_token_id": 259,
    "image_token_id": 260,
    "video_token_id": 261,
    "vision_config": {
        "model_type": "qwen2_5_vl",
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "out_hidden_size": 32,
        "patch_size": 14,
        "temporal_patch_size": 2,
        "spatial_merge_size": 2,
        "window_size": 56,
        "fullatt_block_indexes": [1],
    },
}
BUCKET = (32, 1, 32, 8)


def config(**changes):
    """Defaults on the micro model; changes are {"dotted.key" with "__" for ".": value}."""
    flat = dict(
        objective="sft",
        steps=4,
        rows=8,
        accum=2,
        model__config=json.dumps(ARCHITECTURE),
        model__trainable="full",
        data__buckets=(BUCKET,),
        checkpoint__rehearse=False,
        compilation_cache="",
    )
    flat |= changes
    c = config_lib.default(flat.get("model__kind", "qwen2_5_vl"), flat["objective"])
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in flat.items()})
    config_lib.check(c)
    return c


def batch(program, seed=0, bucket=0):
    """Random arrays of a bucket, consistent enough to give gradients to every weight; on the program's mesh."""
    rng = np.random.default_rng(seed)
    spec = list(program.batches.values())[bucket]
    shape = {k: v.shape for k, v in spec.items()}
    accum, rows, tokens = shape["tokens"]
    patches = shape["patches"][3]
    answers = shape["answer_index"][2]
    out = {
        "tokens": rng.integers(0, 256, shape["tokens"]),
        "positions": np.broadcast_to(np.arange(tokens), shape["positions"]),
        "segments": np.where(np.arange(tokens) < tokens - 4, 1, 0) * np.ones(shape["segments"]),
        "image_index": np.where(
            (np.arange(tokens) >= 2) & (np.arange(tokens) < 2 + patches // 4), np.arange(tokens) - 2, -1
        )
        * np.ones(shape["image_index"]),
        "patches": rng.normal(size=shape["patches"]),
        "patch_segments": np.ones(shape["patch_segments"]),
        "window_segments": np.ones(shape["window_segments"]),
        "patch_hw": rng.integers(0, 6, shape["patch_hw"]),
        "answer_index": np.broadcast_to(np.arange(tokens - 4 - answers, tokens - 4), shape["answer_index"]),
        "answer_targets": rng.integers(0, 256, shape["answer_targets"]),
        "answer_weights": (rng.random(shape["answer_weights"]) < 0.7) * 1.0,
    }
    return {k: jax.device_put(np.asarray(v, spec[k].dtype), spec[k].sharding) for k, v in out.items()}
