"""Pages of pictures: where pictures, titles and captions are put."""

import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.evals.pictures import GAP, LINE, montage

RNG = np.random.default_rng(0)


def test_pictures_as_they_are():
    """Without text and resizing: rows of their own length, white between."""
    pictures = [RNG.integers(0, 256, (10, 12, 3), dtype=np.uint8) for _ in range(3)]
    page = decode_image(montage([("", [(x, "") for x in pictures[:2]]), ("", [(pictures[2], "")])], side=None))
    wanted = np.full((2 * (10 + GAP), 2 * (12 + GAP), 3), 255, np.uint8)
    for picture, (y, x) in zip(pictures, ((0, 0), (0, 12 + GAP), (10 + GAP, 0))):
        wanted[y : y + 10, x : x + 12] = picture
    np.testing.assert_array_equal(page, wanted)


@pytest.mark.parametrize("title, caption", [("add a star", ""), ("", "before"), ("two\nlines", "x"), ("画", "ü")])
def test_text_takes_room_only_where_it_is(title, caption):
    page = decode_image(montage([(title, [(np.zeros((40, 80, 3), np.uint8), caption)])], side=40))
    top, bottom = LINE * bool(title), LINE * bool(caption)
    assert page.shape == (top + 40 + bottom + GAP, 40 + GAP, 3)
    assert not page[top : top + 20, :40].any()  # the picture, half as high as wide
    assert (page[:top] < 128).any() == bool(title) and (page[top + 20 :] < 128).any() == bool(caption)
