"""Images: equal to the Hugging Face processor on real photographs; every kind of bad or odd image."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import ImageError, decode_image, image_size
from edit_rl_jax.vlm.patches import ImageSettings, load_patches, patchify, smart_resize
from edit_rl_jax.vlm.samples import measure_example
from edit_rl_jax.vlm.tokenizer import TextEncoder, load_tokenizer
from tests.data.toy import encoded, image

SETTINGS = ImageSettings()


def hf_processor(settings: ImageSettings = SETTINGS) -> Qwen2VLImageProcessorPil:
    size = {"shortest_edge": settings.min_pixels, "longest_edge": settings.max_pixels}
    return Qwen2VLImageProcessorPil(size=size)


def test_patches_of_the_photographs_equal_the_processor(shared):
    files = sorted((shared / "data/photo_edits/images").glob("*.jpg"))
    assert len(files) == 48
    processor, worst = hf_processor(), 0.0
    std = np.asarray(SETTINGS.std).repeat(2 * 14 * 14)
    for file in files:
        mine, grid = load_patches(file, SETTINGS)
        theirs = processor(images=[Image.open(file)], return_tensors="np")
        assert grid == tuple(theirs["image_grid_thw"][0])
        worst = max(worst, float(np.abs((mine - theirs["pixel_values"]) * std).max()))  # in units of [0, 1] pixels
    assert worst < 1 / 255 / 100


def test_token_counts_equal_with_the_real_tokenizer(shared):
    tokenizer, processor = load_tokenizer(shared / "data/qwen2_5_tokenizer"), hf_processor()
    folder = shared / "data/photo_edits"
    pad = tokenizer.convert_tokens_to_ids("<|image_pad|>")
    encode = TextEncoder(tokenizer)
    rows = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert len(rows) == 24
    for row in rows:
        files = [folder / row[k] for k in ("source", "edited")]
        grids = processor(images=[Image.open(f) for f in files], return_tensors="np")["image_grid_thw"]
        block = ["<|vision_start|>" + "<|image_pad|>" * int(g.prod() // 4) + "<|vision_end|>" for g in grids]
        head, tail = f"<|im_start|>user\n{row['instruction']}", "<|im_end|>\n<|im_start|>assistant\n"
        answer = '{"reasoning": "The edit is right.", "score": [25, 3]}<|im_end|>'
        start, end = "<|vision_start|>", "<|vision_end|>"
        parts = (head + start, files[0].read_bytes(), end + start, files[1].read_bytes(), end + tail)
        mine = measure_example(Example(parts, answer, "row"), encode, pad, SETTINGS)
        theirs = tokenizer.encode(head + "".join(block) + tail + answer, add_special_tokens=False)
        assert mine.tokens.tolist() == theirs
        assert mine.answer.sum() == len(tokenizer.encode(answer, add_special_tokens=False))


@pytest.mark.parametrize("seed", range(3))
def test_smart_resize_equals_the_processor(seed):
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize as theirs

    rng = np.random.default_rng(seed)
    for h, w in rng.integers(1, 3000, (300, 2)):
        if max(h, w) > 200 * min(h, w):
            continue
        for low, high in ((3136, 262144), (784, 20000), (3136, 1003520)):
            assert smart_resize(int(h), int(w), 28, low, high) == theirs(int(h), int(w), 28, low, high)
    with pytest.raises(ValueError, match="aspect"):
        smart_resize(10, 3000)


def test_patches_keep_position_and_colour():
    """Each patch, read back, is the square of the image it came from: rows of 2x2 groups, features channel first."""
    pixels = image(np.random.default_rng(0), 84, 56)
    patches, grid = patchify(pixels, ImageSettings(min_pixels=28 * 28))
    assert grid == (1, 6, 4)
    mean, std = np.array(SETTINGS.mean)[:, None, None], np.array(SETTINGS.std)[:, None, None]
    number = 0
    for y in range(0, 6, 2):
        for x in range(0, 4, 2):
            for dy in range(2):
                for dx in range(2):
                    square = pixels[(y + dy) * 14 :][:14, (x + dx) * 14 :][:, :14]
                    for t in range(2):
                        got = patches[number].reshape(3, 2, 14, 14)[:, t] * std + mean
                        np.testing.assert_allclose(got * 255, square.transpose(2, 0, 1), atol=1e-3)
                    number += 1


def test_settings_round_trip_both_spellings(tmp_path):
    made = ImageSettings(min_pixels=1000, max_pixels=50000, mean=(0.1, 0.2, 0.3))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(made.to_hf()))
    assert ImageSettings.from_hf(tmp_path) == made
    assert ImageSettings.from_hf({"size": {"shortest_edge": 5, "longest_edge": 6}}).max_pixels == 6
    assert ImageSettings.from_hf(made.to_hf(), max_pixels=7).max_pixels == 7


def png_claiming(width: int, height: int) -> bytes:
    """A PNG whose header claims a size that its data do not have."""
    import struct
    import zlib

    data = encoded(np.zeros((2, 2, 3), np.uint8))
    header = b"IHDR" + struct.pack(">II", width, height) + data[24:29]
    return data[:12] + header + struct.pack(">I", zlib.crc32(header)) + data[33:]


PHOTO = image(np.random.default_rng(0), 64, 48)
BAD = {
    "truncated JPEG": (encoded(PHOTO, "JPEG")[:-200], "truncated"),
    "truncated PNG": (encoded(PHOTO)[:-200], "truncated"),
    "truncated WebP": (encoded(PHOTO, "WEBP")[:-200], "truncated|unreadable"),
    "200 Mpx by the header": (png_claiming(20000, 10000), "too large"),
    "60 Mpx by the header": (png_claiming(10000, 6000), "too large"),
    "not an image": (b"<html>404</html>", "unreadable"),
    "empty": (b"", "unreadable"),
    "format not allowed": (encoded(PHOTO, "TIFF"), "unreadable"),
    "GIF": (encoded(PHOTO, "GIF"), "unreadable"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_images_name_their_row(name):
    data, reason = BAD[name]
    with pytest.raises(ImageError, match=f"row 7: .*({reason})"):
        decode_image(data, where="row 7")
    if "truncated" not in name:  # the header alone shows it
        with pytest.raises(ImageError, match=f"row 7: .*({reason})"):
            image_size(data, where="row 7")


def test_missing_file_and_limit():
    with pytest.raises(ImageError, match="row 3: missing file"):
        decode_image("no/such.png", where="row 3")
    assert decode_image(encoded(PHOTO), max_pixels=64 * 48).shape == (64, 48, 3)
    with pytest.raises(ImageError, match="too large"):
        decode_image(encoded(PHOTO), max_pixels=64 * 48 - 1)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation(format, orientation):
    from PIL import ImageOps

    smooth = np.add.outer(np.arange(64) * 3, np.arange(48) * 1)[..., None].repeat(3, -1).astype(np.uint8)
    exif, out = Image.Exif(), io.BytesIO()
    exif[0x0112] = orientation
    Image.fromarray(smooth).save(out, format, exif=exif, **({"lossless": True} if format == "WEBP" else {}))
    want = np.asarray(ImageOps.exif_transpose(Image.open(out)).convert("RGB"))
    assert np.array_equal(decode_image(out.getvalue()), want)
    assert image_size(out.getvalue()) == want.shape[:2]


def save(pil: Image.Image, format: str = "PNG", **options) -> bytes:
    out = io.BytesIO()
    pil.save(out, format, **options)
    return out.getvalue()


def test_modes_become_rgb():
    grey = PHOTO[..., 0]
    clear = np.concatenate([PHOTO, np.zeros_like(PHOTO[..., :1])], -1)
    half = np.concatenate([PHOTO, np.full_like(PHOTO[..., :1], 128)], -1)
    assert (decode_image(save(Image.fromarray(clear))) == 255).all()  # transparent is white
    want = np.round(PHOTO * (128 / 255) + 255 * (127 / 255))
    assert np.abs(decode_image(save(Image.fromarray(half))) - want).max() <= 1
    assert np.array_equal(decode_image(save(Image.fromarray(grey))), grey[..., None].repeat(3, -1))
    deep = grey.astype(np.uint16) * 257
    assert np.array_equal(decode_image(save(Image.fromarray(deep))), grey[..., None].repeat(3, -1))
    palette = Image.fromarray(PHOTO).quantize(32)
    assert np.array_equal(decode_image(save(palette)), np.asarray(palette.convert("RGB")))
    holes = decode_image(save(palette, transparency=palette.getpixel((0, 0))))
    assert (holes[0, 0] == 255).all()
    cmyk = Image.fromarray(np.full((32, 32, 3), (200, 30, 60), np.uint8)).convert("CMYK")
    assert np.abs(decode_image(save(cmyk, "JPEG", quality=95)).astype(int) - (200, 30, 60)).max() < 12
