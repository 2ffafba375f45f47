"""Reads pictures of the world: any pixels as (colour cast, blur) of a scene, plus a remainder.

Every cell is compared with every object that the world can draw, by inner products with templates at half size.
"""

import dataclasses
import functools
import math

import numpy as np

from edit_rl_jax.editworld import render
from edit_rl_jax.editworld.scene import BACKGROUNDS, COLOURS, MATERIALS, SHAPES, SIZES, Obj, Scene

WORKING = 84
OFFSETS = tuple((x, y) for y in (-1, 0, 1) for x in (-1, 0, 1))
_BLURS = (0.0, 0.8, 1.2, 1.6, 2.0)  # native pixels: the banks of blurred templates
_DOUBT = 0.2  # share of a cell's unexplained energy by which what is expected there may explain it worse
_SIGMAS = np.concatenate([[0.0], np.linspace(0.3, 4.0, 38)])
_LOOKS = [(s, z) for s in SHAPES for z in SIZES]


def prepare(pixels: np.ndarray) -> np.ndarray:
    """Pixels [H, W, 3] (uint8, or float on 0-255) -> f32 [n, n, 3], n a multiple of 6 and at most WORKING.

    Larger pictures are averaged down over areas, smaller ones keep their own size. Raises ValueError for another shape
    or a value that is not finite.
    """
    if pixels.ndim != 3 or pixels.shape[2] != 3 or min(pixels.shape[:2]) < 24:
        raise ValueError(f"wanted pixels [H, W, 3] of at least 24x24, got {pixels.shape}")
    x = np.asarray(pixels, np.float32)
    if pixels.dtype != np.uint8 and not np.isfinite(x).all():
        raise ValueError("pixels are not finite")
    n = min(WORKING, min(x.shape[:2]) // 6 * 6)
    if x.shape[0] != n:
        x = np.tensordot(_area(x.shape[0], n), x, 1)
    if x.shape[1] != n:
        x = np.tensordot(_area(x.shape[1], n), x, (1, 1)).transpose(1, 0, 2)
    return x


@functools.lru_cache(maxsize=64)
def _area(size: int, n: int) -> np.ndarray:
    """[n, size] matrix that averages over areas."""
    edges = np.linspace(0, size, n + 1)
    i = np.arange(size)
    cover = np.minimum(edges[1:, None], i + 1) - np.maximum(edges[:-1, None], i)
    return (np.clip(cover, 0, None) * n / size).astype(np.float32)


def _half_size(x: np.ndarray) -> np.ndarray:
    return 0.25 * (x[::2, ::2] + x[1::2, ::2] + x[::2, 1::2] + x[1::2, 1::2])


def _cells(x: np.ndarray) -> np.ndarray:
    """[n, n, C] -> [pixels of a cell, 9, C]"""
    n = x.shape[0] // 3
    return x.reshape(3, n, 3, n, -1).transpose(1, 3, 0, 2, 4).reshape(n * n, 9, -1)


@functools.lru_cache(maxsize=16)
def _bank(n: int, sigma: float) -> tuple[np.ndarray, np.ndarray]:
    """Templates at half size: (mask products, masks [3, materials, 108, pixels]); 108 = shape x size x offset."""
    cell = n // 3
    m = render.dct(cell)
    gain = render.blur_gain(n, sigma)[: 3 * cell : 3]
    b = m.T @ (gain[:, None] * m) if sigma else np.eye(cell, dtype=np.float32)
    out = np.empty((2, len(MATERIALS), len(_LOOKS) * len(OFFSETS), (cell // 2) ** 2), np.float32)
    for i, material in enumerate(MATERIALS):
        for j, (shape, size) in enumerate(_LOOKS):
            for k, offset in enumerate(OFFSETS):
                for layer, mask in enumerate(render.masks(shape, size, material, offset, (0, 0), n)):
                    out[layer, i, j * len(OFFSETS) + k] = _half_size((b @ mask @ b.T)[..., None]).ravel()
    both = out.sum(0)
    inner = np.stack([(out[0] ** 2).sum(-1), (out[0] * out[1]).sum(-1), (out[1] ** 2).sum(-1)])
    return inner, np.concatenate([out, both[None]])


@functools.lru_cache(maxsize=64)
def _half_background(name: str, n: int, sigma: float) -> np.ndarray:
    """A background at half size [n/2, n/2, 3], blurred."""
    image = render.background(name, n)
    return _half_size(render.blur(image, sigma) if sigma else image)


@functools.lru_cache(maxsize=64)
def _background_terms(name: str, n: int, sigma: float) -> np.ndarray:
    """Inner products of templates and a background at brightness 1: first x 3 channels, second x 3, square."""
    _, masks = _bank(n, sigma)
    back = _cells(_half_background(name, n, sigma))
    flat = back.reshape(back.shape[0], -1)
    first = (masks[0] * masks[2]) @ flat
    second = (masks[1] * masks[2]) @ flat
    square = (masks[2] ** 2) @ (back**2).sum(-1)
    shape = (*first.shape[:2], 9, 3)
    return np.concatenate([first.reshape(shape), second.reshape(shape), square[..., None]], -1)


@functools.cache
def _palette() -> tuple[np.ndarray, np.ndarray]:
    """(colours [8, 3], second colours [materials, 8, 3])"""
    first = np.array(list(COLOURS.values()), np.float32)
    return first, np.array([[render.second_colour(m, c) for c in COLOURS] for m in MATERIALS])


def _read_background(half: np.ndarray, n: int, known: dict[str, float]) -> tuple[str, np.ndarray]:
    """(name, colour cast [3]): the background whose texture explains most pixels best; `known`: brightness by name."""
    best: tuple[float, str, np.ndarray] | None = None
    middle = half.shape[0] ** 2 // 2
    for name in BACKGROUNDS:
        d = half - _half_background(name, n, 0.0) * np.float32(known.get(name, 1.0))
        cast = np.partition(d.reshape(-1, 3).T.copy(), middle, axis=1)[:, middle]
        cost = np.minimum(np.abs(d - cast), 40).mean() + 0.08 * np.abs(cast).max() - (name in known)
        if best is None or cost < best[0]:
            best = cost, name, cast
    assert best is not None
    return best[1], np.where(np.abs(best[2]).max() < 8, 0, best[2]).astype(np.float32)


def _read_cells(half: np.ndarray, name: str, brightness: float, n: int, sigma: float, known: tuple[Scene, ...]):
    """Best template of every cell: [9] indices into materials x 108 x colours, or -1 for nothing."""
    inner, masks = _bank(n, sigma)
    back = _half_background(name, n, sigma) * np.float32(brightness)
    z = _cells(half - back)
    first, second = _palette()
    pixels = z.shape[0]
    dots = (masks[:2].reshape(-1, pixels) @ z.reshape(pixels, -1)).reshape(2, *masks.shape[1:3], 9, 3)
    own = masks[2].reshape(-1, pixels) @ (z * _cells(back)).sum(-1)
    terms = _background_terms(name, n, sigma)
    b = np.float32(brightness)
    # |z - T|^2 - |z|^2 with T = first * C + second * C2 - both * background, for every template, cell and colour
    lin1 = -2 * (dots[0] + b * terms[..., :3])  # times C
    lin2 = -2 * (dots[1] + b * terms[..., 3:6])
    const = 2 * own.reshape(*masks.shape[1:3], 9) + b * b * terms[..., 6]
    quad = (
        inner[0][..., None] * (first**2).sum(-1)
        + 2 * inner[1][..., None] * (first * second).sum(-1)[:, None]
        + inner[2][..., None] * (second**2).sum(-1)[:, None]
    )
    cost = const[..., None] + quad[:, :, None, :] + lin1 @ first.T
    cost += np.matmul(lin2.reshape(len(MATERIALS), -1, 3), second.transpose(0, 2, 1)).reshape(cost.shape)
    cost = cost.transpose(2, 0, 1, 3).reshape(9, -1)
    index = cost.argmin(1)
    low = cost[np.arange(9), index]
    # Where damage leaves much unexplained, what is expected there wins over what explains a little more.
    slack = np.maximum(_DOUBT * (low + (z**2).sum((0, 2))), pixels * (6.0 + 60.0 * sigma))
    index = np.where(low > -slack, -1, index)
    for cell in range(9):
        expected = [k for s in known if s.objects[cell] for k in _indices(s.objects[cell].look)]
        if expected:
            best = expected[int(cost[cell, expected].argmin())]
            if cost[cell, best] < min(low[cell] + slack[cell], -pixels * 6.0):
                index[cell] = best
    return index


@functools.lru_cache(maxsize=4096)
def _indices(look: tuple[str, str, str, str]) -> tuple[int, ...]:
    """The templates of a look, one an offset."""
    size, colour, material, shape = look
    start = (MATERIALS.index(material) * len(_LOOKS) + _LOOKS.index((shape, size))) * len(OFFSETS)
    return tuple((start + k) * len(COLOURS) + list(COLOURS).index(colour) for k in range(len(OFFSETS)))


def _object(index: int) -> Obj:
    material, rest = divmod(index, len(_LOOKS) * len(OFFSETS) * len(COLOURS))
    look, rest = divmod(rest, len(OFFSETS) * len(COLOURS))
    offset, colour = divmod(rest, len(COLOURS))
    shape, size = _LOOKS[look]
    return Obj(size, tuple(COLOURS)[colour], MATERIALS[material], shape, OFFSETS[offset])


def _brightness(x: np.ndarray, scene: Scene, cell: int) -> float:
    """Brightness factor of a cell's object that fits the pixels best, within what scenes have."""
    n = x.shape[0] // 3
    obj = scene.objects[cell]
    r, c = cell // 3 * n, cell % 3 * n
    box = x[r : r + n, c : c + n]
    back = render.background(scene.background, 3 * n)[r : r + n, c : c + n] * np.float32(scene.brightness)
    first, second = render.masks(obj.shape, obj.size, obj.material, obj.offset, (0, 0), 3 * n)[..., None]
    want = first * np.float32(COLOURS[obj.colour]) + second * render.second_colour(obj.material, obj.colour)
    have = box - back * (1 - first - second)
    return float(np.clip((have * want).sum() / max(float((want * want).sum()), 1.0), 0.92, 1.08))


@dataclasses.dataclass(frozen=True)
class Reading:
    """What was read off a picture.

    Attributes:
      scene, clean: the scene that explains it best, and its picture, f32 [n, n, 3].
      severities: damage by kind, 0-1, not clipped above.
      sigma: blur in native pixels.
      rest: f32 [3, n, n] what is not explained, in frequencies of `render.dct`.
      fine, block: its mean square, without and within `render.BLOCKS` squares a side.
    """

    scene: Scene
    clean: np.ndarray
    severities: dict[str, float]
    sigma: float
    rest: np.ndarray
    fine: float
    block: float

    def clarity(self, before: Scene) -> float:
        """How much of the way from another scene to the one read the pixels went: 1 = all, 0.5 = a half-and-half mix.

        Two standard errors of the damage are granted. 1 where the scenes look the same.
        """
        n = self.rest.shape[-1]
        change = self.clean - render.paint(before, n)
        m, gain = render.dct(n), render.blur_gain(n, self.sigma)
        change = (m @ np.ascontiguousarray(change.transpose(2, 0, 1)) @ m.T) * (gain[:, None] * gain)
        energy = float(np.vdot(change, change))
        if energy < 1.0:
            return 1.0
        doubt = math.sqrt((self.fine + self.block * (n / render.BLOCKS) ** 2) / energy)
        return min(1.0, 1.0 + float(np.vdot(self.rest, change)) / energy + 2 * doubt)


def read(pixels: np.ndarray, known: tuple[Scene, ...] = ()) -> Reading:
    """Reads any pixels [H, W, 3] (uint8, or float on 0-255). Raises as `prepare`.

    `known` scenes (source and acceptable results) tell the brightness of their backgrounds and, where damage makes the
    reading doubtful, what to expect.
    """
    x = prepare(pixels)
    n = x.shape[0]
    half = _half_size(x)
    brightness = {s.background: s.brightness for s in reversed(known)}
    name, cast = _read_background(half, n, brightness)
    light = brightness.get(name, 1.0)
    reading = _explain(x, half, name, light, cast, 0.0, known)
    if reading.sigma > 0.5:  # templates that are blurred alike tell more
        sigma = min(_BLURS[1:], key=lambda s: abs(s - reading.sigma))
        reading = _explain(x, half, name, light, cast, sigma, known)
    return reading


def _explain(
    x: np.ndarray, half: np.ndarray, name: str, light: float, cast: np.ndarray, sigma: float, known
) -> Reading:
    """Reads the cells with templates blurred by `sigma`."""
    index = _read_cells(half - cast, name, light, x.shape[0], sigma, known)
    scene = Scene(tuple(None if i < 0 else _object(i) for i in index.tolist()), name, light)
    for cell in scene.occupied:
        factor = _brightness(x - cast, scene, cell)
        scene = scene.put(cell, dataclasses.replace(scene.objects[cell], brightness=factor))
    return _remainder(x, scene)


@functools.lru_cache(maxsize=16)
def _gains(n: int) -> np.ndarray:
    """[sigmas, n] gains of every blur"""
    return np.array([render.blur_gain(n, s) for s in _SIGMAS])


def _remainder(x: np.ndarray, scene: Scene) -> Reading:
    """Cast, blur and remainder of a picture of a known scene."""
    n = x.shape[0]
    clean = render.paint(scene, n)
    cast = (x - clean).mean((0, 1))
    m = render.dct(n)
    spectra = m @ np.ascontiguousarray(np.concatenate([x - cast, clean], -1).transpose(2, 0, 1)) @ m.T
    xf, cf = spectra[:3], spectra[3:]
    gains, squares = _gains(n), _gains(n) ** 2
    error = ((squares @ (cf * cf).sum(0)) * squares).sum(1) - 2 * ((gains @ (xf * cf).sum(0)) * gains).sum(1)
    k = int(error.argmin())
    rest = xf - gains[k][:, None] * gains[k] * cf
    total = float(np.vdot(rest, rest)) / rest.size
    pool = _area(n, render.BLOCKS) @ m.T
    coarse = pool @ rest @ pool.T
    block = float(np.vdot(coarse, coarse)) / coarse.size
    fine = max(total - block, 0.0)
    area = (n / render.BLOCKS) ** 2
    block = max(block - fine / (area - 1), 0.0)
    chroma = float(np.abs(cast - cast.mean()).max()) + 0.5 * abs(float(cast.mean()))
    sigma = float(_SIGMAS[k])
    severities = {
        "noise": max(math.sqrt(fine) - 2.5, 0) / (render.NOISE_STD - 8),
        "blur": max(sigma**2 - 0.16, 0) / (render.BLUR_SIGMA**2 - 0.16),
        "blocks": max(math.sqrt(block) - 1.5, 0) / (render.BLOCK_STD - 8),
        "cast": max(chroma - 2.0, 0) / (render.CAST - 4),
    }
    return Reading(scene, clean, severities, sigma, rest, fine, block)
