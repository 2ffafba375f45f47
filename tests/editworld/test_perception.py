"""Perception tasks and the tokenizer: no judging, no held-out combination, one token a word."""

import re

import numpy as np
import pytest
import tokenizers

from edit_rl_jax.editworld import tokenizer
from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.editworld.perception import PROMPTS, Perception
from edit_rl_jax.editworld.scene import COLOURS, HELD_OUT, MATERIALS, SHAPES


@pytest.fixture(scope="module")
def texts():
    return list(tokenizer.corpus(300))


@pytest.fixture(scope="module")
def folder(tmp_path_factory, texts):
    path = tmp_path_factory.mktemp("tokenizer")
    tokenizer.save(path, tokenizer.train(texts))
    return path


@pytest.mark.parametrize("task", sorted(PROMPTS))
def test_perception_shows_no_held_out_combination_and_judges_nothing(task):
    """In train, answers name no held-out combination; text comes first, then the images; no edit is judged."""
    banned = HELD_OUT["validation"] | HELD_OUT["test"]
    source = Perception("train", 30, seed=2, mixture={task: 1.0})
    looks = re.compile(f"({'|'.join(COLOURS)}) ({'|'.join(MATERIALS)}) ({'|'.join(SHAPES)})")
    for index in range(30):
        example = source[index]
        for colour, material, shape in looks.findall(example.answer if task != "say" else ""):  # random words
            assert (colour, shape) not in banned and (colour, material) not in banned
        images = [p for p in example.prompt if isinstance(p, np.ndarray)]
        assert len(images) == {"say": 0, "compare": 2, "request": 2, "count": 2}.get(task, 1)
        assert isinstance(example.prompt[0], str) and str(example.prompt[-1]).endswith("<|im_start|>assistant\n")
        assert example.answer.endswith("<|im_end|>")
        assert task == "say" or "done" not in example.answer


def test_perception_is_random_access():
    """An example is a function of (split, seed, index) alone."""
    a, b = Perception("train", 50, seed=1), Perception("train", 500, seed=1)
    for index in (7, 3):
        first, second = a[index], b[index]
        assert first.answer == second.answer and first.key == second.key
        assert all(np.array_equal(x, y) for x, y in zip(first.prompt, second.prompt))
    assert a[3].answer != Perception("train", 50, seed=2)[3].answer or a[4].answer != a[3].answer
    with pytest.raises(IndexError):
        a[50]
    with pytest.raises(ValueError, match="smell"):
        Perception("train", 5, mixture={"smell": 1.0})


def test_tokenizer_files(folder):
    """`transformers` reads the files: at most 2,000 entries, Qwen's special tokens, single digits, lossless."""
    from transformers import AutoTokenizer

    tok = AutoTokenizer.from_pretrained(str(folder))
    assert len(tok) <= 2000
    for special in tokenizer.SPECIAL:
        assert len(tok(special)["input_ids"]) == 1 and special in tok.all_special_tokens
    assert len(tok("2025")["input_ids"]) == 4
    for text in (
        '{"reasoning": "north none .", "score": [0, 25]}',
        "Größe — 数字 \n\t x's",
        "<|im_start|>user\nhi<|im_end|>",
    ):
        assert tok.decode(tok(text)["input_ids"]) == text


def test_words_of_the_reasons_are_single_tokens(folder):
    """Comparisons, damage and instructions cost about one token a word; a number its digits and the space before."""
    from transformers import AutoTokenizer

    cost = lambda text: sum(1 + len(w) * w.isdigit() for w in text.split())
    tok, source = AutoTokenizer.from_pretrained(str(folder)), EditRecords("test", 100, seed=9)
    for index in range(0, 40, 4):
        record = source[index]
        comparison = " " + record.sc_reasoning.split(" done ")[0]
        assert len(tok(comparison)["input_ids"]) == cost(comparison)
        for text in (record.pq_reasoning, record.instruction):
            assert len(tok(text)["input_ids"]) <= cost(text) + 2, text


def test_tokenizer_is_deterministic(folder, texts):
    """Two trainings give the same tokenizer."""
    saved = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert tokenizer.train(texts).get_vocab() == saved.get_vocab()
