"""What the ladder compares of vision towers, layer by layer, and how it compares."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch

from edit_rl_jax.nn import attention as attention_lib
from edit_rl_jax.nn import rotary
from edit_rl_jax.vlm import positions
from edit_rl_jax.vlm.qwen2_5_vl import vision
from tests import quick
from tests.parity import tiny

# compiling is most of the ladder's time; without LLVM's optimisations it is halved and the arithmetic is the same
FAST = quick.OPTIONS
jit = functools.partial(jax.jit, compiler_options=FAST)


def error(ours, theirs, least: float = 1.0) -> float:
    """max|a - b| / max(least, max|b|); NaN counts as infinite."""
    a, b = (np.asarray(x.detach() if isinstance(x, torch.Tensor) else x, np.float64) for x in (ours, theirs))
    assert a.shape == b.shape, (a.shape, b.shape)
    worst = np.abs(a - b).max() / max(least, np.abs(b).max())
    return float(worst) if np.isfinite(worst) else np.inf


def layer(stacked, i: int):
    return jax.tree.map(lambda a: a[i], stacked)


def whole(model, seen, s) -> dict[str, float]:
    """Blocks, mergers, learned positions and patch embedding, in slot order and back."""
    cfg, tower, out = model.cfg.vision, model.visual, {}
    layout = positions.pack_vision(s.grids, cfg, tiny.VISION_ROWS, tiny.SLOTS)
    source = layout.source.reshape(-1)
    real, arrays = source >= 0, {k: v[None] for k, v in model.cfg.vision_arrays(layout).items()}
    tables = rotary.vision_table(jnp.asarray(layout.patch_hw).reshape(1, -1, 2), cfg.head_dim, cfg.rope_theta)
    attend = vision.attend_in(tiny.SLOTS, jnp.asarray(arrays["patch_segments"]), None)
    put = lambda x: jnp.asarray(np.where(real[:, None], x[source], 0))[None]
    run = jit(lambda block, x: block(x, *tables, attend))
    for i in range(cfg.depth):
        x, y = seen["block", i]
        out[f"vision block {i}"] = error(run(layer(tower.blocks, i), put(x))[0][real], y[source[real]])
    merge = jit(lambda merger, x: merger(x))
    mergers = {"merger": tower.merger}
    mergers |= {("deep", i): layer(tower.deepstack_merger_list, i) for i in range(len(cfg.deepstack_visual_indexes))}
    for key, merger in mergers.items():
        x, y = seen[key]
        out[f"{key}"] = error(merge(merger, jnp.asarray(x)[None])[0], y)
    x, y = seen["patch_embed"]
    out["patch embedding"] = error(tower.patch_embed(jnp.asarray(x.numpy())), y)
    index, weight = (jnp.asarray(arrays[k].reshape(1, -1, 4)) for k in ("pos_index", "pos_weight"))
    want = seen["block", 0][0] - y.numpy()
    out["learned positions"] = error(tower.pos_embed(index, weight)[0][real], want[source[real]])
    return out


def windowed(model, seen, s) -> dict[str, float]:
    """Blocks of windows and of whole images, merger and patch embedding."""
    cfg, out = model.cfg, {}
    layout = positions.pack_vision(s.grids, cfg.vision, tiny.VISION_ROWS, tiny.SLOTS)
    source = layout.source.reshape(-1)
    hw = jnp.asarray(layout.patch_hw).reshape(1, -1, 2)
    tables = rotary.vision_table(hw, cfg.vision.head_dim, cfg.vision.rope_theta)
    rows = tiny.SLOTS * np.arange(1, tiny.VISION_ROWS + 1)[:, None]
    image = (layout.patch_segments + rows) * (layout.patch_segments > 0)
    group = np.arange(source.size) // cfg.vision.window_tokens * cfg.vision.window_tokens
    window = (layout.window_segments.reshape(-1) + group) * (source >= 0)
    inside = lambda ids: lambda *qkv: attention_lib.attention(*qkv, q_segments=ids, kv_segments=ids)
    run = jit(lambda block, x, ids: block(x, *tables, inside(ids)))
    for i, full in enumerate(cfg.vision.is_full):
        x, y = seen["block", i]
        x = jnp.asarray(np.where(source[:, None] < 0, 0, x[source]))[None]
        got = run(layer(model.visual.blocks, i), x, jnp.asarray((image if full else window).reshape(1, -1)))
        out[f"vision block {i} ({'full' if full else 'windows'})"] = error(got[0][source >= 0], y[source[source >= 0]])
    x, y = seen["merger"]
    got = jit(lambda merger, x: merger(x))(model.visual.merger, jnp.asarray(x)[None])
    out["merger"] = error(got[0], y)
    x, y = seen["patch_embed"]
    out["patch embedding"] = error(model.visual.patch_embed(jnp.asarray(x.numpy())), y)
    return out
