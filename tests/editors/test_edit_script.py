"""edit.py on files of every kind, through the whole path: what can be edited is, the rest is named; runs resume."""

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edit_rl_jax.data.images import decode_image, floor_resize, resize
from edit_rl_jax.editors import edit_file
from edit_rl_jax.editors.edit_file import kept_size
from edit_rl_jax.editors.registry import EDITORS, editor_files
from edit_rl_jax.editors.sampling import LANCZOS, Edit, EditorSampler
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rewards.base import Judge
from edit_rl_jax.rewards.editscore.aggregate import judge
from edit_rl_jax.rewards.editscore.parsing import parse
from edit_rl_jax.training import interfaces
from scripts import best_of_n as best_script
from scripts import edit as script
from tests.editors.pictures import picture

FLAGS = "--steps 2 --text-guidance 1 --max-side 24 --rows 2 --chunk 3".split()


def write_images(folder: Path) -> dict[str, np.ndarray | str]:
    """Image files, and what is to be seen of each: pixels, or the problem."""
    square, wide = picture(50, 51), picture(30, 61, seed=1)
    seen: dict[str, np.ndarray | str] = {"plain.png": square}
    Image.fromarray(square).save(folder / "plain.png")
    alpha = np.full((50, 51, 1), 255, np.uint8)
    alpha[:20] = 0
    Image.fromarray(np.concatenate([square, alpha], axis=2)).save(folder / "alpha.png")
    seen["alpha.png"] = np.where(alpha > 0, square, np.uint8(255))
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(wide).save(folder / "turned.png", exif=exif)
    seen["turned.png"] = np.rot90(wide, -1)
    Image.fromarray(square).convert("CMYK").save(folder / "cmyk.jpg", quality=95)
    seen["cmyk.jpg"] = np.asarray(Image.open(folder / "cmyk.jpg").convert("RGB"))
    Image.fromarray(np.zeros((90, 1, 3), np.uint8)).save(folder / "line.png")
    seen["line.png"] = "too narrow"
    Image.new("L", (7200, 7000)).save(folder / "huge.png", compress_level=1)
    seen["huge.png"] = "image too large .*7200x7000 = 50 Mpx"
    Image.new("L", (7000, 7000), 9).save(folder / "large.png", compress_level=1)
    seen["large.png"] = np.full((7000, 7000, 3), 9, np.uint8)
    (folder / "text.png").write_text("no image")
    seen["text.png"] = "unreadable image"
    seen["absent.png"] = "missing file"
    return seen


def test_every_kind_of_file(tmp_path):
    """With the toy, which brings the reference back: what is made is what was seen, resized."""
    seen, out = write_images(tmp_path), tmp_path / "out"
    asked = tmp_path / "asked.jsonl"
    lines = [{"source": name, "instruction": "as it is", "id": n} for n, name in enumerate(seen)]
    asked.write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "model").mkdir()
    toy = ["--editor-kind", "tests.editors.toy", "--model", str(tmp_path / "model"), *FLAGS]
    command = [*toy, "--input", str(asked), "--output", str(out)]
    assert script.main(command) == 0
    results = out / edit_file.RESULTS
    whole = results.read_text()
    for line, (name, want) in zip(map(json.loads, whole.splitlines()), seen.items(), strict=True):
        assert line["source"] == f"../{name}" and line["valid"] == isinstance(want, np.ndarray)
        if line["valid"]:
            made = decode_image(out / line["edited"])
            size = floor_resize(*want.shape[:2], multiple=2, max_side=24)
            assert np.abs(made - resize(want, *size, LANCZOS).astype(int)).max() <= 1
        else:
            assert line["edited"] is None and re.search(want, line["problem"])

    results.write_text("".join(whole.splitlines(True)[:4]) + '{"source": "cut')
    before = {p.name: p.read_bytes() for p in out.glob("*.png")}
    assert script.main(command) == 0
    assert results.read_text() == whole and before == {p.name: p.read_bytes() for p in out.glob("*.png")}
    with pytest.raises(SystemExit, match="seed: 0 -> 1"):
        script.main([*command, "--seed", "1"])
    Image.fromarray(picture(50, 51, seed=2)).save(tmp_path / "plain.png")
    with pytest.raises(SystemExit, match="edits.jsonl:1: the images of entry 1 of .* are others now"):
        script.main(command)


def test_values_that_are_no_numbers_spare_the_other_lines(tmp_path, monkeypatch):
    latents = EditorSampler.latents
    broken = lambda self, ready, seed=0: [
        x * np.nan if r.item == 1 else x for r, x in zip(ready, latents(self, ready, seed))
    ]
    monkeypatch.setattr(EditorSampler, "latents", broken)
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    (tmp_path / "in.jsonl").write_text('{"source": "a.png", "instruction": "+"}\n' * 3)
    (tmp_path / "model").mkdir()
    toy = ["--editor-kind", "tests.editors.toy", "--model", str(tmp_path / "model"), *FLAGS]
    assert script.main([*toy, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out")]) == 0
    lines = [json.loads(x) for x in (tmp_path / "out" / edit_file.RESULTS).read_text().splitlines()]
    assert [x["valid"] for x in lines] == [True, False, True] and "not finite" in lines[1]["problem"]
    with pytest.raises(SystemExit, match="not finite"):
        monkeypatch.setattr(EditorSampler, "latents", lambda *args: [x * np.nan for x in latents(*args)])
        one = ["--image", str(tmp_path / "a.png"), "--instruction", "+", "--output", str(tmp_path / "b.png")]
        script.main([*toy, *one])


def test_one_edit_by_flags_keeps_its_size(tmp_path):
    Image.fromarray(picture(50, 33)).save(tmp_path / "a.png")
    (tmp_path / "model").mkdir()
    toy = ["--editor-kind", "tests.editors.toy", "--model", str(tmp_path / "model"), "--keep-size", *FLAGS]
    one = ["--image", str(tmp_path / "a.png"), "--instruction", "++", "--output", str(tmp_path / "b.png")]
    assert script.main([*toy, *one]) == 0
    before, after = (decode_image(tmp_path / name).astype(int) for name in ("a.png", "b.png"))
    assert before.shape == after.shape and 20 < (after - before)[before < 200].mean() < 30  # brighter by 0.2 of 127.5


def test_a_kept_size_is_of_the_source_whose_aspect_the_result_has():
    wide, tall = (np.zeros((*size, 3), np.uint8) for size in ((4, 8), (9, 3)))
    assert kept_size(Edit("x", (wide,)), (16, 32)) == (4, 8)
    assert kept_size(Edit("x", (wide, tall)), (90, 30)) == (9, 3)  # none was asked for: it is the last one's
    assert kept_size(Edit("x", (wide, tall), (16, 32)), (16, 32)) == (4, 8)
    assert kept_size(Edit("x", (wide, tall), (18, 6)), (18, 6)) == (9, 3)
    assert kept_size(Edit("x", (wide, tall), (8, 8)), (8, 8)) == (8, 8)  # nobody's: not stretched


def test_photographs_through_omnigen2(shared, tmp_path):
    """Two references of a real edit, a synthesised checkpoint, two samples."""
    from tests.editors.released import released  # with torch, which the other tests do without

    photos = [str(shared / f"data/photo_edits/images/magicbrush_0{i}_source.jpg") for i in range(2)]
    (tmp_path / "asked.jsonl").write_text(json.dumps({"source": photos, "instruction": "both", "size": [24, 16]}))
    command = ["--model", str(released()), "--input", str(tmp_path / "asked.jsonl"), "--output", str(tmp_path / "out")]
    assert script.main([*command, "--samples", "2", *FLAGS]) == 0
    (line,) = map(json.loads, (tmp_path / "out" / edit_file.RESULTS).read_text().splitlines())
    a, b = (decode_image(tmp_path / "out" / name) for name in line["candidates"])
    assert a.shape == b.shape == (24, 16, 3) and (a != b).any() and min(a.std(), b.std()) > 1


def test_odd_files_through_omnigen2(tmp_path):
    """Alpha, a turned photograph, CMYK and a line one pixel wide, by a synthesised checkpoint."""
    from tests.editors.released import editor, released

    seen = {k: v for k, v in write_images(tmp_path).items() if k in ("alpha.png", "turned.png", "cmyk.jpg", "line.png")}
    lines = [json.dumps({"source": name, "instruction": "as it is"}) + "\n" for name in seen]
    (tmp_path / "asked.jsonl").write_text("".join(lines))
    command = ["--model", str(released()), "--input", str(tmp_path / "asked.jsonl"), "--output", str(tmp_path / "out")]
    assert script.main([*command, *FLAGS]) == 0
    found = map(json.loads, (tmp_path / "out" / edit_file.RESULTS).read_text().splitlines())
    for line, want in zip(found, seen.values(), strict=True):
        assert line["valid"] == isinstance(want, np.ndarray)
        if line["valid"]:
            size = floor_resize(*want.shape[:2], multiple=editor().processor.multiple, max_side=24)
            assert decode_image(tmp_path / "out" / line["edited"]).shape == (*size, 3)
        else:
            assert "too narrow" in line["problem"]


def test_malformed_lines_are_named_before_anything_is_loaded(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"instruction": "a"}\n{"source": 3, "instruction": "b"}\n')
    with pytest.raises(SystemExit, match="in.jsonl:2"):
        script.main(["--model", "absent", "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "o")])


def test_best_of_n_samples_its_candidates(tmp_path):
    """An input that cannot be edited has no candidates, and no pick."""
    Image.fromarray(picture(20, 20)).save(tmp_path / "a.png")
    lines = [{"source": name, "instruction": f"as {n}"} for n, name in enumerate(("a.png", "absent.png", "a.png"))]
    (tmp_path / "asked.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
    (tmp_path / "model").mkdir()
    editor = ["--editor", str(tmp_path / "model"), "--editor-kind", "tests.editors.toy"]
    flags = ["--input", str(tmp_path / "asked.jsonl"), "--output", str(tmp_path / "out"), "--model", "absent"]
    args = best_script.parse(
        [*flags, *editor, "--samples", "3", "--steps", "2", "--text-guidance", "1", "--edit-rows", "2"]
    )

    class Second(Judge):
        """Likes the second of three most."""

        def score(self, items, *, only=None, progress=True):
            marks = (f'{{"reasoning": "r", "score": [{(5, 20, 9)[i % 3]}, 9]}}' for i in range(len(items)))
            return [judge([parse(m)], [parse("[25, 4]")]) for m in marks]

    figures = best_of_n.run(best_script.sampled(args), tmp_path / "out", Second(), progress=False)
    picks = [json.loads(x) for x in (tmp_path / "out" / "picks.jsonl").read_text().splitlines()]
    assert [p["pick"] for p in picks] == ["000000_01.png", None, "000002_01.png"]
    assert (figures["n_candidates"], figures["inputs_without_pick"]) == (6, 1)


def test_the_script_loads_little(request):
    """Neither a judge nor training, nor any editor before one is named: 30 files of the package."""
    code = "import sys, scripts.edit; print(*(m for m in sys.modules if m.split('.')[0] == 'edit_rl_jax'))"
    done = subprocess.run([sys.executable, "-c", code], cwd=request.config.rootpath, capture_output=True, text=True)
    loaded = done.stdout.split()
    assert 20 < len(loaded) <= 32, loaded


def test_a_kind_is_looked_up_by_the_name_under_which_it_is_trained():
    """One from outside is one module for both; what it lacks is named."""
    assert EDITORS.keys() <= interfaces.MODELS.keys() and editor_files("omnigen2").schedule
    assert editor_files("tests.toys.editor") is interfaces.model_named("tests.toys.editor")
    with pytest.raises(ConfigError, match="'json.decoder' is no EditorFiles, it lacks local_folder, from_folder"):
        editor_files("json.decoder")
    with pytest.raises(ConfigError, match="did you mean 'omnigen2'"):
        editor_files("omnigen")
