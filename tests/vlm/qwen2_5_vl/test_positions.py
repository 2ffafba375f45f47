"""Host index arrays against transformers' own functions."""

import numpy as np
import pytest
import torch
from transformers import Qwen2_5_VLConfig
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLModel
from transformers.vision_utils import get_vision_attention_seqlens, get_vision_position_ids, get_vision_window_index

from edit_rl_jax.vlm.positions import VisionDoesNotFitError, pack_vision, rope_index, vision_slots
from edit_rl_jax.vlm.qwen2_5_vl.config import VisionConfig

QWEN = VisionConfig(hidden_size=1280)
ODD = [
    [(1, 2, 2)],
    [(1, 8, 8)],
    [(1, 2, 30), (1, 30, 2)],
    [(1, 10, 14), (1, 6, 26)],
    [(1, 36, 36), (1, 36, 36)],
    [(1, 18, 22), (2, 6, 10), (1, 4, 4)],
    [(3, 10, 12)],
    [(1, 74, 50)],
]


def reference(grids, cfg):
    """Per patch in processor order: frame id, window id, (row, column), all over the concatenated images."""
    thw = torch.tensor(grids)
    order, cuts = get_vision_window_index(thw, cfg.spatial_merge_size, cfg.window_size, cfg.patch_size)
    window_of_merged = np.empty(len(order), int)
    window_of_merged[order.numpy()] = np.searchsorted(cuts.numpy()[1:], np.arange(len(order)) * 4, side="right")
    frame_cuts = get_vision_attention_seqlens(thw, Qwen2_5_VLConfig().vision_config)[0].numpy()
    n = int(thw.prod(-1).sum())
    frame_of = np.searchsorted(frame_cuts[1:], np.arange(n), side="right")
    hw = get_vision_position_ids(thw, cfg.spatial_merge_size).numpy().reshape(n, 2)
    return frame_of, np.repeat(window_of_merged, 4), hw


def groups_of(ids):
    """The set of index sets that share an id."""
    return {frozenset(np.flatnonzero(ids == i).tolist()) for i in np.unique(ids)}


@pytest.mark.parametrize("window_size", [112, 56])
@pytest.mark.parametrize("grids", ODD, ids=str)
def test_layout_is_transformers_layout(grids, window_size):
    cfg = VisionConfig(hidden_size=1280, window_size=window_size)
    W = cfg.window_tokens
    slots = sum(vision_slots(g, cfg) for g in grids)
    frame_of, window_of, hw = reference(grids, cfg)
    n = len(frame_of)
    largest = -(-max(g[1] * g[2] for g in grids) // W) * W
    for R, P in [(1, slots), (1, slots + W), (2, max(slots, largest))]:
        layout = pack_vision(grids, cfg, R, P)
        source = layout.source.reshape(-1)
        real = source >= 0
        assert sorted(source[real]) == list(range(n)), "every patch exactly once"
        for ids in (layout.patch_segments, layout.window_segments):
            np.testing.assert_array_equal(ids.reshape(-1) > 0, real)
        np.testing.assert_array_equal(layout.patch_hw.reshape(-1, 2)[real], hw[source[real]])
        # What attends to what: equal ids inside a vision row, and inside a dense group of W.
        rows, dense = np.arange(R * P) // P, np.arange(R * P) // W
        for ids, place, expected in (
            (layout.patch_segments, rows, frame_of),
            (layout.window_segments, dense, window_of),
        ):
            key = np.full(n, -1)
            key[source[real]] = place[real] * 10_000 + ids.reshape(-1)[real]
            assert groups_of(key) == groups_of(expected)
        # Four slots in a row are one merged token, found again by merged_index in processor order.
        np.testing.assert_array_equal(
            source.reshape(-1, 4)[np.concatenate(layout.merged_index)].reshape(-1), np.arange(n)
        )


def test_two_photographs_of_512_pixels():
    """Two 36 x 36 grids in a vision row each: padding 1.2%, attention 3% of the tower's linear layers."""
    grids = [(1, 36, 36)] * 2
    assert vision_slots(grids[0], QWEN) == 21 * 64
    layout = pack_vision(grids, QWEN, 2, 1312)  # the images take half of the shared window group each
    real = 2 * 36 * 36
    assert layout.source.size == 41 * 64 and (layout.source >= 0).sum() == real
    with pytest.raises(VisionDoesNotFitError):
        pack_vision(grids, QWEN, 2, 1312 - 64)
    D, F, slots = QWEN.hidden_size, QWEN.intermediate_size, layout.source.size
    linear = QWEN.depth * (4 * D * D + 3 * D * F) + QWEN.patch_dim * D + (4 * D * 4 * D + 4 * D * 3584) // 4
    full = len(QWEN.fullatt_block_indexes)
    scores = 2 * D * (full * 1312 + (QWEN.depth - full) * 64)
    assert slots * (linear + scores) <= 1.06 * real * linear


def test_layout_errors():
    with pytest.raises(ValueError, match="multiples of 2"):
        vision_slots((1, 3, 4), QWEN)
    with pytest.raises(ValueError, match="multiples of 4, together of 64"):
        pack_vision([(1, 4, 4)], QWEN, 1, 60)
    with pytest.raises(VisionDoesNotFitError, match="1, 10, 14"):
        pack_vision([(1, 10, 14)], QWEN, 1, 128)
    empty = pack_vision([], QWEN, 1, 64)
    assert (empty.source == -1).all() and not empty.patch_segments.any() and empty.merged_index == []


def hf_rope_index(tokens, grids, mask):
    model = Qwen2_5_VLModel.__new__(Qwen2_5_VLModel)
    torch.nn.Module.__init__(model)
    model.config = Qwen2_5_VLConfig()
    ids = torch.tensor(tokens)[None]
    position, delta = model.get_rope_index(
        ids,
        mm_token_type_ids=(ids == 7).int(),
        image_grid_thw=torch.tensor(grids) if grids else None,
        attention_mask=torch.tensor(mask)[None].int(),
    )
    return position[:, 0].numpy(), int(delta)


@pytest.mark.parametrize("grids", [[], *ODD], ids=str)
@pytest.mark.parametrize("pad", [(0, 0), (5, 0), (0, 3), (2, 2)], ids=str)
def test_rope_index_is_transformers(grids, pad):
    tokens = [1, 2, 3]
    for t, h, w in grids:
        tokens += [4, *[7] * (t * h * w // 4), 5, 6]
    tokens = [0] * pad[0] + tokens + [0] * pad[1]
    mask = np.array([0] * pad[0] + [1] * (len(tokens) - sum(pad)) + [0] * pad[1], bool)
    expected, delta = hf_rope_index(tokens, grids, mask)
    got, following = rope_index(np.array(tokens), grids, 7, mask=mask)
    np.testing.assert_array_equal(got, expected)
    assert following == mask.sum() + delta


def test_rope_index_counts_images():
    tokens = np.array([1, 7, 7, 7, 7, 2])
    for grids, message in [([], "more than the 0"), ([(1, 4, 6)], "needs 6 cons"), ([(1, 4, 4)] * 2, "for fewer")]:
        with pytest.raises(ValueError, match=message):
            rope_index(tokens, grids, 7)
