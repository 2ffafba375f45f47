"""config.json in both layouts, and round trips through transformers."""

import json

import pytest
from transformers import Qwen2_5_VLConfig

from edit_rl_jax.vlm.qwen2_5_vl.config import Config

# The released 7B file's fields that matter, in the old flat layout.
FLAT_7B = {
    "architectures": ["Qwen2_5_VLForConditionalGeneration"],
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "vision_start_token_id": 151652,
    "vision_end_token_id": 151653,
    "vision_token_id": 151654,
    "image_token_id": 151655,
    "video_token_id": 151656,
    "hidden_act": "silu",
    "hidden_size": 3584,
    "intermediate_size": 18944,
    "max_position_embeddings": 128000,
    "max_window_layers": 28,
    "model_type": "qwen2_5_vl",
    "num_attention_heads": 28,
    "num_hidden_layers": 28,
    "num_key_value_heads": 4,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": False,
    "use_sliding_window": False,
    "vision_config": {
        "depth": 32,
        "hidden_act": "silu",
        "hidden_size": 1280,
        "intermediate_size": 3420,
        "num_heads": 16,
        "in_chans": 3,
        "out_hidden_size": 3584,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "spatial_patch_size": 14,
        "window_size": 112,
        "fullatt_block_indexes": [7, 15, 23, 31],
        "tokens_per_second": 2,
        "temporal_patch_size": 2,
    },
    "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]},
    "vocab_size": 152064,
}


def test_flat_layout():
    cfg = Config.from_hf(FLAT_7B)
    text, vision = cfg.text, cfg.vision
    assert (text.hidden_size, text.num_key_value_heads, text.head_dim, text.rms_norm_eps) == (3584, 4, 128, 1e-6)
    assert (text.rope_theta, text.mrope_section, cfg.tie_word_embeddings) == (1e6, (16, 24, 24), False)
    assert (vision.hidden_size, vision.head_dim, vision.window_tokens, vision.patch_dim) == (1280, 80, 64, 1176)
    assert [i for i, full in enumerate(vision.is_full) if full] == [7, 15, 23, 31]
    assert hash(cfg) == hash(Config.from_hf(FLAT_7B))


def test_nested_layout_is_the_same(tmp_path):
    """transformers reads the flat file and writes the nested one; ours reads both and its own output the same."""
    flat = Config.from_hf(FLAT_7B)
    theirs = Qwen2_5_VLConfig(**FLAT_7B)
    theirs.save_pretrained(tmp_path)
    assert "text_config" in json.loads((tmp_path / "config.json").read_text())
    assert Config.from_hf(tmp_path) == Config.from_hf(tmp_path / "config.json") == flat
    assert Config.from_hf(theirs.to_dict()) == flat
    ours = Qwen2_5_VLConfig(**flat.to_hf())
    assert Config.from_hf(ours.to_dict()) == Config.from_hf(flat.to_hf()) == flat
    for key in ("hidden_size", "intermediate_size", "rms_norm_eps", "num_key_value_heads", "vocab_size"):
        assert getattr(ours.text_config, key) == getattr(theirs.text_config, key)
    assert ours.text_config.rope_parameters.items() <= theirs.text_config.rope_parameters.items()
    assert ours.vision_config.rope_parameters == theirs.vision_config.rope_parameters


def test_tied_in_either_place():
    assert Config.from_hf(FLAT_7B | {"tie_word_embeddings": True}).tie_word_embeddings
    nested = Config.from_hf(FLAT_7B).to_hf()
    nested["text_config"]["tie_word_embeddings"] = True
    del nested["tie_word_embeddings"]
    assert Config.from_hf(nested).tie_word_embeddings


@pytest.mark.parametrize(
    "change,message",
    [
        ({"model_type": "qwen2_vl"}, "not qwen2_5_vl"),
        ({"hidden_act": "gelu"}, "not silu"),
        ({"use_sliding_window": True}, "sliding_window"),
        ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "yarn"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 25]}}, "head_dim/2"),
        ({"num_key_value_heads": 5}, "KV heads"),
        ({"vision_config": FLAT_7B["vision_config"] | {"out_hidden_size": 8192}}, "out_hidden_size"),
        ({"vision_config": FLAT_7B["vision_config"] | {"window_size": 100}}, "window_size"),
        ({"vision_config": FLAT_7B["vision_config"] | {"fullatt_block_indexes": [32]}}, "outside depth"),
    ],
)
def test_what_is_not_implemented_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        Config.from_hf(FLAT_7B | change)
