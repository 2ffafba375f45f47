"""The released adapters' prompts: the very texts, in the very tokens, or an error that says what to do."""

import ast
import copy
import importlib.util
from pathlib import Path

import numpy as np
import pytest

from edit_rl_jax.data.example import Example
from edit_rl_jax.rewards.editscore import upstream
from edit_rl_jax.rewards.editscore.expected import ScoreTree
from edit_rl_jax.rewards.editscore.named_prompts import from_json, get
from edit_rl_jax.rewards.editscore.questions import Questions
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.qwen3_vl.config import Config
from edit_rl_jax.vlm.samples import measure_example
from edit_rl_jax.vlm.tokenizer import TextEncoder, load_tokenizer

INSTRUCTION = "Adjust the background to a glass wall."
PAD = 151655
IMAGES = [np.zeros((h, w, 3), np.uint8) for h, w in ((56, 84), (84, 112))]
PADS = [6, 12]


@pytest.fixture(scope="module")
def package():
    spec = importlib.util.find_spec("editscore")
    if spec is None:
        pytest.skip("package editscore is not installed: pip install --no-deps editscore==0.2")
    return Path(spec.submodule_search_locations[0])


@pytest.fixture(scope="module")
def tokenizer(shared):
    return load_tokenizer(shared / "data/qwen2_5_tokenizer")


def ids(tokenizer, name, question, images):
    parts = get(name).build(question, INSTRUCTION, images)
    return measure_example(Example(parts, "", "x"), TextEncoder(tokenizer), PAD, ImageSettings()).tokens.tolist()


def test_texts_are_the_published_ones(package):
    found = upstream.texts()
    assert [len(found[q]) for q in ("sc", "pq")] == [1524, 1196]  # hashes are checked on reading
    assert found["sc"].count("<instruction>") == 1 and "<instruction>" not in found["pq"]


@pytest.mark.parametrize(
    "name, question, n", [("upstream", "sc", 2), ("upstream", "pq", 1), ("upstream-rl-compat", "pq", 2)]
)
def test_qwen2_5_layout_has_upstreams_token_ids(package, tokenizer, name, question, n):
    """Against upstream's own template function, with its image tag repeated as a processor does."""
    tree = ast.parse((package / "mllm_tools/qwen25vl.py").read_text())
    (function,) = [x for x in tree.body if isinstance(x, ast.FunctionDef) and x.name == "apply_chat_template"]
    scope: dict = {}
    exec(compile(ast.Module([function], []), "upstream", "exec"), scope)
    text = scope["apply_chat_template"](upstream.texts()[question].replace("<instruction>", INSTRUCTION), n)
    pieces = text.split("<|image_pad|>")
    whole = pieces[0] + "".join("<|image_pad|>" * k + p for k, p in zip(PADS[-n:], pieces[1:]))
    assert ids(tokenizer, name, question, IMAGES[-n:]) == tokenizer.encode(whole, add_special_tokens=False)


def test_qwen3_layout_token_ids(package, tokenizer):
    got = ids(tokenizer, "upstream-qwen3", "sc", IMAGES)
    start, end, newline = 151644, 151645, 198
    user, assistant = 872, 77091
    head = [start, user, newline, 151652, *[PAD] * 6, 151653, 151652, *[PAD] * 12, 151653]
    text = tokenizer.encode(upstream.texts()["sc"].replace("<instruction>", INSTRUCTION), add_special_tokens=False)
    assert got == head + text + [end, newline, start, assistant, newline]
    assert got[-5:] == ids(tokenizer, "upstream", "sc", IMAGES)[-5:]


def test_an_empty_thought_opens_the_reply(package, tokenizer):
    """As its trainer wrote it: four tokens of the Qwen3 tokenizer behind the generation prompt, and no others."""
    qwen3 = copy.deepcopy(tokenizer)
    qwen3.add_tokens(["<tool_response>", "</tool_response>", "<think>", "</think>"])
    plain, opened = (ids(qwen3, name, "sc", IMAGES) for name in ("upstream-qwen3", "upstream-qwen3-think"))
    assert opened == [*plain, 151667, 271, 151668, 271]
    assert get("upstream-qwen3-think-rl-compat").shown("pq", b"s", b"e") == (b"s", b"e")
    questions = Questions(Config(), qwen3, get("upstream-qwen3-think"), Config().images(), ScoreTree(qwen3).opening)
    prompt = questions.prompt("pq", questions.parts("pq", IMAGES[0], IMAGES[1], INSTRUCTION), "x")
    reply = qwen3.encode('{"reasoning": "", "score": [', add_special_tokens=False)
    assert prompt.tokens.tolist()[-4 - len(reply) :] == [
        151667,
        271,
        151668,
        271,
        *reply,
    ]  # expected scores begin there


def test_profiles_show_what_upstream_showed(package):
    assert get("upstream").shown("pq", b"s", b"e") == (b"e",)
    assert get("upstream-rl-compat").shown("pq", b"s", b"e") == get("upstream").shown("sc", b"s", b"e") == (b"s", b"e")
    with pytest.raises(ValueError, match="2 images"):
        get("upstream-rl-compat").build("pq", "x", [b"e"])
    for empty in ("", " "):
        with pytest.raises(ValueError, match="empty instruction"):
            get("upstream").build("sc", empty, [b"s", b"e"])
    text = "".join(p for p in get("upstream").build("sc", "x<|im_end|>", [b"s", b"e"]) if isinstance(p, str))
    assert text.count("<|im_end|>") == 2  # the system's and the user's own


def test_a_model_folder_refers_to_them_by_hash(package):
    stored = get("upstream-qwen3").to_json()
    assert set(stored) == {"name", "sha256"} and from_json(stored) == get("upstream-qwen3")
    with pytest.raises(ValueError, match="altered"):
        from_json({**stored, "sha256": "0" * 64})


def test_absent_or_altered_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="no-deps editscore==0.2"):
        upstream.texts(tmp_path)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="no-deps editscore==0.2"):
        get("upstream")
    names = [upstream.CONTEXT, upstream.TWO_IMAGES, *upstream.RULES.values()]
    (tmp_path / upstream.FILE).write_text("raise SystemExit('was imported')\n" + "".join(f"{n} = 'x'\n" for n in names))
    with pytest.raises(ValueError, match="sha256"):
        upstream.texts(tmp_path)
    (tmp_path / upstream.FILE).write_text("x = 1\n")
    with pytest.raises(ValueError, match=upstream.CONTEXT):
        upstream.texts(tmp_path)
