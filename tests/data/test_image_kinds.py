"""Images as tools write them: orientations in every place that PIL honours, transparency of every depth, damages."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from edit_rl_jax.data.images import ImageError, decode_image, image_size, plain

SMOOTH = np.add.outer(np.arange(8) * 30, np.arange(5) * 5)[..., None].repeat(3, -1).astype(np.uint8)
ALPHA = np.dstack([SMOOTH, 255 - SMOOTH[..., 0]])


def chunk(kind, data):
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width, height, depth, colour, rows, *chunks, interlace=0, after=()):
    """A PNG of raw rows, with chunks before the pixels and after them."""
    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, interlace)
    data = zlib.compress(b"".join(b"\0" + row for row in rows))
    body = [chunk(b"IHDR", head), *chunks, chunk(b"IDAT", data), *after, chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def png_of(array, *chunks, after=()):
    h, w, n = array.shape
    return png(w, h, 8, {3: 2, 4: 6}[n], [row.tobytes() for row in array], *chunks, after=after)


def saved(array, format, **options):
    out = io.BytesIO()
    Image.fromarray(array).save(out, format, **options)
    return out.getvalue()


def exif(orientation, order="<"):
    """A TIFF block with one tag."""
    mark = {"<": b"II*\0", ">": b"MM\0*"}[order]
    return mark + struct.pack(order + "IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)


def xmp(orientation):
    return f'<x:xmpmeta><rdf:Description tiff:Orientation="{orientation}"/></x:xmpmeta>'.encode()


def profile(kind, data):
    """The text of a raw profile, as ImageMagick writes it."""
    lines = "\n".join(data.hex()[i : i + 72] for i in range(0, 2 * len(data), 72))
    return f"\n{kind}\n{len(data):8}\n{lines}\n".encode()


def text(kind, key, value):
    """A text chunk, compressed or not."""
    middle = {b"tEXt": b"\0", b"zTXt": b"\0\0", b"iTXt": b"\0\0\0\0\0"}[kind]
    return chunk(kind, key + middle + (zlib.compress(value) if kind == b"zTXt" else value))


def raw_profile(kind, data, key=b"exif"):
    return text(kind, b"Raw profile type " + key, profile(key.decode(), data))


RAW, XMP, MARK = b"Raw profile type exif", b"XML:com.adobe.xmp", b"Exif\0\0"
PLACES = {
    "eXIf": lambda n, order: [chunk(b"eXIf", exif(n, order))],
    "raw profile tEXt": lambda n, order: [raw_profile(b"tEXt", MARK + exif(n, order))],
    "raw profile zTXt": lambda n, order: [raw_profile(b"zTXt", MARK + exif(n, order))],
    "raw profile iTXt": lambda n, order: [raw_profile(b"iTXt", MARK + exif(n, order))],
    "raw profile without its mark": lambda n, order: [raw_profile(b"zTXt", exif(n, order))],
    "raw profile APP1": lambda n, order: [raw_profile(b"zTXt", MARK + exif(n, order), b"APP1")],
    "XMP": lambda n, order: [text(b"iTXt", XMP, xmp(n))],
    "XMP as text": lambda n, order: [text(b"tEXt", XMP, xmp(n))],
    "EXIF and XMP": lambda n, order: [chunk(b"eXIf", exif(n, order)), text(b"iTXt", XMP, xmp(6))],
    "EXIF twice": lambda n, order: [raw_profile(b"zTXt", exif(8)), chunk(b"eXIf", exif(n, order))],
}


def upright(data):
    """What PIL, and so transformers' load_image, makes of it, on white."""
    image = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGBA")
    return np.asarray(Image.alpha_composite(Image.new("RGBA", image.size, (255,) * 4), image).convert("RGB"))


def check(data):
    want = upright(data)
    assert np.array_equal(decode_image(data), want) and image_size(data) == want.shape[:2]
    assert np.array_equal(careless(plain(data)), want)
    return want.shape[:2]


def careless(data):
    """What a program shows that knows of no orientation, no transparency and no depth."""
    return np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))


def test_plain_images_are_sent_as_they_are():
    """All else as PNG that a careless program shows as we do; what nobody can read is left to who reads it."""
    first = [Image.fromarray(np.full((6, 4, 3), level, np.uint8)) for level in (10, 200)]
    moving, photo = io.BytesIO(), io.BytesIO()
    first[0].save(moving, "WEBP", save_all=True, append_images=first[1:], lossless=True)
    first[0].save(photo, "MPO", save_all=True, append_images=first[1:])  # two JPEGs, as phones and cameras write
    same = [png_of(SMOOTH), saved(SMOOTH, "JPEG"), saved(SMOOTH, "WEBP", lossless=True), photo.getvalue(), b"no image"]
    assert [plain(data) for data in same] == same
    deep = png(4, 1, 16, 0, [words(0, 0x1234, 0x1235, 0xFFFF)])
    clear = png(2, 1, 8, 2, [bytes([1, 2, 3, 1, 2, 4])], chunk(b"tRNS", words(1, 2, 3)))
    deep_colours = png(2, 1, 16, 2, [words(1, 2, 3, 60000, 2, 4)])
    for data in (deep, clear, deep_colours, saved(ALPHA, "WEBP", lossless=True), moving.getvalue()):
        assert plain(data) != data and np.array_equal(careless(plain(data)), decode_image(data))
    assert not np.array_equal(careless(deep), decode_image(deep))


@pytest.mark.parametrize("pixels", [SMOOTH, ALPHA], ids=["RGB", "RGBA"])
@pytest.mark.parametrize("place", PLACES)
def test_orientation_in_a_png(place, pixels):
    for orientation in range(10):  # 0 and 9 mean nothing
        for order in "<>":
            chunks = PLACES[place](orientation, order)
            before, behind = check(png_of(pixels, *chunks)), check(png_of(pixels, after=chunks))
            turned = 5 <= orientation <= 8 and place != "raw profile APP1"
            assert before == behind == ((5, 8) if turned else (8, 5))


@pytest.mark.parametrize("pixels", [SMOOTH, ALPHA], ids=["RGB", "RGBA"])
def test_orientation_in_the_other_formats(pixels):
    for orientation in range(1, 9):
        for options in ({"exif": b"Exif\0\0" + exif(orientation, ">")}, {"xmp": xmp(orientation)}):
            assert (check(saved(pixels, "WEBP", lossless=True, **options)) == (5, 8)) == (orientation > 4)
            if pixels is SMOOTH:
                assert (check(saved(pixels, "JPEG", **options)) == (5, 8)) == (orientation > 4)


def test_the_reported_raw_profile(shared):
    file = shared / "cases/png_raw_profile_orientation/image.png"
    for data in (file, file.read_bytes()):
        found = decode_image(data)
        assert found.shape == (30, 20, 3) and image_size(data) == (30, 20)
        assert np.array_equal(found, upright(file.read_bytes()))


def test_the_size_is_told_without_the_pixels():
    broken = png_of(SMOOTH, after=[chunk(b"eXIf", exif(6))]).replace(b"IDAT\x78", b"IDAT\x00")
    assert image_size(broken) == (5, 8)
    with pytest.raises(ImageError, match="row 3: truncated or corrupt"):
        decode_image(broken, where="row 3")


def test_broken_exif_is_not_a_broken_image():
    rng, block = np.random.default_rng(0), exif(6)
    for number in range(150):
        bad = bytearray(block)
        for place in rng.integers(0, len(bad), 1 + number % 4):
            bad[place] = rng.integers(256)
        bad = bytes(bad[: rng.integers(len(bad) + 1)] if number % 3 == 0 else bad)
        mark = b"Exif\0\0" + bad
        raw = [text(b"zTXt", RAW, profile("exif", bad)[: -1 - number % 2])]  # every other one lacks half of a byte
        images = [png_of(SMOOTH, chunk(b"eXIf", bad)), png_of(SMOOTH, *raw), png_of(SMOOTH, after=raw)]
        images += [saved(SMOOTH, "JPEG", exif=mark), saved(SMOOTH, "WEBP", lossless=True, exif=mark)]
        for data in images:
            assert decode_image(data).shape[:2] == image_size(data) in ((8, 5), (5, 8))
    for value in (b"", b"\n", b"\nexif\n", b"\nexif\n 3\nzz\n", b"\xff" * 50):
        assert image_size(png_of(SMOOTH, text(b"tEXt", RAW, value))) == (8, 5)
    for key in (b"exif", b"xmp", b"transparency", b"dpi", b"icc_profile"):  # names that PIL uses itself
        assert np.array_equal(decode_image(png_of(SMOOTH, text(b"tEXt", key, b"hello"))), SMOOTH)


@pytest.mark.parametrize("kind", [b"zTXt", b"iTXt"])
@pytest.mark.parametrize("behind", [False, True])
def test_text_that_unpacks_to_megabytes_is_refused(kind, behind):
    value = zlib.compress(b"0" * 2**25)
    bomb = chunk(kind, RAW + {b"zTXt": b"\0\0", b"iTXt": b"\0\1\0\0\0"}[kind] + value)
    data = png_of(SMOOTH, after=[bomb]) if behind else png_of(SMOOTH, bomb)
    for read in (decode_image, image_size):
        with pytest.raises(ImageError, match="row 2: (unreadable|truncated).*too large"):
            read(data, where="row 2")


def words(*values):
    return struct.pack(f">{len(values)}H", *values)


def colours(depth, colour, row, clear, count, **options):
    chunks = [] if clear is None else [chunk(b"tRNS", clear)]
    chunks = [chunk(b"PLTE", bytes(range(9))), *chunks] if colour == 3 else chunks
    return decode_image(png(count, 1, depth, colour, [row], *chunks, **options))[0].tolist()


def grey(*levels):
    return [[level] * 3 for level in levels]


def test_transparency_at_every_depth():
    """By the PNG standard: the one colour that is clear is compared at the file's own depth, and becomes white."""
    assert colours(16, 0, words(0, 0x1234, 0x1235, 0xFFFF), words(0x1234), 4) == grey(0, 255, 18, 255)
    assert colours(16, 0, words(0, 0x1234, 0x80FF, 0xFFFF), words(0), 4) == grey(255, 18, 128, 255)
    assert colours(16, 0, words(0, 0x1234, 0x1200), None, 3) == grey(0, 18, 18)
    assert colours(8, 0, b"\x1f\x20", words(0x1F), 2) == grey(255, 32)
    assert colours(4, 0, b"\x12", words(1), 2) == grey(255, 34)
    assert colours(2, 0, b"\x1b", words(1), 4) == grey(0, 255, 170, 255)
    assert colours(2, 0, b"\x1b", words(0xFFF2), 4) == grey(0, 85, 255, 255)  # the low bits count
    assert colours(1, 0, b"\x40", words(0), 2) == grey(255, 255) and colours(1, 0, b"\x40", words(1), 2) == grey(0, 255)
    assert colours(8, 2, bytes([1, 2, 3, 1, 2, 4]), words(1, 2, 3), 2) == [[255] * 3, [1, 2, 4]]
    deep = words(0x1234, 0x1234, 0x1234, 0x1234, 0x1234, 0x1235)
    assert colours(16, 2, deep, words(0x1234, 0x1234, 0x1234), 2) == grey(255, 18)
    assert colours(16, 2, words(0xFFFF, 0, 0, 0xFF00, 0, 0), words(0xFFFF, 0, 0), 2) == [[255] * 3, [255, 0, 0]]
    seventh = deep[:6] + b"\0" + deep[6:]  # interlaced: either pixel in a pass of its own
    assert colours(16, 2, seventh, words(0x1234, 0x1234, 0x1235), 2, interlace=1) == grey(18, 255)
    assert colours(16, 4, words(0x1234, 0x8000, 0xFFFF, 0), None, 2) == grey(136, 255)
    assert colours(16, 6, words(0x1234, 0x1234, 0x1234, 0x8000, 0, 0, 0, 0), None, 2) == grey(136, 255)
    assert colours(8, 4, bytes([18, 128, 0, 0]), None, 2) == grey(136, 255)
    assert colours(8, 3, b"\0\1\2", b"\x80\0", 3) == [[127, 128, 128], [255] * 3, [6, 7, 8]]
    assert colours(4, 3, b"\x01", b"\xff\0", 2) == [[0, 1, 2], [255] * 3]


def test_a_clear_colour_and_an_orientation_together():
    rows = [words(*range(x, x + 3)) for x in (0, 100)]
    data = png(3, 2, 16, 0, rows, chunk(b"tRNS", words(101)), chunk(b"eXIf", exif(6)))
    found = decode_image(data)
    assert found.shape == (3, 2, 3) and image_size(data) == (3, 2)
    assert np.argwhere((found == 255).all(-1)).tolist() == [[1, 0]]


def test_of_an_animation_the_first_frame_counts():
    frames = [Image.fromarray(np.full((6, 4, 3), level, np.uint8)) for level in (10, 200)]
    for format, options in (("PNG", {}), ("WEBP", {"lossless": True})):
        out = io.BytesIO()
        frames[0].save(out, format, save_all=True, append_images=frames[1:], exif=b"Exif\0\0" + exif(6), **options)
        assert np.array_equal(decode_image(out.getvalue()), np.full((4, 6, 3), 10)) and image_size(out.getvalue()) == (
            4,
            6,
        )
    out = io.BytesIO()
    frames[0].save(out, "MPO", save_all=True, append_images=frames[1:])  # two JPEGs, as phones and cameras write
    assert abs(decode_image(out.getvalue()).astype(int) - 10).max() <= 2


def test_jpegs_in_print_colours():
    """CMYK, and YCCK with Adobe's inverted inks."""
    colour = np.full((16, 16, 3), (200, 30, 60), np.uint8)
    out = io.BytesIO()
    Image.fromarray(colour).convert("CMYK").save(out, "JPEG", quality=95)
    assert abs(decode_image(out.getvalue()).astype(int) - colour).max() < 12
    data = out.getvalue()
    assert np.array_equal(decode_image(data), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))
