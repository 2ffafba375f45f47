"""The four published dense Qwen3-VL sizes: hub ids and the facts of their `config.json`."""

from typing import Any

HUB_IDS = {size: f"Qwen/Qwen3-VL-{size}-Instruct" for size in ("2B", "4B", "8B", "32B")}
LICENCE = "Apache-2.0"

# hidden, layers, heads, feed-forward, tied embeddings, the large tower
_FACTS = {
    "2B": (2048, 28, 16, 6144, True, False),
    "4B": (2560, 36, 32, 9728, True, False),
    "8B": (4096, 36, 32, 12288, False, True),
    "32B": (5120, 64, 64, 25600, False, True),
}


def config(size: str) -> dict[str, Any]:
    """The Hugging Face config of a published size ("2B", "4B", "8B" or "32B") as a plain dict; KeyError otherwise."""
    hidden, layers, heads, ffn, tied, large = _FACTS[size]
    return {
        "architectures": ["Qwen3VLForConditionalGeneration"],
        "model_type": "qwen3_vl",
        "image_token_id": 151655,
        "video_token_id": 151656,
        "vision_start_token_id": 151652,
        "vision_end_token_id": 151653,
        "tie_word_embeddings": tied,
        "text_config": {
            "model_type": "qwen3_vl_text",
            "vocab_size": 151936,
            "hidden_size": hidden,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "num_key_value_heads": 8,
            "head_dim": 128,  # not hidden / heads
            "intermediate_size": ffn,
            "hidden_act": "silu",
            "attention_bias": False,
            "rms_norm_eps": 1e-6,
            "rope_theta": 5000000,
            "rope_scaling": {"rope_type": "default", "mrope_interleaved": True, "mrope_section": [24, 20, 20]},
            "max_position_embeddings": 262144,
            "bos_token_id": 151643,
            "eos_token_id": 151645,
            "tie_word_embeddings": tied,
        },
        "vision_config": {
            "model_type": "qwen3_vl",
            "depth": 27 if large else 24,
            "hidden_size": 1152 if large else 1024,
            "intermediate_size": 4304 if large else 4096,
            "num_heads": 16,
            "out_hidden_size": hidden,
            "in_channels": 3,
            "patch_size": 16,
            "temporal_patch_size": 2,
            "spatial_merge_size": 2,
            "num_position_embeddings": 2304,
            "deepstack_visual_indexes": [8, 16, 24] if large else [5, 11, 17],
            "hidden_act": "gelu_pytorch_tanh",
        },
    }
