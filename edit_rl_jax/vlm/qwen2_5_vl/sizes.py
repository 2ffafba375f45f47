"""The four published Qwen2.5-VL sizes: hub ids and the facts of their `config.json`, in the hub's flat layout.

`config(size)` gives what `Config.from_hf` and `transformers.Qwen2_5_VLConfig(**...)` both read.
"""

from typing import Any

HUB_IDS = {size: f"Qwen/Qwen2.5-VL-{size}-Instruct" for size in ("3B", "7B", "32B", "72B")}
LICENCES = {"3B": "Qwen Research License", "7B": "Apache-2.0", "32B": "Apache-2.0", "72B": "Qwen License"}

# hidden, layers, heads, kv heads, feed-forward, vocabulary, vision feed-forward, tied embeddings
_FACTS = {
    "3B": (2048, 36, 16, 2, 11008, 151936, 3420, True),
    "7B": (3584, 28, 28, 4, 18944, 152064, 3420, False),
    "32B": (5120, 64, 40, 8, 27648, 152064, 3456, False),
    "72B": (8192, 80, 64, 8, 29568, 152064, 3456, False),
}


def config(size: str) -> dict[str, Any]:
    """The Hugging Face config of a published size ("3B", "7B", "32B" or "72B") as a plain dict; KeyError otherwise."""
    hidden, layers, heads, kv_heads, ffn, vocab, vision_ffn, tied = _FACTS[size]
    return {
        "architectures": ["Qwen2_5_VLForConditionalGeneration"],
        "model_type": "qwen2_5_vl",
        "hidden_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "intermediate_size": ffn,
        "vocab_size": vocab,
        "tie_word_embeddings": tied,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-6,
        "rope_theta": 1000000.0,
        "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
        "max_position_embeddings": 128000,
        "use_sliding_window": False,
        "bos_token_id": 151643,
        "eos_token_id": 151645,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_config": {
            "model_type": "qwen2_5_vl",
            "depth": 32,
            "hidden_size": 1280,
            "intermediate_size": vision_ffn,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "in_channels": 3,
            "patch_size": 14,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "window_size": 112,
            "fullatt_block_indexes": [7, 15, 23, 31],
            "hidden_act": "silu",
            "tokens_per_second": 2,
        },
    }
