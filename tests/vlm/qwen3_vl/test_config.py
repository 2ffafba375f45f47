"""config.json as on the hub, and round trips through transformers; published sizes; what is refused."""

import copy

import pytest
from transformers import Qwen3VLConfig

from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.qwen3_vl import sizes
from edit_rl_jax.vlm.qwen3_vl.config import Config


def changed(size="4B", **levels):
    """The published config with changes on a level each; None takes a key away."""
    config = copy.deepcopy(sizes.config(size))
    for level, changes in levels.items():
        at = config if level == "top" else config[f"{level}_config"]
        at |= changes
        for k in [k for k, v in at.items() if v is None]:
            del at[k]
    return config


@pytest.mark.parametrize("size", sizes.HUB_IDS)
def test_transformers_reads_ours_and_we_read_its_own(size, tmp_path):
    cfg = Config.from_hf(sizes.config(size))
    theirs = Qwen3VLConfig(**copy.deepcopy(cfg.to_hf()))
    text, vision = theirs.text_config, theirs.vision_config
    assert (text.head_dim, text.rope_parameters["rope_theta"]) == (128, 5e6)  # not what they default to
    assert text.rope_parameters["mrope_section"] == [24, 20, 20]
    assert theirs.tie_word_embeddings == cfg.tie_word_embeddings == (size in ("2B", "4B"))
    assert cfg.to_hf()["text_config"]["tie_word_embeddings"] == cfg.tie_word_embeddings  # transformers 4 reads this
    assert vision.rope_parameters == {"rope_theta": 10000.0, "rope_type": "axial"}
    theirs.save_pretrained(tmp_path)
    assert Config.from_hf(tmp_path) == Config.from_hf(theirs.to_dict()) == Config.from_hf(cfg.to_hf()) == cfg
    assert family.published(sizes.HUB_IDS[size])[1] == "Apache-2.0" and hash(cfg) == hash(Config.from_hf(tmp_path))


def test_sizes_of_the_tower():
    large, small = (Config.from_hf(sizes.config(s)) for s in ("8B", "2B"))
    assert (large.vision.head_dim, large.vision.side, large.patch_dim, large.merge_unit) == (72, 48, 1536, 4)
    assert small.vision.head_dim == 64 and small.position_axes == 3
    assert small.shards == (16, 6144, 151936, 16)


def test_the_family_is_found_by_its_name():
    config = changed()
    assert family.of(config).NAMING is family.named("qwen3_vl").NAMING
    assert family.of(config).architecture(config) == Config.from_hf(config)
    assert isinstance(family.of(config), family.Family) and isinstance(Config.from_hf(config), family.Architecture)


@pytest.mark.parametrize(
    "levels,message",
    [
        ({"text": {"rope_theta": None}}, "text_config.rope_theta is null"),
        ({"text": {"attention_bias": True}}, "attention_bias"),
        ({"text": {"head_dim": 64}}, "head_dim/2"),
        ({"text": {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}}, "yarn"),
        (
            {"text": {"rope_scaling": {"mrope_interleaved": False, "mrope_section": [24, 20, 20]}}},
            "mrope_interleaved must be true",
        ),
        ({"vision": {"hidden_act": "gelu"}}, "vision hidden_act .*gelu.* is not gelu_pytorch_tanh"),
        ({"vision": {"num_position_embeddings": 2305}}, "no square"),
        ({"vision": {"deepstack_visual_indexes": [5, 5]}}, "must ascend"),
        ({"vision": {"deepstack_visual_indexes": [5, 24]}}, "within depth 24"),
        ({"vision": {"out_hidden_size": 2048}}, "out_hidden_size"),
        ({"top": {"model_type": "qwen3_vl_moe"}}, "not qwen3_vl"),
        ({"top": {"quantization_config": {"bits": 4}}}, "quantized"),
    ],
)
def test_what_is_not_implemented_is_refused(levels, message):
    with pytest.raises(WeightsError, match=message):
        Config.from_hf(changed(**levels))


def test_a_head_is_as_wide_as_the_file_says_or_128():
    assert Config.from_hf(changed(text={"head_dim": None})).text.head_dim == 128  # hidden / heads is 80
