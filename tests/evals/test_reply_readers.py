"""Replies of judges of editors as they are really written, with the scores that a careful reader finds; None: none."""

import random
import time

import pytest

from edit_rl_jax.evals.editors import gedit, imgedit
from edit_rl_jax.evals.editors.cases import Item

GEDIT = gedit.item_of("en", "ps_human", "k")
BASIC = Item("basic/1", "1", "basic", "replace", "x")
EXTRACT = Item("basic/2", "2", "basic", "extract", "x")
UGE = Item("uge/1", "1", "uge", "uge", "x")
THREE = "Prompt Compliance: {}\nVisual Naturalness: {}\nPhysical & Detail Integrity: {}"

LISTS = {
    '{"score" : [8, 9], "reasoning" : "fine"}': (8, 9),
    '{\n"score" : [8, 9],\n"reasoning" : "The "red" hat is there."\n}': (8, 9),
    '```json\n{"score": [7, 10], "reasoning": "good"}\n```': (7, 10),
    'Here is my evaluation:\n```\n{"score": [0, 10], "reasoning": "not done"}\n```\nI hope that helps.': (0, 10),
    '{"reasoning": "first I thought [3, 3]", "score": [8, 8]}': (8, 8),
    "{'score': [6, 7], 'reasoning': 'it's fine'}": (6, 7),
    '{"score": ["9", "8"], "reasoning": ""}': (9, 8),
    '{"score": ["9/10", "8/10"], "reasoning": ""}': (9, 8),
    '{"score": [9/10, 8/10], "reasoning": "good"}': (9, 8),
    '{"score": [8.5, 7], "reasoning": ""}': (8.5, 7),
    "[5, 6]": (5, 6),
    "**Score:** [8, 9]\n\n**Reasoning:** The hat is red.": (8, 9),
    "Score: [4, 5]\nReasoning: over-edited": (4, 5),
    '<think>{"score": [1, 1]}</think>{"score": [9, 9], "reasoning": "r"}': (9, 9),
    "<think>It is hard to say": None,
    '{"score": [8], "reasoning": "one only"}': None,
    '{"score": [8, 9, 7], "reasoning": "three"}': None,
    '{"score": [80, 90], "reasoning": "of a hundred"}': None,
    '{"score": ["9/100", "8/100"], "reasoning": ""}': None,
    '{"score": [11, 3]}': None,
    '{"score": "high", "reasoning": "x"}': None,
    '{"score": [8, ': None,
    "I'm sorry, I can't help with that.": None,
    "Score: [4, 5] at first, but then score: [6, 6]": None,
    "": None,
    "rate_limit_exceeded": None,
}

LABELLED = {
    "Brief reasoning: well done.\n" + THREE.format(5, 4, 4): (5, 4, 4),
    THREE.format("**4**", "**3**", "**3**"): (4, 3, 3),
    "**Prompt Compliance**: 4  \n**Visual Naturalness**: 3  \n**Physical & Detail Integrity**: 3": (4, 3, 3),
    "**Prompt Compliance:** 4\n**Visual Naturalness:** 3\n**Physical & Detail Integrity:** 2": (4, 3, 2),
    THREE.format("4/5", "3/5", "3 / 5"): (4, 3, 3),
    THREE.format("4 out of 5", "3 out of 5", "3 out of 5"): (4, 3, 3),
    THREE.format("5 (perfect)", "4 - tiny seams", "4, as the light fits"): (5, 4, 4),
    THREE.format("5.", "4.", "4."): (5, 4, 4),
    "- Prompt Compliance: 2\n- Visual Naturalness: 2\n- Physical and Detail Integrity: 1": (2, 2, 1),
    "1. Prompt compliance - 3\n2. Visual naturalness - 3\n3. Physical & detail integrity - 3": (3, 3, 3),
    "| Prompt Compliance | 4 |\n| Visual Naturalness | 4 |\n| Physical & Detail Integrity | 3 |": (4, 4, 3),
    '{"Prompt Compliance": 4, "Visual Naturalness": 4, "Physical & Detail Integrity": 4}': (4, 4, 4),
    "Prompt Compliance: 4, Visual Naturalness: 3, Physical & Detail Integrity: 2": (4, 3, 2),
    "### Prompt Compliance: 3\nsome words\n### Visual Naturalness: 3\n### Physical & Detail Integrity: 3": (3, 3, 3),
    THREE.format("four", "Three", "two stars"): (4, 3, 2),
    THREE.format(4.5, 4, 3.5): (4.5, 4, 3.5),
    THREE.format("[4]", "[3]", "[3]"): (4, 3, 3),
    "Prompt Compliance Score: 4\nVisual Naturalness Score: 3\nPhysical & Detail Integrity Score: 3": (4, 3, 3),
    "<think>Prompt Compliance: 1</think>\n" + THREE.format(4, 3, 3): (4, 3, 3),
    THREE.format(2, 3, 4): (2, 3, 4),  # breaks the prompt's rule, and is what was said
    THREE.format(5, 4, 4) + "\nOverall: 4.3": (5, 4, 4),
    THREE.format(5, 4, "") + "\n3": (5, 4, 3),
    THREE.format("3-4", 3, 3): None,
    THREE.format("3 to 4", 3, 3): None,
    THREE.format("8/10", 3, 3): None,
    THREE.format(0, 3, 3): None,
    THREE.format(45, 3, 3): None,
    THREE.format("80%", 3, 3): None,
    THREE.format("A number from 1 to 5.", 3, 3): None,
    THREE.format("N/A", 3, 3): None,
    "Prompt Compliance: 4\nVisual Naturalness: 3": None,
    "Prompt Compliance: 4\nVisual Naturalness: 3\nPhysical & Detail Coherence: 3": None,  # of another type
    THREE.format(4, 3, 3) + "\nOn reflection, Prompt Compliance: 2": None,
    "4\n3\n3": None,
    THREE.format("2 cats missing, so 3", 3, 3): None,
    THREE.format("\n1. The cat was replaced. Score 4", 3, 3): None,
    THREE.format("\n1) The cat was replaced. Score 4", 3, 3): None,
    THREE.format("4 cats as asked", 3, 3): (4, 3, 3),
    THREE.format("4 because all 3 cats are gone", "4 since 2 cups remain", "4 out of 5 as 1 remains"): (4, 4, 4),
    "I cannot judge people's pictures.": None,
}

SINGLE = {
    "4": (4,),
    "**4**": (4,),
    "Score: 4": (4,),
    "Final Score: 3/5": (3,),
    "Brief reasoning: The sign now reads 33.\nScore: 5": (5,),
    "Brief reasoning: The sign now reads 33.\n**Score:** 5 (Excellent)": (5,),
    "Brief reasoning: seamless, number 33 fits.\n\n4": (4,),
    "4 (Good)\nBrief reasoning: good": (4,),
    "Rating: 2 - Fair": (2,),
    "The overall score is 3 because the sky changed.": (3,),
    "I would give it 4/5 for this.": (4,),
    "Score: 3. Untouched areas changed.": (3,),
    "Score: 4\nFinal score: 3": None,
    "Score: 3-4": None,
    "Score: 7": None,
    "Score: 7/10": None,
    "Score: -1": None,
    "Brief reasoning: 3 cups were removed": None,
    "2 cups and 3 plates": None,
    "Only 2 of 5 apples were removed": None,
    "One of 5 lamps is still there": None,
    "3/5 objects recoloured.": None,
    "Two of 5 lemons left.\nScore 4": (4,),
    "5 of 5 spoons replaced, but blur. Final: 3": (3,),
    "Score 4 apples": None,
    "Score: 3 of 5 apples removed": None,
    "Final: 3 cups were removed": None,
    "Final: 3\nScore: 4": None,
    "4/5 stars": (4,),
    "4 out of 5 points": (4,),
    "4/5 but blurry": (4,),
    "A solid 4/5 with minor faults": (4,),
    "The edit gets 4/5 and is good.": (4,),
    "It deserves 4 out of 5.": (4,),
    "★★★★☆": None,
    "": None,
}


@pytest.mark.parametrize("text", LISTS)
def test_lists(text):
    for question in ("sc", "pq"):
        assert gedit.read(GEDIT, question, text).scores == LISTS[text], gedit.read(GEDIT, question, text).problem


@pytest.mark.parametrize("text", LABELLED)
def test_labelled(text):
    read = imgedit.read(BASIC, "score", text)
    assert read.scores == LABELLED[text], read.problem
    assert read.valid != bool(read.problem)


@pytest.mark.parametrize("text", SINGLE)
def test_single(text):
    read = imgedit.read(UGE, "score", text)
    assert read.scores == SINGLE[text], read.problem


def test_a_type_has_its_own_names():
    said = "Object Identity: 5\nMask Precision: 4\nVisual Quality: 4"
    assert imgedit.read(EXTRACT, "score", said).scores == (5, 4, 4) and not imgedit.read(BASIC, "score", said).valid


def test_fuzz_never_raises_and_never_guesses():
    """Damaged replies: what is read was said. A reply whose numbers are taken away has no scores at all."""
    rng = random.Random(0)
    tables = [(GEDIT, "sc", LISTS), (BASIC, "score", LABELLED), (UGE, "score", SINGLE)]
    modules = {"en": gedit, "basic": imgedit, "uge": imgedit}
    alphabet = "0123456789/-.,:*[]{}\"'\\ \n<>thinkscoré🙂\x00\ud800"
    for item, question, table in tables:
        read, texts = modules[item.part].read, list(table)
        low, high = modules[item.part].SCALE
        for _ in range(700):
            text = rng.choice(texts)
            for _ in range(rng.randint(1, 6)):
                at = rng.randrange(len(text) + 1)
                cut = at + rng.randint(0, 4)
                text = text[:at] + "".join(rng.choices(alphabet, k=rng.randint(0, 4))) + text[cut:]
            reply = read(item, question, text)
            assert reply.valid != bool(reply.problem)
            for score in reply.scores or ():
                assert low <= score <= high
                words = ("zero", "one", "two", "three", "four", "five")
                assert f"{score:g}" in text or f"{score:.1f}" in text or words[int(score)] in text.lower()
            numberless = "".join(c for c in text if not c.isdigit())
            if not any(w in numberless.lower() for w in ("zero", "one", "two", "three", "four", "five", "six")):
                assert not read(item, question, numberless).valid
        began = time.monotonic()
        for text in ("\n" * 30_000 + " " * 30_000 + "x", "- " * 30_000, "score " * 9000 + "(" * 9000, "4" * 50_000):
            assert not read(item, question, text).valid
        assert time.monotonic() - began < 5  # in linear time
        for text in ("[" * 50_000, "{" * 50_000, "Score: " + "9" * 5000, "*" * 50_000, "Prompt Compliance " * 5000):
            assert not read(item, question, text).valid
