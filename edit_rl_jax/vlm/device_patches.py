"""Images that are born on the device (an editor's output) as patches, without leaving it.

The same as `data.images` does on the host, bit for bit: rounded to 8 bits, resized as PIL's antialiased bicubic does
(two passes in PIL's order, each rounded to 8 bits, weights of 22 fractional bits), normalised, cut into patches.
The resizing's weights are constants.
"""

import functools
import weakref

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Float64, UInt8, UInt32
from PIL import Image

from edit_rl_jax.vlm.patches import ImageSettings

_BITS, _LOW = 22, 7  # fractional bits of PIL's weights; of those, the ones that make the lower half
_keys: dict[int, tuple[weakref.ref, bytes]] = {}


@functools.lru_cache(maxsize=64)
def bicubic_weights(before: int, after: int) -> Float64[np.ndarray, "after before"]:
    """PIL's resampling along one axis as a matrix: cubic of a = -0.5, stretched by the scale where it shrinks."""
    scale = before / after
    stretch = max(scale, 1.0)
    centre = (np.arange(after) + 0.5) * scale
    first = np.maximum((centre - 2 * stretch + 0.5).astype(np.int64), 0)
    last = np.minimum((centre + 2 * stretch + 0.5).astype(np.int64), before)
    at = np.arange(before)[None]
    x = np.abs((at + 0.5 - centre[:, None]) / stretch)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    w = np.where(x < 1, near, np.where(x < 2, far, 0.0)) * ((at >= first[:, None]) & (at < last[:, None]))
    return w / w.sum(1, keepdims=True)


def resize_on_device(images: Float[Array, "B H W 3"], height: int, width: int) -> Float[Array, "B h w 3"]:
    """8-bit levels (as fp32) resized exactly like `data.images.resize`.

    A level times half a weight, and sums of those, are integers below 2^24: matrix products in fp32 hold them exactly.
    """

    def along(x, axis, size):
        if x.shape[axis] == size:
            return x
        scaled = bicubic_weights(x.shape[axis], size) * 2**_BITS
        w = np.trunc(scaled + np.copysign(0.5, scaled)).astype(np.int32)
        high = (w + (1 << _LOW - 1)) >> _LOW

        def product(half):
            half = jnp.asarray(half, jnp.float32)
            y = jnp.tensordot(x, half, axes=((axis,), (1,)), precision="highest")
            return jnp.moveaxis(y, -1, axis).astype(jnp.int32)

        y = (product(high) << _LOW) + product(w - (high << _LOW)) + (1 << _BITS - 1)
        return jnp.clip(y >> _BITS, 0, 255).astype(jnp.float32)

    if vertical_first(images.shape[1:3], (height, width)):
        return along(along(images, 1, height), 2, width)
    return along(along(images, 2, width), 1, height)


def vertical_first(before: tuple[int, int], after: tuple[int, int]) -> bool:
    """Which pass PIL runs first at these (height, width): Pillow 13 the vertical one where that saves work."""
    (H, W), (h, w) = before, after
    return _reorders() and h < H and 2 * (W - w) < H - h


@functools.cache
def _reorders() -> bool:
    """Whether the installed Pillow chooses the order: on a checkerboard of 8 x 8 to 4 x 12 the results differ."""
    image = (np.indices((8, 8)).sum(0) % 2 * 255).astype(np.uint8)
    image[:, 3] = 90
    image[5] = 170
    across, down = bicubic_weights(8, 12), bicubic_weights(8, 4)
    level = lambda x: np.clip(np.floor(x + 0.5), 0, 255)
    first = {True: level(level(down @ image) @ across.T), False: level(down @ level(image @ across.T))}
    found = np.asarray(Image.fromarray(image).resize((12, 4), Image.Resampling.BICUBIC))
    return bool(np.abs(first[True] - found).sum() < np.abs(first[False] - found).sum())


@functools.partial(jax.jit, static_argnames="settings")
def device_patches(
    images: Float[Array, "B H W 3"] | UInt8[Array, "B H W 3"], settings: ImageSettings
) -> Float[Array, "B N D"]:
    """Cuts a batch of images on the device into patches as `vlm.patches.patchify` does on the host.

    images: u8, or float with values in [0, 1], which is rounded to 8 bits. N = h * w of `settings.grid`.
    """
    _, gh, gw = settings.grid(*images.shape[1:3])
    p, m, B = settings.patch_size, settings.merge_size, images.shape[0]
    levels = images.astype(jnp.float32)
    if images.dtype != jnp.uint8:
        levels = jnp.round(jnp.clip(levels, 0, 1) * 255)
    x = resize_on_device(levels, gh * p, gw * p)
    mean, std = (jnp.asarray(v, jnp.float32)[None, None, None] for v in (settings.mean, settings.std))
    x = ((x / 255 - mean) / std).reshape(B, gh // m, m, p, gw // m, m, p, 3)
    x = x.transpose(0, 1, 4, 2, 5, 7, 3, 6).reshape(B, gh * gw, 3, 1, p * p)
    return jnp.tile(x, (1, 1, 1, settings.temporal_patch_size, 1)).reshape(B, gh * gw, -1)


def device_picture_key(image: jax.Array) -> bytes:
    """Names an array on the device by its content, of which 128 bits come to the host: equal arrays have one name, in
    every process and whatever was there before."""
    known = _keys.get(id(image))
    if known is None or known[0]() is not image:
        for key in [k for k, (kept, _) in _keys.items() if kept() is None]:
            del _keys[key]
        name = f"device {image.dtype}{image.shape} ".encode() + np.asarray(_content(image)).tobytes()
        known = _keys[id(image)] = (weakref.ref(image), name)
    return known[1]


@jax.jit
def _content(image: Array) -> UInt32[Array, "4"]:
    """Hashes an array's bits: four sums, modulo 2^32, of each element mixed with its place.

    Sums of integers are the same in any order. `nn.flat.checksum` is linear, which is enough for faults; two edits
    that differ in few pixels could share one.
    """
    size = {1: jnp.uint8, 2: jnp.uint16, 4: jnp.uint32}[image.dtype.itemsize]
    bits = jax.lax.bitcast_convert_type(image, size).astype(jnp.uint32).ravel()
    place = jnp.arange(bits.size, dtype=jnp.uint32)
    lanes = [_mix(bits ^ _mix(place + jnp.uint32(0x9E3779B9 * k % 2**32))) for k in (1, 2, 3, 4)]
    return jnp.stack([jnp.sum(lane, dtype=jnp.uint32) for lane in lanes])


def _mix(x: UInt32[Array, " n"]) -> UInt32[Array, " n"]:
    """MurmurHash3's last step: every bit of the input changes half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)
