"""Makes replies as judges write them, with the score that a careful reader finds, and damages them.

A true reply is one object in any of the layouts that language models use, with anything before and behind it that is
not the answer. Its reasoning quotes scores, drafts, fences and braces. In the layouts with bare quotes (the writer
forgot the backslashes) a reader can tell where the reasoning ends because only there a quote stands before the next
key, or before the closing brace; a quoted object has both of its braces.
"""

import json
import random

WORDS = "the ball is red now and its shadow fits but an edge looks odd while nothing else was changed".split()
NAMES = ("reasoning", "Reasoning", "reason", "rationale", " reasoning ")


def other(r: random.Random) -> str:
    return f"[{r.randint(0, 25)}, {r.randint(0, 25)}]"


def quoted(r: random.Random) -> str:
    """Something that a reasoning quotes."""
    a, o = r.choice(["\"{}\"", "'{}'", "“{}”", "‘{}’", "{}", "`{}`", '\\"{}\\"']), other(r)  # fmt: skip
    return r.choice(
        [
            a.format("red"),
            a.format("score") + f": {o}",
            a.format("score") + f" : {o}",
            a.format(f"score: {o}"),
            f"score: {o}",
            f"score {o}",
            "{" + a.format("score") + f": {o}" + "}",
            "{" + a.format("reasoning") + ": " + a.format("bad") + ", " + a.format("score") + f": {o}" + "}",
            "{" + a.format("score") + f": {o}, " + a.format("reasoning") + ": " + a.format("bad") + "}",
            "```json\n{" + a.format("score") + f": {o}" + "}\n```",
            "<think>" + a.format("score") + f": {o}</think>",
            "it's",
            "the cats' ball",
            "back\\slash",
            "two\nlines",
            "\n\n\n",
            "a {broken} one",
            "a list [1, 2]",
            o,
            "5' 11\"",
            "ünï 图 🙂 \u2028",
            "// no comment",
            "25/25",
        ]
    )


def sentence(r: random.Random, most: int = 6) -> str:
    parts = []
    for _ in range(r.randint(0, most)):
        parts += r.sample(WORDS, r.randint(1, 4))
        parts.append(quoted(r) + r.choice(["", "", "", ",", ".", ";", ":"]))
    return " ".join([*parts, *r.sample(WORDS, r.randint(1, 3))])


def lone(r: random.Random) -> str:
    """A brace or bracket that nothing closes; only where the quotes are right."""
    return r.choice(["{", "}", "]", "[", '{"', '"}', '{"score": [3, 4]', "'", '"', "“", "”"])


LAYOUTS = (
    "json",
    "ascii",
    "indented",
    "raw lines",
    "python",
    "single",
    "curly",
    "words",
    "bare",
    "bare single",
    "comma",
)


def body(r: random.Random, score: tuple[int, int]) -> str:
    """The object. Its score stands between two marks, U+E000 and U+E001, that `true_reply` takes away."""
    layout = r.choice(LAYOUTS)
    reasoning = sentence(r)
    if not layout.startswith("bare") and r.random() < 0.3:
        reasoning += " " + lone(r) + " " + r.choice(WORDS)
    written = r.choice([f"[{score[0]}, {score[1]}]"] * 3 + [f"[{score[0]},{score[1]}]", f"[ {score[0]} , {score[1]} ]"])
    if r.random() < 0.1:
        written = f"[{score[0]}.0, {score[1]}.0]"
    if r.random() < 0.1 and layout != "curly":
        written = f'["{score[0]}", "{score[1]}"]'
    written = f"\ue000{written}\ue001"
    name, mark = r.choice(NAMES[: 1 if layout == "words" else 5]), r.choice(["score"] * 3 + ["Score"])
    q = {"python": "'", "single": "'", "bare single": "'", "words": ""}.get(layout, '"')
    if layout in ("json", "comma"):
        text = json.dumps(reasoning, ensure_ascii=False)
    elif layout == "raw lines":
        text = json.dumps(reasoning, ensure_ascii=False).replace("\\n", "\n")
    elif layout in ("ascii", "indented", "words"):
        text = json.dumps(reasoning)
    elif layout == "python":
        text = repr(reasoning)
    elif layout == "single":
        text = "'" + reasoning.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"
    elif layout == "curly":
        text = "“" + reasoning.replace("“", '"').replace("”", '"') + "”"
    elif layout == "bare":
        text = '"' + reasoning.replace("\\", "/") + '"'
    else:
        text = "'" + reasoning.replace("\\", "/") + "'"
    opened, closed = ("“", "”") if layout == "curly" else (q, q)
    members = [f"{opened}{name}{closed}: {text}", f"{opened}{mark}{closed}: {written}"]
    if r.random() < 0.35:
        members.reverse()
    if r.random() < 0.1:
        members.append(f"{opened}confidence{closed}: 0.9")
    gap = "\n  " if layout == "indented" or r.random() < 0.2 else r.choice(["", " "])
    end = "," if layout == "comma" or r.random() < 0.05 else ""
    return "{" + gap + f",{gap or ' '}".join(members) + end + gap.rstrip(" ") + "}"


def draft(r: random.Random) -> str:
    return json.dumps({"reasoning": sentence(r, 1), "score": [r.randint(0, 25), r.randint(0, 25)]})


PROSE = 3 * [""] + [
    "Sure! ",
    "Here is my verdict:\n",
    "The edit is good.\n\n",
    "||V^=^V||\n",
    "I would say 20/25.\n",
    "Compared with [3, 4] it is better: ",
    "The style {color: red;} is kept. ",
    "A 'nice' \"ball\" - ",
    "<answer>",
    "Score 20 of 25. ",
    'The format {"reasoning": "...", "score": [<first>, <second>]} is used.\n',
]
BEHIND = [
    "",
    "",
    "",
    "\n",
    " Done.",
    "\n\nI hope this helps.",
    "\n||V^=^V||",
    "</answer>",
    " That is 20/25.",
    "\nScore: 3/4",
]


def true_reply(r: random.Random) -> tuple[str, tuple[int, int], range, bool]:
    """A reply, its score, where the score's list stands, and whether an opening tag of thinking is missing."""
    score = (r.randint(0, 25), r.randint(0, 25))
    text, hidden = body(r, score), False
    if r.random() < 0.25:
        text = r.choice(["```json\n", "```\n", "```JSON "]) + text + "\n```"
    text = r.choice(PROSE) + text + r.choice(BEHIND)
    if r.random() < 0.3:
        tag = r.choice(["think", "think", "thinking", "reasoning"])
        thought = " ".join([sentence(r, 2).replace("<think>", "").replace("</think>", ""), draft(r)][: r.randint(1, 2)])
        thought = thought.replace("<think>", "").replace("</think>", "") + r.choice(["", " " + lone(r), "\n"])
        hidden = tag == "think" and r.random() < 0.3
        text = ("" if hidden else f"<{tag}>") + thought + f"</{tag}>" + r.choice(["", "\n", "\n\n"]) + text
    start, end = text.index("\ue000"), text.index("\ue001") - 1
    return text.replace("\ue000", "").replace("\ue001", ""), score, range(start, end), hidden


def cut(r: random.Random, text: str) -> str:
    return text[: r.randrange(len(text))] if r.random() < 0.8 else text[r.randrange(1, len(text)) :]


def damaged(r: random.Random, text: str, kept: range) -> str:
    """One to three characters outside of the score's list deleted, doubled, swapped, replaced or put in."""
    start, end = kept.start, kept.stop
    before, own, after = text[:start], text[start:end], text[end:]
    for _ in range(r.randint(1, 3)):
        first = r.random() < len(before) / (len(before) + len(after))
        part = before if first else after
        marks = [i for i, c in enumerate(part) if c in "{}[]\"'“”,:\\<>`"]
        if len(part) < 3:
            continue
        i = r.choice(marks) if marks and r.random() < 0.6 else r.randrange(len(part) - 1)
        i = min(i, len(part) - 2)
        c = r.choice("{}[]\"'“”,:\\ \n<ax`")
        part = r.choice(
            [
                part[:i] + part[i + 1 :],
                part[: i + 1] + part[i:],
                part[:i] + part[i + 1] + part[i] + part[i + 2 :],
                part[:i] + c + part[i + 1 :],
                part[:i] + c + part[i:],
            ]
        )
        before, after = (part, after) if first else (before, part)
    return before + own + after
