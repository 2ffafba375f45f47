"""Images on the host: decoded with checks, measured by their headers, resized. PIL and NumPy only."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image, UnidentifiedImageError

from edit_rl_jax.data.errors import ImageError

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


def plain(data: bytes) -> bytes:
    """Gives an image that every decoder shows as `decode_image` does: as it is where it is upright RGB or grey of 8
    bits, opaque and single, else as PNG. What cannot be read stays as it is, for who reads it to say so."""
    try:
        image, orientation = _open(data, "image", MAX_PIXELS)
        with image:
            deep = image.format == "PNG" and image.tile and "16" in str(image.tile[0].args)
            moves = image.format in ("PNG", "WEBP") and getattr(image, "n_frames", 1) > 1
            other = orientation != 1 or deep or moves or "transparency" in image.info
            if image.mode in ("RGB", "L") and not other:
                return data
        return encode_png(decode_image(data))
    except ImageError:
        return data


def encode_png(image: UInt8[np.ndarray, "H W 3"]) -> bytes:
    """Lossless bytes of an RGB array."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


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
