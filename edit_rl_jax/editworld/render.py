"""Draws scenes, anti-aliased by supersampling, at any resolution, and damages pictures. Native resolution: 84.

An object is drawn from two cached coverage masks, one of its colour and one of its pattern's second colour.
"""

import functools
import math

import numpy as np
from jaxtyping import Float, UInt8

from edit_rl_jax.editworld.scene import COLOURS, Scene

NATIVE = 84
CELL = 28.0  # native pixels a cell: the unit of every length below
RADIUS = {"small": 8.5, "big": 12.6}
DAMAGES = ("noise", "blur", "blocks", "cast")
NOISE_STD, BLUR_SIGMA, BLOCK_STD, CAST = 50.0, 2.1, 40.0, 55.0  # at severity 1; sigma in native pixels
BLOCKS = 12  # blocks a side
CASTS = np.array([[1, -0.5, -0.5], [-0.5, 1, -0.5], [-0.5, -0.5, 1], [0.5, 0.5, -1], [0.5, -1, 0.5], [-1, 0.5, 0.5]])


def _inside(shape: str, u: np.ndarray, v: np.ndarray) -> np.ndarray:
    """Whether points (radius 1, v downwards) lie in a shape."""
    r = np.hypot(u, v)
    if shape == "circle":
        return r <= 0.96
    if shape == "square":
        return np.maximum(np.abs(u), np.abs(v)) <= 0.86
    if shape == "triangle":
        return (v <= 0.82) & (np.abs(u) <= (v + 1.0) * 0.55)
    if shape == "cross":
        a, b = np.abs(u), np.abs(v)
        return (np.minimum(a, b) <= 0.33) & (np.maximum(a, b) <= 0.98)
    if shape == "ring":
        return (r <= 1.0) & (r >= 0.48)
    # A five-pointed star: inside the edge between the nearest tip (radius 1.05) and notch (radius 0.45).
    step = math.pi / 5
    angle = np.abs((np.arctan2(u, -v) + step) % (2 * step) - step)
    tip, notch = (1.05, 0.0), (0.45 * math.cos(step), 0.45 * math.sin(step))
    x, y = r * np.cos(angle), r * np.sin(angle)
    return (notch[0] - tip[0]) * (y - tip[1]) - (notch[1] - tip[1]) * (x - tip[0]) >= 0


def _second(material: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Whether points (native pixels from the object's centre) take the material's second colour."""
    if material == "striped":
        return (y + 1.4) % 5.6 < 2.8
    if material == "dotted":
        p = 6.0
        return np.hypot((x + p / 2) % p - p / 2, (y + p / 2) % p - p / 2) <= 1.75
    if material == "checked":
        return (np.floor(x / 4.2) + np.floor(y / 4.2)) % 2 == 0
    return np.zeros(x.shape, bool)


@functools.cache
def second_colour(material: str, colour: str) -> np.ndarray:
    """f32 [3]: dark for stripes, white for dots, pale grey-black mix for checks."""
    c = np.array(COLOURS[colour], np.float32)
    return {"plain": c, "striped": 0.22 * c, "dotted": np.full(3, 250, np.float32), "checked": 0.35 * c + 160}[
        material
    ].astype(np.float32)


def _samples(start: int, count: int, n: int) -> np.ndarray:
    """Sample points of `count` pixels from pixel `start`, in native pixels [count * s]."""
    s = 5 if n <= 128 else 3
    return (start + (np.arange(count * s) + 0.5) / s) * (NATIVE / n)


def _pool(a: np.ndarray, h: int, w: int) -> np.ndarray:
    return a.reshape(h, a.shape[0] // h, w, a.shape[1] // w).mean((1, 3), dtype=np.float32)


@functools.lru_cache(maxsize=16384)
def masks(
    shape: str, size: str, material: str, offset: tuple[int, int], start: tuple[int, int], n: int
) -> Float[np.ndarray, "2 h w"]:
    """Coverage by the first and by the second colour, over a box of one cell's size.

    `start` is the box's first (row, column) from the cell's own corner in 1/3 pixel, so that cells share masks.
    """
    count = -(-n // 3) + (n % 3 > 0)
    third = NATIVE / n / 3
    y = _samples(0, count, n)[:, None] + start[0] * third - CELL / 2 - offset[1]
    x = _samples(0, count, n)[None, :] + start[1] * third - CELL / 2 - offset[0]
    x, y = np.broadcast_arrays(x, y)
    inside = _inside(shape, x / RADIUS[size], y / RADIUS[size])
    second = inside & _second(material, x, y)
    out = np.stack([_pool(inside & ~second, count, count), _pool(second, count, count)])
    out.setflags(write=False)
    return out


@functools.lru_cache(maxsize=64)
def background(name: str, n: int) -> Float[np.ndarray, "n n 3"]:
    """A background at brightness 1. Each has its own texture, so that a colour cast does not turn one into another."""
    t = _samples(0, n, n)
    y, x = np.broadcast_arrays(t[:, None], t[None, :])
    if name == "sand":
        a = 0.5 + 0.5 * np.sin(2 * np.pi * (y / 12 + 0.35 * np.sin(2 * np.pi * x / 42)))
        low, high = (178, 152, 108), (206, 184, 142)
    elif name == "grass":
        a = ((x + 2.5 * (np.floor(y / 9.33) % 2)) % 5 < 1.7) * 1.0
        low, high = (112, 138, 92), (82, 108, 66)
    elif name == "sky":
        a = y / NATIVE
        low, high = (112, 152, 196), (190, 202, 208)
    elif name == "brick":
        row = np.floor(y / 7)
        a = ((y % 7 < 1.3) | ((x + 7 * (row % 2)) % 14 < 1.3)) * 1.0
        low, high = (148, 98, 84), (186, 170, 158)
    elif name == "slate":
        a = ((x + y) % 12 < 6) * 1.0
        low, high = (98, 102, 110), (122, 126, 132)
    elif name == "night":
        a = (np.hypot((x + 3 * np.floor(y / 10.5)) % 10.5 - 5, y % 10.5 - 5) < 1.1) * 1.0
        low, high = (34, 36, 58), (170, 170, 150)
    else:
        raise ValueError(f"unknown background {name!r}")
    a = _pool(a.astype(np.float32), n, n)[..., None]
    out = np.float32(low) * (1 - a) + np.float32(high) * a
    out.setflags(write=False)
    return out


def paint(scene: Scene, resolution: int = NATIVE) -> Float[np.ndarray, "n n 3"]:
    """The scene as float32 on 0-255."""
    n = resolution
    out = background(scene.background, n) * np.float32(scene.brightness)
    for cell in scene.occupied:
        obj = scene.objects[cell]
        row, col = cell // 3 * n, cell % 3 * n  # in 1/3 pixel
        r, c = row // 3, col // 3
        m = masks(obj.shape, obj.size, obj.material, obj.offset, (r * 3 - row, c * 3 - col), n)
        box = out[r : r + m.shape[1], c : c + m.shape[2]]
        first, second = m[:, : box.shape[0], : box.shape[1], None]
        b = np.float32(obj.brightness)
        colour, other = np.float32(COLOURS[obj.colour]) * b, second_colour(obj.material, obj.colour) * b
        box += first * (colour - box) + second * (other - box)
    return np.minimum(out, 255, out=out)


def quantise(image: np.ndarray) -> UInt8[np.ndarray, "..."]:
    """Rounds to 8 bits, clipped."""
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


def render(scene: Scene, resolution: int = NATIVE) -> UInt8[np.ndarray, "n n 3"]:
    """The scene as 8-bit RGB."""
    return quantise(paint(scene, resolution))


@functools.lru_cache(maxsize=32)
def dct(n: int) -> Float[np.ndarray, "n n"]:
    """Orthonormal DCT-II matrix: a Gaussian blur with mirrored borders is diagonal in it."""
    k, i = np.arange(n)[:, None], np.arange(n)[None, :]
    m = np.sqrt(2 / n) * np.cos(np.pi * (i + 0.5) * k / n)
    m[0] /= np.sqrt(2)
    return m.astype(np.float32)


def blur_gain(n: int, sigma: float) -> Float[np.ndarray, "n"]:
    """Gain of a Gaussian blur (sigma in native pixels) on each frequency of `dct(n)`."""
    s = sigma * n / NATIVE
    return np.exp(-0.5 * (np.pi * np.arange(n) / n * s) ** 2).astype(np.float32)


def blur(image: np.ndarray, sigma: float) -> Float[np.ndarray, "n n 3"]:
    """Gaussian blur of a square picture with mirrored borders; sigma in native pixels."""
    n = image.shape[0]
    m = dct(n).T @ (blur_gain(n, sigma)[:, None] * dct(n))
    return np.einsum("ij,jkc,lk->ilc", m, image.astype(np.float32), m, optimize=True)


def damage(image: np.ndarray, kind: str, severity: float, gen: np.random.Generator) -> Float[np.ndarray, "n n 3"]:
    """Damages a square picture (0-255); severity 0 leaves it as it is. Raises ValueError for an unknown kind."""
    n = image.shape[0]
    image = image.astype(np.float32)
    if kind == "noise":
        return image + NOISE_STD * severity * gen.standard_normal(image.shape).astype(np.float32)
    if kind == "blur":
        return blur(image, BLUR_SIGMA * math.sqrt(severity))
    if kind == "blocks":
        grid = gen.standard_normal((BLOCKS, BLOCKS, 1)) + 0.5 * gen.standard_normal((BLOCKS, BLOCKS, 3))
        grid = np.clip(grid / math.sqrt(1.25), -2, 2) * BLOCK_STD * severity
        index = np.arange(n) * BLOCKS // n
        return image + grid[index][:, index].astype(np.float32)
    if kind == "cast":
        return image + (CAST * severity * CASTS[gen.integers(len(CASTS))]).astype(np.float32)
    raise ValueError(f"unknown damage {kind!r}; one of {DAMAGES}")


def contact_sheet(images: list[np.ndarray], columns: int, scale: int = 2, gap: int = 6) -> UInt8[np.ndarray, "h w 3"]:
    """Pictures of one size in rows of `columns`, enlarged by `scale`, on white."""
    n = images[0].shape[0] * scale
    rows = -(-len(images) // columns)
    sheet = np.full((rows * (n + gap) + gap, columns * (n + gap) + gap, 3), 255, np.uint8)
    for i, image in enumerate(images):
        r, c = gap + i // columns * (n + gap), gap + i % columns * (n + gap)
        sheet[r : r + n, c : c + n] = np.kron(image, np.ones((scale, scale, 1), np.uint8))
    return sheet
