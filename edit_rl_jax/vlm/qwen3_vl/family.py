"""Qwen3-VL as a family (see `vlm.family`)."""

from edit_rl_jax.vlm.qwen3_vl import sizes
from edit_rl_jax.vlm.qwen3_vl.model import Qwen3VL
from edit_rl_jax.vlm.qwen3_vl.weights import NAMING, architecture, save

__all__ = ["ENTRIES", "LORA_PARTS", "NAMING", "PUBLISHED", "architecture", "model", "save"]

model = Qwen3VL
LORA_PARTS = {
    "vision": "model.visual.blocks.",
    "merger": "model.visual.merger.",
    "deepstack": "model.visual.deepstack_merger_list.",
    "patches": "model.visual.patch_embed.",
    "head": "lm_head",
}
PUBLISHED = {hub_id: (sizes.config(size), sizes.LICENCE) for size, hub_id in sizes.HUB_IDS.items()}
ENTRIES = 151_669
