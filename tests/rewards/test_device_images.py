"""Images born on the device become the patches that the host would make of them."""

import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.data.images import decode_image, resize
from edit_rl_jax.vlm.device_patches import device_patches, device_picture_key, resize_on_device
from edit_rl_jax.vlm.patches import ImageSettings, patchify


@pytest.mark.parametrize("size", [(40, 61), (17, 90), (100, 33), (40, 33), (81, 61), (3, 400)])
def test_resizing_equals_the_hosts(size):
    """Up, down and mixed, on noise and on its extremes."""
    image = np.random.default_rng(0).integers(0, 256, (40, 61, 3), np.uint8)
    for x in (image, np.where(image < 128, 0, 255).astype(np.uint8)):
        ours = np.asarray(resize_on_device(jnp.asarray(x, jnp.float32)[None], *size))[0]
        np.testing.assert_array_equal(ours, resize(x, *size))


def test_patches_of_the_photographs_equal_the_hosts(shared):
    files = sorted((shared / "data/photo_edits/images").glob("*.jpg"))
    settings = ImageSettings()
    std = np.asarray(settings.std).repeat(2 * 14 * 14)
    by_size: dict[tuple[int, ...], list[np.ndarray]] = {}
    for image in map(decode_image, files):
        by_size.setdefault(image.shape, []).append(image)
    worst, changed, total = 0.0, 0, 0
    for images in by_size.values():
        # what an editor leaves: floats near the levels, some outside of [0, 1]
        noise = np.random.default_rng(1).uniform(-0.4, 0.4, (len(images), *images[0].shape))
        born = jnp.asarray((np.stack(images) + noise) / 255, jnp.float32)
        eight = np.asarray(device_patches(jnp.asarray(np.stack(images)), settings))  # 8 bits: a quarter of the memory
        np.testing.assert_array_equal(eight, np.asarray(device_patches(born, settings)))
        for image, ours in zip(images, eight):
            difference = np.abs((ours - patchify(image, settings)[0]) * std)
            worst = max(worst, float(difference.max()))
            changed, total = changed + int((difference > 1e-5).sum()), total + difference.size
    print(f"largest difference {worst * 255:.3f} / 255, {changed / total:.2e} of the values differ")
    assert changed == 0


def test_arrays_are_named_by_content():
    """What was there before, and in which process, is no part of it: a resumed run draws the same random numbers."""
    image = np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8)
    name = device_picture_key(jnp.asarray(image))
    assert name == device_picture_key(jnp.asarray(image)) and name.startswith(b"device uint8(8, 6, 3) ")
    assert name[-16:].hex() == "a5d9007a6dab9149d7e7cf14d1fd4e6e"
    others = [image.astype(np.float32) / 255, image.reshape(6, 8, 3), image[::-1], image[:, ::-1], image[..., ::-1]]
    for at in np.ndindex(2, 3, 3):  # one level more or less, and one that wanders
        for change in (1, 255):
            more = np.zeros(image.shape, np.uint8)
            more[at] = change
            others += [image + more, image + more - np.roll(more, 1, 0)]
    flat = image.astype(int).ravel()  # a sum weighted by odd numbers would not see these
    flat[0], flat[1] = flat[0] + 3, flat[1] - 1
    others.append(flat.clip(0, 255).astype(np.uint8).reshape(image.shape))
    others += [np.zeros((8, 6, 3), np.uint8), np.zeros((8, 6, 3), np.float32), np.full((8, 6, 3), -0.0, np.float32)]
    names = [device_picture_key(jnp.asarray(x)) for x in others]
    assert len({name, *names}) == 1 + len(others)
