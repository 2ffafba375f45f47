"""Images and chat of Qwen3-VL against the Hugging Face processor."""

import json

import numpy as np
import pytest
from PIL import Image
from transformers import AutoImageProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edit_rl_jax.vlm.export import write_side_files
from edit_rl_jax.vlm.patches import ImageSettings, patchify, smart_resize
from edit_rl_jax.vlm.qwen3_vl.config import Config
from edit_rl_jax.vlm.tokenizer import load_tokenizer

CFG = Config()
HUB = {  # preprocessor_config.json of the hub; the edges are areas
    "size": {"longest_edge": 16777216, "shortest_edge": 65536},
    "patch_size": 16,
    "temporal_patch_size": 2,
    "merge_size": 2,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
    "processor_class": "Qwen3VLProcessor",
    "image_processor_type": "Qwen2VLImageProcessorFast",
}
SIZES = {  # (height, width) at the hub's areas and at reward training's
    (512, 512): ((512, 512), (512, 512)),
    (500, 333): ((512, 320), (512, 320)),
    (1024, 768): ((1024, 768), (576, 416)),
    (1080, 1920): ((1088, 1920), (384, 672)),
    (48, 48): ((256, 256), (256, 256)),
}


def test_sizes_known_by_hand():
    for size, wanted in SIZES.items():
        assert tuple(smart_resize(*size, 32, 65536, most) for most in (16777216, 262144)) == wanted
    own = CFG.images()
    assert ImageSettings.from_hf(HUB, max_pixels=512 * 512) == own
    assert [int(np.prod(own.grid(*s))) // 4 for s in ((48, 48), (512, 512), (1024, 768))] == [64, 256, 234]


@pytest.mark.parametrize("size", [(300, 500), (256, 256), (70, 900)], ids=str)
def test_patches_equal_the_processors(size):
    pixels = np.random.default_rng(0).integers(0, 256, (*size, 3), np.uint8)
    theirs = Qwen2VLImageProcessorPil(**HUB | {"size": {"shortest_edge": 65536, "longest_edge": 262144}})
    want = theirs(Image.fromarray(pixels), return_tensors="np")
    patches, grid = patchify(pixels, CFG.images())
    assert grid == tuple(want["image_grid_thw"][0]) and patches.shape[1] == CFG.patch_dim == 1536
    np.testing.assert_allclose(patches, want["pixel_values"], atol=2e-7)


def test_the_exported_processor_is_read_by_transformers(shared, tmp_path):
    write_side_files(tmp_path, load_tokenizer(shared / "data/qwen2_5_tokenizer"), CFG.images(max_pixels=300_000), CFG)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["processor_class"] == "Qwen3VLProcessor"
    found = AutoImageProcessor.from_pretrained(tmp_path)
    assert (found.patch_size, found.merge_size, tuple(found.image_mean)) == (16, 2, (0.5, 0.5, 0.5))
    assert (found.size["shortest_edge"], found.size["longest_edge"]) == (65536, 300_000)
    assert ImageSettings.from_hf(tmp_path) == CFG.images(max_pixels=300_000)
