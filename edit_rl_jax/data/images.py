"""Images on the host: checked decoding, Qwen2.5-VL's resizing and patches. PIL and NumPy only.

Facts: transformers' Qwen2VLImageProcessorPil (order of patches and features, bicubic
resize of uint8, CLIP mean and std).
"""

from __future__ import annotations

import dataclasses
import functools
import io
import math
import os
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Float32, UInt8
from PIL import Image, UnidentifiedImageError

from edit_rl_jax.data.records import RecordError
from edit_rl_jax.nn.model_files import fields, read_config, section
from edit_rl_jax.nn.safetensors_io import WeightsError

FORMATS = ("PNG", "JPEG", "WEBP")
MAX_PIXELS = 50_000_000  # by the header, before anything is decoded
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class ImageError(RecordError):
    """An image that cannot be used; names its row."""


def _open(data: bytes | str | os.PathLike, where: str, max_pixels: int) -> tuple[Image.Image, int]:
    """Opens without decoding, checks format and size; returns the image and its EXIF orientation (1..8)."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of many pixels, where the limit below is ours; of broken EXIF
            image = Image.open(_file(data), formats=FORMATS)
            tags = image if image.format != "PNG" else _with_late_tags(image, data)
    except FileNotFoundError:
        raise ImageError(where, "missing file", str(data)) from None
    except Image.DecompressionBombError as e:
        raise ImageError(where, "image too large", str(e)) from None
    except Exception as e:  # PIL raises many kinds on malformed headers
        why = "" if isinstance(e, UnidentifiedImageError) else f"{e}; "  # its text would be an address in memory
        raise ImageError(where, "unreadable image", f"{why}allowed: {', '.join(FORMATS)}") from None
    w, h = image.size
    if w * h > max_pixels:
        raise ImageError(
            where, "image too large", f"header says {w}x{h} = {w * h / 1e6:.0f} Mpx, limit {max_pixels / 1e6:g}"
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            value = Image.Image.getexif(tags).get(0x0112, 1)  # PNG's own getexif would decode the pixels
        return image, int(value) if value in _TRANSPOSE else 1
    except Exception:  # broken EXIF is not a broken image
        return image, 1


def _file(data: bytes | str | os.PathLike) -> Any:
    return io.BytesIO(data) if isinstance(data, bytes) else os.fspath(data)


def _with_late_tags(image: Image.Image, data: bytes | str | os.PathLike) -> Image.Image:
    """A PNG, or where it has EXIF or text behind its pixels, which PIL honours too, its header with all of them."""
    tags, late = [], False
    with io.BytesIO(data) if isinstance(data, bytes) else open(data, "rb") as file:
        head = file.read(33)
        while len(start := file.read(8)) == 8 and start[4:] != b"IEND":
            size, kind, seen = int.from_bytes(start[:4]), start[4:], late
            if kind == b"fcTL" and seen:  # the next frame of an animation
                break
            late = late or kind == b"IDAT"
            if kind in (b"eXIf", b"tEXt", b"zTXt", b"iTXt"):
                tags.append((kind, file.read(size), seen))
                file.seek(4, os.SEEK_CUR)
            else:
                file.seek(size + 4, os.SEEK_CUR)
    if not any(behind for _, _, behind in tags):
        return image
    chunks = [len(body).to_bytes(4) + kind + body + zlib.crc32(kind + body).to_bytes(4) for kind, body, _ in tags]
    return Image.open(io.BytesIO(b"".join([head, *chunks, bytes(4), b"IDAT"])), formats=("PNG",))


def image_size(
    data: bytes | str | os.PathLike | np.ndarray, *, where: str = "image", max_pixels: int = MAX_PIXELS
) -> tuple[int, int]:
    """(height, width) after EXIF rotation, from the header alone. Raises ImageError like `decode_image`."""
    if isinstance(data, np.ndarray):
        return data.shape[0], data.shape[1]
    image, orientation = _open(data, where, max_pixels)
    with image:
        w, h = image.size
    return (w, h) if orientation >= 5 else (h, w)


def decode_image(
    data: bytes | str | os.PathLike | np.ndarray, *, where: str = "image", max_pixels: int = MAX_PIXELS
) -> UInt8[np.ndarray, "H W 3"]:
    """Decodes to RGB: upright, transparency composed on white, CMYK / grey / palette / 16-bit converted.

    The orientation is what PIL's `exif_transpose` honours: EXIF of JPEG, WebP and PNG (`eXIf`, or a text chunk "Raw
    profile type exif", before or behind the pixels), and where EXIF names none, `tiff:Orientation` of XMP. Broken EXIF
    counts as none. Transparent are alpha channels, palettes and the one colour of a PNG's `tRNS`, compared at the
    file's own depth. Of an animation the first frame counts. ICC profiles and gamma are not applied.

    Raises ImageError, naming `where`: missing, truncated or unreadable file (text chunks that unpack to megabytes
    among them), a format other than PNG, JPEG and WebP, a header that claims more than `max_pixels`.
    """
    if isinstance(data, np.ndarray):
        if data.dtype != np.uint8 or data.ndim != 3 or data.shape[2] != 3:
            raise ImageError(where, "unreadable image", f"array {data.dtype}{list(data.shape)}; uint8 [H, W, 3] wanted")
        return data
    image, orientation = _open(data, where, max_pixels)
    with image:
        try:
            image = _rgb(image, data)
        except Exception as e:
            raise ImageError(where, "truncated or corrupt image", str(e)) from None
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
        return np.asarray(image)


def _rgb(image: Image.Image, data: bytes | str | os.PathLike) -> Image.Image:
    """Loads an image and makes it RGB, on white where it is transparent."""
    layout = image.tile[0].args if image.format == "PNG" and image.tile else ""
    image.load()
    clear = image.info.get("transparency")  # a text chunk may have that name too
    colour = isinstance(clear, int | tuple)
    if layout == "RGB;16B" and colour:  # PIL keeps the high bytes only
        with Image.open(_file(data), formats=("PNG",)) as low:
            low.tile = [low.tile[0]._replace(args="RGB;16L")]
            deep = np.asarray(image, np.uint16) << 8 | np.asarray(low)
        return Image.fromarray(np.where((deep == clear).all(-1, keepdims=True), np.uint8(255), np.asarray(image)))
    if image.mode.startswith("I"):  # 16-bit grey: PIL's own conversion clips at 255
        deep = np.asarray(image).astype(np.int64)
        grey = ((deep * 255 + 32767) // 65535).clip(0, 255).astype(np.uint8)
        return Image.fromarray(np.where(colour & (deep == clear), np.uint8(255), grey)).convert("RGB")
    if layout in ("L;2", "L;4") and colour:  # PIL stretches the pixels to 0..255, and not this
        top = 2 ** int(layout[2:]) - 1
        image.info["transparency"] = (clear & top) * 255 // top
    if image.mode in ("RGBA", "LA", "PA", "RGBa", "La") or colour or isinstance(clear, bytes):
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    else:
        image.info.pop("transparency", None)
    return image.convert("RGB")


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Lossless bytes of an RGB array."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


_BOUNDS = {
    **dict.fromkeys(("patch_size", "temporal_patch_size", "merge_size"), (1, 1024)),
    **dict.fromkeys(("min_pixels", "max_pixels", "decode_limit"), (1, 2**40)),
    "mean": (-1e3, 1e3),
    "std": (1e-6, 1e3),
}


@dataclasses.dataclass(frozen=True)
class ImageSettings:
    """How an image becomes patches. `max_pixels` defaults to 512 x 512, the budget of reward training."""

    patch_size: int = 14
    temporal_patch_size: int = 2
    merge_size: int = 2
    min_pixels: int = 56 * 56
    max_pixels: int = 512 * 512
    mean: tuple[float, float, float] = (0.48145466, 0.4578275, 0.40821073)
    std: tuple[float, float, float] = (0.26862954, 0.26130258, 0.27577711)
    decode_limit: int = MAX_PIXELS

    @classmethod
    def from_hf(cls, config: Mapping[str, Any] | str | os.PathLike, **overrides) -> ImageSettings:
        """From a `preprocessor_config.json` (mapping, file, or model folder); `overrides` replace fields.

        Raises WeightsError, one line that names the file and the key, for what is malformed or no model's.
        Reads both spellings of the pixel budget: `min_pixels`/`max_pixels` and `size.shortest_edge/longest_edge`.
        """
        config, where = read_config(config, "preprocessor_config.json")
        size = section(config, "size", where)
        if off := [k for k in ("do_resize", "do_rescale", "do_normalize") if config.get(k, True) is not True]:
            raise WeightsError(f"{where}: {', '.join(off)} is not true: images are always resized and normalized here")
        found = {
            "patch_size": config.get("patch_size"),
            "temporal_patch_size": config.get("temporal_patch_size"),
            "merge_size": config.get("merge_size"),
            "min_pixels": config.get("min_pixels") or size.get("min_pixels") or size.get("shortest_edge"),
            "max_pixels": config.get("max_pixels") or size.get("max_pixels") or size.get("longest_edge"),
            "mean": config.get("image_mean"),
            "std": config.get("image_std"),
        }
        given = {k: v for k, v in found.items() if v is not None} | overrides
        settings = cls(**fields(cls, given, f"{where}: ", _BOUNDS))
        if len(settings.mean) != 3 or len(settings.std) != 3:
            raise WeightsError(f"{where}: image_mean and image_std are 3 numbers each")
        return settings

    def to_hf(self) -> dict[str, Any]:
        """The content of a `preprocessor_config.json` that the Hugging Face processor reads."""
        return {
            "image_processor_type": "Qwen2VLImageProcessor",
            "processor_class": "Qwen2_5_VLProcessor",
            "patch_size": self.patch_size,
            "temporal_patch_size": self.temporal_patch_size,
            "merge_size": self.merge_size,
            "size": {"shortest_edge": self.min_pixels, "longest_edge": self.max_pixels},
            "min_pixels": self.min_pixels,
            "max_pixels": self.max_pixels,
            "image_mean": list(self.mean),
            "image_std": list(self.std),
        }

    def grid(self, height: int, width: int) -> tuple[int, int, int]:
        """(t, h, w) in patches of an image of this size."""
        h, w = smart_resize(height, width, self.patch_size * self.merge_size, self.min_pixels, self.max_pixels)
        return 1, h // self.patch_size, w // self.patch_size


def smart_resize(
    height: int, width: int, factor: int = 28, min_pixels: int = 56 * 56, max_pixels: int = 512 * 512
) -> tuple[int, int]:
    """Size to resize an image to: sides multiples of `factor`, area in [min_pixels, max_pixels], aspect about kept.

    Raises ValueError for an aspect ratio above 200.
    """
    if max(height, width) > 200 * min(height, width):
        raise ValueError(f"aspect ratio of {height}x{width} exceeds 200")
    # Python's round (half to even) is part of the definition: the grid must equal the released processor's
    h, w = round(height / factor) * factor, round(width / factor) * factor
    if h * w > max_pixels:
        beta = math.sqrt(height * width / max_pixels)
        h, w = (max(factor, math.floor(x / beta / factor) * factor) for x in (height, width))
    elif h * w < min_pixels:
        beta = math.sqrt(min_pixels / (height * width))
        h, w = (math.ceil(x * beta / factor) * factor for x in (height, width))
    return h, w


def floor_resize(
    height: int, width: int, multiple: int = 16, max_pixels: int = 1024**2, max_side: int = 1024, where: str = "image"
) -> tuple[int, int]:
    """Size to resize an editor's image to: never larger, within max_pixels and max_side, sides cut to multiples.

    As OmniGen2's image processor. Raises ImageError where a side would be 0.
    """
    ratio = min((max_pixels / (height * width)) ** 0.5, max_side / max(height, width), 1.0)
    h, w = (int(n * ratio) // multiple * multiple for n in (height, width))
    if not h or not w:
        raise ImageError(where, "image too narrow", f"{height}x{width} leaves no {multiple} pixels on a side")
    return h, w


def resize(
    image: UInt8[np.ndarray, "H W 3"], height: int, width: int, kind: Image.Resampling = Image.Resampling.BICUBIC
) -> UInt8[np.ndarray, "h w 3"]:
    """By PIL, with its antialiasing, on uint8."""
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), kind))


@functools.lru_cache(maxsize=8)
def _normalised(mean: tuple[float, ...], std: tuple[float, ...]) -> Float32[np.ndarray, "3 256"]:
    """Value of every uint8 level after rescaling to [0, 1] and normalisation, by channel."""
    return ((np.arange(256)[None] / 255.0 - np.array(mean)[:, None]) / np.array(std)[:, None]).astype(np.float32)


def patchify(
    image: UInt8[np.ndarray, "H W 3"], settings: ImageSettings
) -> tuple[Float32[np.ndarray, "N D"], tuple[int, int, int]]:
    """Resizes, normalises and cuts into patches in the Hugging Face processor's order.

    Returns patches float32 [N, 3 * temporal * patch * patch] (features C, T, H, W; rows of 2x2 merge groups) and the
    grid (t=1, h, w) in patches, N = h * w. A still image is repeated `temporal_patch_size` times.
    """
    t, gh, gw = settings.grid(*image.shape[:2])
    p, m = settings.patch_size, settings.merge_size
    x = resize(image, gh * p, gw * p).reshape(gh // m, m, p, gw // m, m, p, 3)
    x = x.transpose(0, 3, 1, 4, 6, 2, 5).reshape(gh * gw, 3, p * p)  # [N, C, H W], merge groups together
    table = _normalised(settings.mean, settings.std)
    out = np.empty((gh * gw, 3, settings.temporal_patch_size, p * p), np.float32)
    for c in range(3):
        out[:, c] = table[c][x[:, c]][:, None]
    return out.reshape(gh * gw, -1), (t, gh, gw)


def load_patches(
    data: bytes | str | os.PathLike | np.ndarray, settings: ImageSettings, *, where: str = "image"
) -> tuple[Float32[np.ndarray, "N D"], tuple[int, int, int]]:
    """`decode_image` then `patchify`. Raises ImageError."""
    return patchify(decode_image(data, where=where, max_pixels=settings.decode_limit), settings)
