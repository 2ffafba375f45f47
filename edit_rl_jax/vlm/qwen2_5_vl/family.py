"""Qwen2.5-VL as a family (see `vlm.family`)."""

from edit_rl_jax.vlm.qwen2_5_vl import sizes
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.vlm.qwen2_5_vl.weights import NAMING, architecture, save

__all__ = ["ENTRIES", "LORA_PARTS", "NAMING", "PUBLISHED", "architecture", "model", "save"]

model = Qwen25VL
LORA_PARTS = {
    "vision": "model.visual.blocks.",
    "merger": "model.visual.merger.",
    "patches": "model.visual.patch_embed.",
    "head": "lm_head",
}
PUBLISHED = {hub_id: (sizes.config(size), sizes.LICENCES[size]) for size, hub_id in sizes.HUB_IDS.items()}
ENTRIES = 151_665
