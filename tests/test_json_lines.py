"""Every reader of JSON lines: a line ends at a line feed only, and what is damaged is one line with file and number."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax import json_files
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.resumable import ResumeError, append_lines, whole_lines
from edit_rl_jax.editors import edit_file as editor_files
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.evals.judges import editscore_bench
from edit_rl_jax.rewards import score_file
from edit_rl_jax.rewards.base import Edit, Judge
from edit_rl_jax.rewards.cache import Cached
from edit_rl_jax.rewards.editscore.aggregate import judge
from edit_rl_jax.rewards.editscore.parsing import Reply
from edit_rl_jax.rl.editors import prompts
from tests.rl import tiny_editor

SEPARATORS = "a\u2028b\u2029c\x85d\\u000be\\u000cf\\u001c"  # none of them ends a line
PNG = encode_png(np.zeros((8, 8, 3), np.uint8))


class Scorer(Judge):
    """Gives every edit the scores (20, 22), (20, 22); `calls` counts the edits."""

    def __init__(self, raw="", **settings):
        self.raw, self.calls, self.about = raw, 0, settings

    def settings(self):
        return self.about

    def score(self, edits, *, only=None, progress=True):
        self.calls += len(edits)
        reply = Reply((20.0, 22.0), self.raw, self.raw, (20.0, 22.0))
        return [judge([reply], [reply]) for _ in edits]


def read_prompts(path):
    source = prompts.source(tiny_editor.config("none", data__train=str(path)), "train")
    return [source[i].instruction for i in range(len(source))]


READERS = {
    "pairs": lambda path: [line["instruction"] for line, _ in score_file.entries(path)],
    "edits": lambda path: [line["instruction"] for line in editor_files.lines(path)],
    "candidates": lambda path: [line["instruction"] for line in best_of_n.read(path)],
    "predictions": lambda path: list(editscore_bench.read_predictions(path)),
    "prompts": read_prompts,
    "results": lambda path: [line["instruction"] for _, line in whole_lines(path)],
}
GOOD = (
    '{"source": "a.png", "edited": "a.png", "candidates": ["a.png"], "instruction": "%s", "key": "%s", "overall": 3}\n'
)


def line(text: str) -> str:
    return GOOD % (text, text)


@pytest.fixture
def file(tmp_path) -> Path:
    (tmp_path / "a.png").write_bytes(PNG)
    return tmp_path / "in.jsonl"


@pytest.mark.parametrize("name", READERS)
def test_a_line_ends_at_a_line_feed_only(file, name):
    text = "\ufeff" + line(SEPARATORS) + "\r\n \n" + line("second").replace("\n", "\r\n") + line("third")
    file.write_bytes(text.encode())
    assert READERS[name](file) == [json.loads(f'"{SEPARATORS}"'), "second", "third"]


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    "bad",
    [
        '{"source": "a.png"',
        line("x").replace("3", "NaN"),
        line("x").replace("3", "-Infinity"),
        line("x").replace("3", "1e999"),
        line("x").replace("3", "9" * 5000),
        line("x").replace("3", "[" * 100_000),
        line("\\ud800"),
        line("x").replace('"key"', '"source": "b", "key"'),
        line("\udcff"),
        line("x") + line("x").replace("\n", ""),
    ],
    ids="cut NaN infinity overflow digits depth half doubled bytes joined".split(),
)
def test_a_damaged_line_is_named_with_the_blank_ones_counted(file, name, bad):
    if "joined" in bad or bad.count("{") == 2:
        bad = bad.replace("\n", "")
    text = line("first") + "\n" + bad.rstrip("\n") + "\n" + line("last")
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError) as error:
        READERS[name](file)
    assert f"{file}:3: " in str(error.value) and "\n" not in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("name", [n for n in READERS if n != "results"])
@pytest.mark.parametrize("bad", ["null", "[]", "3", '"text"', "{}", '{"source": 5, "instruction": 6, "key": 1}'])
def test_lines_of_another_kind_are_named(file, name, bad):
    if name == "predictions" and bad.startswith('{"'):
        bad = '{"key": 1, "overall": "inf"}'
    file.write_text(line("first") + bad + "\n")
    with pytest.raises(ValueError, match=r"in\.jsonl:2: ") as error:
        READERS[name](file)
    assert "\n" not in str(error.value)


def test_a_file_with_line_separators_is_resumed(shared, tmp_path):
    folder = tmp_path / "case"
    shutil.copytree(shared / "cases" / "resume_line_separator", folder)
    assert "\u2028" in (folder / "pairs.jsonl").read_text(encoding="utf-8")
    output, judges = tmp_path / "out.jsonl", [Scorer(), Scorer()]
    seen = []
    for one in judges:
        score_file.score_file(one, folder / "pairs.jsonl", output, progress=False)
        seen.append(output.read_bytes())
    assert seen[0] == seen[1] and judges[0].calls > 0 == judges[1].calls


def test_what_a_judge_writes_is_always_written(file, tmp_path):
    file.write_text(line(SEPARATORS) + line("b"), encoding="utf-8")
    output, cache = tmp_path / "out.jsonl", tmp_path / "cache.jsonl"
    for calls in (2, 0):
        judge = Scorer("half \ud83d, whole 🙂\u2028\x85")
        score_file.score_file(judge, file, output, progress=False)
        Cached(judge, cache).score([Edit(PNG, PNG, "x")], progress=False)
        assert judge.calls == calls + (calls > 0)
    (_, first), _ = whole_lines(output)
    assert first["scores"]["passes"]["sc"][0]["raw"] == "half \ufffd, whole 🙂\u2028\x85"
    with pytest.raises(ValueError, match="JSON compliant"):
        append_lines(output, [{"x": float("nan")}])


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace(b'"scores"', b'"scor', 1),
        lambda text: text.replace(b'"overall": 20', b'"overall": NaN', 1),
        lambda text: text.replace(b'"overall": 20.0', b'"overall": "20"', 1),
        lambda text: b"null\n" + text[text.index(b"\n") + 1 :],
        lambda text: text.replace(b'"second"', b'"sec\xff"', 1),
        lambda text: text.replace(b"second", b"sec", 1),
    ],
)
def test_a_damaged_output_is_named_and_kept(file, tmp_path, damage):
    file.write_text(line("first") + line("second"))
    output = tmp_path / "out.jsonl"
    score_file.score_file(Scorer(), file, output, progress=False)
    output.write_bytes(damage(output.read_bytes()))
    before = output.read_bytes()
    with pytest.raises(ValueError, match=r"out\.jsonl:[12]\b") as error:
        score_file.score_file(Scorer(), file, output, progress=False)
    assert "\n" not in str(error.value) and output.read_bytes() == before
    assert score_file.score_file(Scorer(), file, output, progress=False, overwrite=True)[0] == 2


def test_damaged_settings_are_named(file, tmp_path):
    file.write_text(line("first"))
    output = tmp_path / "out.jsonl"
    score_file.score_file(Scorer(seed=0), file, output, progress=False)
    beside = tmp_path / "out.jsonl.settings.json"
    for text, said in (("{", "malformed"), ("[]", "an object wanted"), ('{"seed": NaN}', "NaN")):
        beside.write_text(text)
        with pytest.raises(json_files.JSONError, match=rf"settings\.json: .*{said}"):
            score_file.score_file(Scorer(seed=0), file, output, progress=False)
        assert beside.read_text() == text
    beside.unlink()
    with pytest.raises(ResumeError, match="seed: None -> 0"):
        score_file.score_file(Scorer(seed=0), file, output, progress=False)


@pytest.mark.parametrize(
    "bad", ["null", "{}", '{"id": 1, "judgement": {}}', '{"id": "x"', '{"id": "x", "judgement": NaN}']
)
def test_a_damaged_cache_is_named(tmp_path, bad):
    cache = tmp_path / "cache.jsonl"
    Cached(Scorer(), cache).score([Edit(PNG, PNG, "x"), Edit(PNG, PNG, "y")], progress=False)
    first, second = cache.read_text().splitlines()
    cache.write_text(f"{first}\n{bad}\n{second}\n")
    with pytest.raises(ValueError, match=r"cache\.jsonl:2: "):
        Cached(Scorer(), cache)


def test_a_judgement_of_another_kind_in_a_cache_is_named(tmp_path):
    cache = tmp_path / "cache.jsonl"
    Cached(Scorer(), cache).score([Edit(PNG, PNG, "x"), Edit(PNG, PNG, "y")], progress=False)
    cache.write_text(cache.read_text().replace('"overall": 20.0', '"overall": "20"'))
    with pytest.raises(ValueError, match=r"cache\.jsonl:2: not a judgement"):
        Cached(Scorer(), cache).score([Edit(PNG, PNG, "y")], progress=False)


def test_a_path_that_no_file_has_is_a_reason(file):
    file.write_text(line("x").replace('"edited": "a.png"', '"edited": "a\\u0000"'))
    ((_, reason),) = score_file.entries(file)
    assert "null" in reason
