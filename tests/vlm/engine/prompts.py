"""Random prompts for the engine: tiny samples as `Prompt`s, cut where their images begin and end."""

import numpy as np

from edit_rl_jax.vlm.engine.prompt import Picture, Prompt
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.positions import rope_index, vision_slots
from edit_rl_jax.vlm.qwen_config import QwenConfig
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded


def picture(cfg: QwenConfig, key: bytes, grid, patches: np.ndarray, slots: int = 0) -> Picture:
    """One image of `patches` [N, 1176], at least so many slots."""
    n = int(np.prod(grid)) // 4
    slots = max(slots, vision_slots(grid, cfg.vision))

    def load():
        pads = np.full(n, cfg.image_token_id, np.int32)
        batch = empty_batch(Bucket(n, 1, slots, 1), 1, cfg)
        zeros = np.zeros((3, n), np.int32)
        write_row(batch, 0, [Encoded("", pads, np.zeros(n, bool), zeros, patches, (grid,))], cfg)
        return {k: v[0] for k, v in batch.items() if k.startswith(("patch", "window", "pos_"))}, batch["image_index"][0]

    return Picture(key, n, slots, load)


def prompt(
    cfg: QwenConfig,
    tokens,
    grids=(),
    patches=(),
    cuts: bool | tuple[int, ...] = True,
    keys=None,
    slots: int = 0,
    **names,
) -> Prompt:
    """`tokens` with pads for images of these grids; `patches` one array an image. `cuts`: at the images' sides."""
    tokens = np.asarray(tokens, np.int32)
    places = np.flatnonzero((tokens == cfg.image_token_id) & (np.roll(tokens, 1) != cfg.image_token_id))
    keys = keys or [p.tobytes() for p in patches]
    pictures = tuple((int(a), picture(cfg, k, g, p, slots)) for a, k, g, p in zip(places, keys, grids, patches))
    where = (
        sorted({c for a, p in pictures for c in (a, a + p.tokens)} - {len(tokens) - 1}) if cuts is True else cuts or ()
    )
    return Prompt(tokens, rope_index(tokens, grids, cfg.image_token_id)[0], pictures, tuple(where), **names)


def of_sample(cfg: QwenConfig, sample, cuts: bool = True, **names) -> Prompt:
    """A sample of tests/parity/tiny.py."""
    sizes = np.cumsum([np.prod(g) for g in sample.grids])[:-1] if len(sample.grids) else []
    patches = np.split(sample.patches, sizes) if len(sample.grids) else ()
    return prompt(cfg, sample.tokens, sample.grids, patches, cuts, **names)
