"""An editor that the package does not know, whose guided edits are known in closed form."""

import numpy as np
import pytest

from edit_rl_jax.data.images import resize
from edit_rl_jax.editors.base import Editor, Processor, TokenLengths, smaller
from edit_rl_jax.editors.sampling import LANCZOS, Edit, EditorSampler, EditSettings
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.schedules import Schedule
from tests.editors import toy
from tests.editors.pictures import picture

NONE = Guidance()


def sampler(guidance=NONE, solver="euler", steps=4, **settings) -> EditorSampler:
    made = EditSettings(Denoising(steps, solver, guidance), Schedule(steps, "static"), **settings)
    return EditorSampler(
        toy.Editor(), toy.folder_tokenizer(), made, compiler_options={"xla_backend_optimization_level": 0}
    )


@pytest.mark.parametrize(
    "guidance, solver", [((1.0, 1.0), "euler"), ((3.0, 1.0), "euler"), ((3.0, 1.2), "euler"), ((3.0, 1.2), "dpm2")]
)
def test_a_guided_edit_is_the_sum_that_guidance_means(guidance, solver):
    """none + image (reference - none) + text (full - reference); none = 0.1, reference = x + 0.1, full = x + 0.2."""
    assert isinstance(toy.Editor(), Editor) and isinstance(toy.Processor(), Processor)
    x, (text, image) = picture(10, 14) // 4 + 90, guidance  # far from black and white: nothing is clipped
    value = x / 127.5 - 1
    want = {
        (1.0, 1.0): value + 0.2,
        (3.0, 1.0): 0.1 + 3 * (value + 0.1),
        (3.0, 1.2): 0.1 + 1.2 * value + 3 * 0.1,
    }[guidance]
    s = sampler(Guidance(text, image), solver, negative="+", rows=2)
    (made,) = s.edit([Edit("a++", (x,))])
    assert np.abs(made - np.clip(127.5 * want + 127.5, 0, 255)).max() < 0.51


def test_edits_come_back_in_order_at_their_sizes_from_few_shapes():
    s = sampler(rows=2, buckets=(TokenLengths(8, 60, 35), TokenLengths(8, 60, 80)), max_side=20)
    sizes = [(10, 14), (13, 20), (10, 14), (20, 8), (40, 20)]
    pictures = [picture(*size, seed=i) // 2 + 50 for i, size in enumerate(sizes)]
    edits = [Edit("+" * i, (x,), item=i) for i, x in enumerate(pictures)]
    made = s.edit(edits)
    for i, (x, y) in enumerate(zip(pictures, made)):
        h, w = min(sizes[i][0], 20) // 2 * 2, (10 if sizes[i] == (40, 20) else sizes[i][1])
        assert y.shape == (h, w, 3)
        if x.shape == y.shape:
            assert np.abs(y - (x + 12.75 * i)).max() < 0.51
    assert s._sample._cache_size() == 2  # a bucket each
    assert s.edit(edits[1:2])[0].tolist() == made[1].tolist()


def test_two_references_and_a_size_of_ones_own():
    s = sampler(rows=1)
    (made,) = s.edit([Edit("+", (picture(4, 6), picture(8, 8)), size=(9, 13))])
    assert made.shape == (9, 13, 3)
    (plain,) = s.edit([Edit("+++", size=(4, 4))])
    np.testing.assert_array_equal(plain, np.full((4, 4, 3), round(127.5 * 1.3), np.uint8))


def test_references_may_have_fewer_pixels_than_the_result():
    """12 x 16 with at most 60 pixels is 6 x 8: the same as an image that is so small, and the result keeps its size."""
    image, small = picture(12, 16), sampler(reference_pixels=60)
    request, need = small.check(Edit("+", (image,)))
    assert request.references == ((6, 8),) and request.size == (12, 16) and need.references == 12
    (made,) = small.edit([Edit("+", (image,))])
    (again,) = sampler().edit([Edit("+", (resize(image, 6, 8, LANCZOS),), size=(12, 16))])
    np.testing.assert_array_equal(made, again)
    assert smaller((12, 16), 192, 2) == (12, 16) and smaller((40, 4), 20, 4) == (12, 4)
