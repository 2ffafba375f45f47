"""edit.py on real photographs with each editor: checkpoints with every file and tensor of the released ones, narrow."""

import dataclasses
import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import safetensors
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus import calculate_dimensions
from PIL import Image

from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.step1x_edit import prompt
from scripts import edit
from tests.editors import flux_released, qwen_image_released, step1x_released

Size = tuple[int, int]
PHOTOGRAPHS = ("something_00", "ag_01")
"""240 x 427 and 480 x 360 pixels."""
ASKED = (37, 101)


def of_flux(size: Size, pixels: int, multiple: int) -> Size:
    """Upstream's preferred size nearest in aspect, made smaller."""
    aspect = size[1] / size[0]
    _, w, h = min((abs(aspect - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS)
    scale = math.sqrt(pixels) / 1024
    return int(h * scale) // multiple * multiple, int(w * scale) // multiple * multiple


def of_qwen(size: Size, pixels: int, multiple: int) -> Size:
    """diffusers' own rule."""
    w, h = calculate_dimensions(pixels, size[1] / size[0])
    return h // multiple * multiple, w // multiple * multiple


def of_step1x(size: Size, pixels: int, multiple: int) -> Size:
    """The longer side first, both rounded up, then down."""
    (h, w), level = size, math.isqrt(pixels)
    ratio = w / h
    if w > h:
        first = math.ceil(math.sqrt(level * level * ratio))
        w, h = first, math.ceil(first / ratio)
    else:
        first = math.ceil(math.sqrt(level * level / ratio))
        h, w = first, math.ceil(first * ratio)
    return h // multiple * multiple, w // multiple * multiple


@dataclasses.dataclass(frozen=True)
class Case:
    """released: the folder; rule: upstream's, (size, pixels, multiple) -> size; tensors: of each network's files;
    several: whether it takes several references."""

    kind: str
    released: Callable[[], Path]
    rule: Callable[[Size, int, int], Size]
    tensors: dict[str, int] | None = None
    several: bool = False
    pixels: int = 12_544
    multiple: int = 16


FLUX = {"transformer": 1160, "text_encoder": 196, "text_encoder_2": 219, "vae": 244}
QWEN = {"transformer": 1933, "text_encoder": 729, "vae": 194}
STEP1X = {"transformer": 1196, "text_encoder": 729, "vae": 244}
CASES = {
    "flux_kontext_shallow": Case("flux_kontext", flux_released.released, of_flux, pixels=1024, multiple=4),
    "flux_kontext": Case("flux_kontext", lambda: flux_released.released(True), of_flux, FLUX),
    "step1x_edit_v1.0": Case(
        "step1x_edit", lambda: step1x_released.released("v1.0", True), of_step1x, STEP1X | {"transformer": 1197}
    ),
    "step1x_edit_v1.1": Case("step1x_edit", lambda: step1x_released.released("v1.1", True), of_step1x, STEP1X),
    "qwen_image_edit": Case(
        "qwen_image_edit", lambda: qwen_image_released.released("original", True), of_qwen, QWEN
    ),
    "qwen_image_edit_2509": Case(
        "qwen_image_edit", lambda: qwen_image_released.released("2509", True), of_qwen, QWEN, several=True
    ),
    "qwen_image_edit_2511": Case(
        "qwen_image_edit", lambda: qwen_image_released.released("2511", True), of_qwen, QWEN, several=True
    ),
}  # fmt: skip


def count(folder: Path) -> int:
    names = [n for file in folder.glob("*.safetensors") for n in safetensors.safe_open(file, "numpy").keys()]
    assert len(names) == len(set(names))
    return len(names)


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "flux_kontext_shallow")) for n in CASES]
)
def test_photographs_of_odd_sizes(name, shared, tmp_path, monkeypatch):
    """A result has the size of upstream's rule, made small here, or the one that is asked for; of several references it
    is the last one's."""
    case, lines = CASES[name], []
    model = case.released()
    assert case.tensors is None or {part: count(model / part) for part in case.tensors} == case.tensors
    monkeypatch.setattr(prompt, "SHA256", step1x_released.SHA256)
    photos = [shared / "data/photo_edits/images" / f"{p}_source.jpg" for p in PHOTOGRAPHS]
    Image.open(photos[0]).crop((3, 1, 304, 226)).save(tmp_path / "odd.png")  # 225 x 301
    photos = [*map(str, photos), str(tmp_path / "odd.png")]
    sizes = [decode_image(p).shape[:2] for p in photos]
    for source, size in [(p, None) for p in photos] + [(photos[0], ASKED)] + [(photos[::2], None)] * case.several:
        lines.append({"source": source, "instruction": "make it night"} | ({"size": size} if size else {}))
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    flags = ["--model", str(model), "--editor-kind", case.kind, "--input", str(tmp_path / "asked.jsonl")]
    flags += ["--output", str(tmp_path / "out"), "--max-pixels", str(case.pixels), "--steps", "2"]
    assert edit.main(flags) == 0
    found = [json.loads(x) for x in (tmp_path / "out" / "edits.jsonl").read_text().splitlines()]
    made = [decode_image(tmp_path / "out" / x["edited"]) for x in found]
    of = lambda size: case.rule(size, case.pixels, case.multiple)
    assert [x.shape[:2] for x in made] == [*map(of, sizes), ASKED] + [of(sizes[2])] * case.several
    assert all(x.std() > 1 for x in made)
    assert not np.array_equal(made[2], made[-1])
