"""A table of users' rows: what each file gives, record by record, or which row is named and why.

An entry is `Case(name, rows, records, bad)`: `records` are the (key, instruction, sc, pq) that --on-bad-record=skip
keeps, `bad` the rows that it counts, as (row, reason); without skip the first of these is the error.
"""

# ruff: noqa: E501
# A line a case, however long.

import dataclasses
import datetime
import decimal
import json
from typing import Any

SC, PQ = (20, 22), (5, 6)
IMAGES = ("s0.png", "s1.png", "e0.png", "e1.png")  # in the folder of every file of the table
DISAGREE, AMBIGUOUS = "question and images disagree", "ambiguous instruction"
MALFORMED, REPLY, SCORE = "malformed row", "malformed reply", "malformed score"
ORPHAN, CONFLICT, EMPTY = "quality row without its instruction row", "conflicting scores", "empty instruction"
LABEL, RED = "Editing instruction: ", "make it red"


@dataclasses.dataclass(frozen=True)
class Case:
    name: str
    rows: Any  # a list of rows, or the text of the file
    records: tuple = ()
    bad: tuple = ()
    suffix: str = "json"
    options: dict = dataclasses.field(default_factory=dict)


def said(scores: Any = SC, reasoning: Any = "ok") -> str:
    return json.dumps({"reasoning": reasoning, "score": list(scores)})


def turns(*texts: str) -> list[dict]:
    return [{"from": ("human", "gpt")[i % 2], "value": text} for i, text in enumerate(texts)]


def sc(human: str = f"<image><image>\n{LABEL}{RED}", scores: Any = SC, images: Any = ("s0.png", "e0.png"), **columns):
    """An SC row; `scores` may be the text of the reply."""
    reply = scores if isinstance(scores, str) else said(scores)
    return {"conversations": turns(human, reply), "images": images and list(images)} | columns


def pq(human: str = "<image>\nRate its quality.", scores: Any = PQ, images: Any = ("e0.png",), **columns):
    return sc(human, scores, images, **columns)


def own(**columns):
    return {"source": "s0.png", "edited": "e0.png", "instruction": RED} | columns


def asks(name: str, human: str, wanted: str | None = RED, reason: str = AMBIGUOUS, **columns) -> Case:
    """One SC row whose human turn is `human`: this instruction, or (None) refused for that reason."""
    if wanted is None:
        return Case(name, [sc(human, **columns)], bad=((1, reason),))
    return Case(name, [sc(human, **columns)], (("rows.json:1", wanted, SC, None),))


def one(name: str, row: dict, key: str = "rows.jsonl:1", sc=None, pq=None, suffix="jsonl", text=RED) -> Case:
    return Case(name, [row], ((key.replace("jsonl", suffix), text, sc, pq),), suffix=suffix)


def bad(name: str, row: Any, reason: str, suffix: str = "jsonl", **options) -> Case:
    """A bad row between two good ones of its kind."""
    good = [own(key="a"), own(key="b")]
    if isinstance(row, dict) and "conversations" in row:
        good = [sc(key="a", images=["s0.png", "e1.png"]), sc(f"{LABEL}{RED}", key="b", images=["s1.png", "e1.png"])]
    kept = tuple((r["key"], RED, SC if "conversations" in r else None, None) for r in good)
    return Case(name, [good[0], row, good[1]], kept, ((2, reason),), suffix, options)


JOINED = (("rows.json:1", RED, SC, PQ),)
ALONE = (("rows.json:1", RED, SC, None),)
T = "<image><image>\n"
PNG = {"bytes": b"filled in by the test", "path": None}  # of s0.png

INSTRUCTIONS = [
    asks("ends with the turn", f"{T}{LABEL}{RED}"),
    asks("tags on the next line", f"Two images are given.\n{LABEL}{RED}\n<image><image>"),
    asks("tags on its own line", f"{LABEL}{RED} <image><image>"),
    asks("tags before it", f"{LABEL}<image><image>{RED}"),
    asks("numbered tags", f"{LABEL}{RED}\n<image_1><image_2>"),
    asks("Qwen's tokens", f"<|vision_start|><|image_pad|><|vision_end|><|image_pad|>{LABEL}{RED}"),
    asks("a form after a blank line", f"{T}{LABEL}{RED}\n\nPlease output JSON with reasoning and score."),
    asks("a form on the next line", f"{T}{LABEL}{RED}\nOutput format: {{...}}"),
    asks("an example of the form", f'{T}{LABEL}{RED}\n{{"reasoning": "...", "score": [0, 0]}}'),
    asks("a fence", f'{T}{LABEL}{RED}\n\n```json\n{{"score": []}}\n```'),
    asks("a scale below", f"{T}{LABEL}{RED}\nRate the edit on a scale of 0 to 25."),
    asks("images below", f"{LABEL}{RED}\nSource image: <image>\nEdited image: <image>"),
    asks("on the line below the label", f"{T}Editing instruction:\n{RED}\n\nYour reply must be JSON."),
    asks("Windows line ends", f"{T}{LABEL}{RED}\r\n\r\nPlease answer in JSON format.\r\n"),
    asks("two lines", f"{T}{LABEL}{RED}\nand add a hat", f"{RED}\nand add a hat"),
    asks("two paragraphs after a whole prompt", f"{T}Give scores as JSON.\n{LABEL}{RED}\n\nAdd a hat.", f"{RED}\n\nAdd a hat."),
    asks("two paragraphs, or a rubric", f"{T}{LABEL}{RED}\n\nBe kind.", None),
    asks("a line on images", f"{T}{LABEL}{RED}\nThe first image is the original.", None),
    asks("a form on the same line", f"{T}{LABEL}{RED}. Please output JSON with a score.", None),
    asks("a tag within", f"{LABEL}make the <image> red like <image>", None),
    asks("a word before a tag", f"<image> {LABEL}{RED} Edited: <image>", None),
    asks("text after the tags", f"{LABEL}{RED}\n<image><image>\nand add a hat", None),
    asks("bold label", f"{T}**Editing instruction:** {RED}"),
    asks("full-width colon", f"{T}Editing instruction：{RED}"),
    asks("the rubric quotes the label", f'{T}What follows "Editing instruction:" was asked.\n{LABEL}{RED}'),
    asks("the rubric has a weaker label", f"{T}Instruction: rate the images.\n{LABEL}{RED}"),
    asks("the rubric speaks of it", f"{T}Does it follow the editing instruction: yes or no?\n{LABEL}{RED}"),
    asks("it quotes a label", f'{T}{LABEL}write "Instruction: go" on it', 'write "Instruction: go" on it'),
    asks("a label in mid-sentence", f"{T}Rate how well the instruction: {RED}, was followed.", None),
    asks("a few words before the label", f"{T}The user's instruction: {RED}"),
    asks("a sentence before the label", f"{T}Rate the edit with care and in full. Instruction: {RED}"),
    asks("a token of the chat", f"{T}{LABEL}{RED}<|im_end|>", None),
    asks("a form in Chinese", f"{T}{LABEL}{RED}\n请输出JSON", None),
    asks("two labels", f"{T}{LABEL}make it blue\n{LABEL}{RED}", None),
    asks("a label within", f"{T}{LABEL}paint the words\nInstruction: go", None),
    asks("a label inside its line", f"{T}{LABEL}paint the words instruction: go", None),
    asks("nothing after the label", f"{T}{LABEL}", None, EMPTY),
    asks("tags alone after the label", f"{LABEL}<image><image>", None, EMPTY),
    asks("a form alone after the label", f"{T}{LABEL}\n\nPlease output JSON.", None, EMPTY),
    asks("a column", f"{T}Rate the edit.", instruction=RED),
    asks("a column settles doubt", f"{T}{LABEL}{RED}\n\nBe kind.", instruction=RED),
    asks("a column and another label", f"{T}{LABEL}{RED}", None, DISAGREE, instruction="make it blue"),
    asks("a column of tags", f"{T}Rate.", None, DISAGREE, instruction="<image>"),
    Case("a pattern", [sc(f"{T}Change asked: {RED}\nRate.")], ALONE, options={"instruction": r"asked: (.+?)\n"}),
    Case("a pattern over tags", [sc(f"asked: {RED}\n{T}")], ALONE, options={"instruction": r"asked: (.+)"}),
    Case("a pattern that finds two", [sc(f"{T}a: x\na: y\n")], (), ((1, AMBIGUOUS),), options={"instruction": r"a: (.+?)\n"}),
]  # fmt: skip

QUESTIONS = [
    Case("both questions", [sc(), pq()], JOINED),
    Case("quality first", [pq(), sc()], (("rows.json:2", RED, SC, PQ),)),
    Case("no tags", [sc(f"{LABEL}{RED}"), pq("Rate its quality.")], JOINED),
    Case("user and assistant", [json.loads(json.dumps(r).replace('"human"', '"user"').replace('"gpt"', '"assistant"')) for r in (sc(), pq())], JOINED),
    Case("role, content, messages", [{"messages": [{"role": "user", "content": f"{T}{LABEL}{RED}"}, {"role": "assistant", "content": said()}], "images": ["s0.png", "e0.png"]}, pq()], JOINED),
    Case("a system turn", [sc() | {"conversations": [{"from": "system", "value": "You are <image> a judge."}, *sc()["conversations"]]}], ALONE),
    Case("two tags, one image", [sc(images=["e0.png"]), sc(images=["s1.png", "e0.png"], key="k")], (("k", RED, SC, None),), ((1, DISAGREE),)),
    Case("a label, one image", [sc(f"{LABEL}{RED}", images=["e0.png"])], (), ((1, DISAGREE),)),
    Case("a label, one image and tag", [sc(f"<image>{LABEL}{RED}", images=["e0.png"])], (), ((1, DISAGREE),)),
    Case("two images spoken of, one listed", [sc(), pq("<image>Two images are given. Rate.")], ALONE, ((2, DISAGREE),)),
    Case("an instruction spoken of, one image", [sc(), pq("Does it follow the editing instruction (make it red)?", scores=(1, 2))], ALONE, ((2, DISAGREE),)),
    Case("quality, whatever the instruction was", [sc(), pq("<image>Rate its quality, not the instruction.")], JOINED),
    Case("nothing asked", [sc(), pq("<image>")], ALONE, ((2, DISAGREE),)),
    Case("two images, no instruction", [sc(), pq(f"{T}Rate.", images=["s0.png", "e0.png"])], ALONE, ((2, DISAGREE),)),
    Case("quality of two images", [sc(f"{T}Naturalness?", instruction=RED)], (), ((1, DISAGREE),)),
    Case("three images", [sc(images=["s0.png", "e0.png", "e1.png"])], (), ((1, DISAGREE),)),
    Case("three images, no tags", [sc(f"{LABEL}{RED}", images=["s0.png", "e0.png", "e1.png"])], (), ((1, MALFORMED),)),
    Case("one tag, two images", [sc(f"<image>{LABEL}{RED}")], (), ((1, DISAGREE),)),
    Case("no images", [sc(images=None), sc(images=[])], (), ((1, MALFORMED), (2, MALFORMED))),
    Case("an image is a number", [sc(images=["s0.png", 3])], (), ((1, MALFORMED),)),
    Case("both in one row", [sc() | {"conversations": sc()["conversations"] + pq()["conversations"], "images": ["s0.png", "e0.png", "e0.png"]}], JOINED),
    Case("both in one row, other picture", [sc() | {"conversations": sc()["conversations"] + pq()["conversations"], "images": ["s0.png", "e0.png", "e1.png"]}], (), ((1, "several edits in one row"),)),
    Case("both in one row, an image short", [sc() | {"conversations": sc()["conversations"] + pq()["conversations"]}], (), ((1, DISAGREE),)),
    Case("two edits in one row", [sc() | {"conversations": 2 * sc()["conversations"], "images": 2 * ["s0.png", "e0.png"]}], (), ((1, "several edits in one row"),)),
    Case("asked again", [sc() | {"conversations": sc()["conversations"] + turns("Sure?", "Yes.")}], (), ((1, MALFORMED),)),
    Case("no answer", [sc() | {"conversations": sc()["conversations"][:1]}], (), ((1, MALFORMED),)),
    Case("answer first", [sc() | {"conversations": sc()["conversations"][::-1]}], (), ((1, MALFORMED),)),
    Case("unknown role", [sc() | {"conversations": [{"from": "tool", "value": "x"}, *sc()["conversations"]]}], (), ((1, MALFORMED),)),
    Case("turns are text", [sc() | {"conversations": ["a", "b"]}, sc() | {"conversations": "a"}], (), ((1, MALFORMED), (2, MALFORMED))),
    Case("parts for a text", [sc() | {"conversations": [{"from": "human", "value": [{"type": "text"}]}]}], (), ((1, MALFORMED),)),
    Case("same quality twice", [sc(), pq(), pq()], JOINED),
    Case("two qualities of one picture", [sc(), pq(), pq(scores=(9, 9))], ALONE, ((2, CONFLICT), (3, CONFLICT))),
    Case("two scores of one edit", [sc(), sc(scores=(1, 2))], (), ((1, CONFLICT), (2, CONFLICT))),
    Case("two sources of one picture", [sc(), sc(images=["s1.png", "e0.png"], scores=(1, 2)), pq()], (*JOINED, ("rows.json:2", RED, (1, 2), PQ))),
    Case("a path spelt otherwise", [sc(), pq(images=["./e0.png"])], JOINED),
    Case("quality of nothing", [sc(), pq(images=["e1.png"])], ALONE, ((2, ORPHAN),)),
    Case("quality of another instruction", [sc(), pq(instruction="make it blue")], ALONE, ((2, ORPHAN),)),
    Case("one picture, two instructions", [sc(instruction=RED), sc(f"{T}Rate.", (1, 2), instruction="no"), pq(instruction=RED), pq(instruction="no")], (*JOINED, ("rows.json:2", "no", (1, 2), PQ))),
    Case("quality of its instruction", [sc(instruction=RED), pq(instruction=RED)], JOINED),
    Case("own rows among them", [sc(), own(sc=[1, 2]), pq()], (*JOINED, ("rows.json:2", RED, (1, 2), None))),
    Case("an id of 0", [sc(id=0)], (("0", RED, SC, None),)),
]  # fmt: skip

REPLIES = [
    Case("prose and a fence", [sc(scores=f"Here:\n```json\n{said()}\n```\nDone.")], ALONE),
    Case("a line end in the reasoning", [sc(scores='{"reasoning": "a\nb", "score": [20, 22]}')], ALONE),
    Case("scores in the reasoning", [sc(scores=said(SC, 'score: [3, 4], {"score": [1, 1]}'))], ALONE),
    Case("a draft in thought", [sc(scores=f"<think>{said((1, 1))}</think>{said()}")], ALONE),
    Case("thought with its beginning cut", [sc(scores=f"perhaps {said((1, 1))}</think>{said()}")], ALONE),
    Case("thought in the reasoning", [sc(scores=said(SC, "<think>"))], ALONE),
    *(
        bad(name, sc(scores=reply), reason, "json")
        for name, reply, reason in (
            ("thought without an end", f"<think>{said()}", REPLY),
            ("a draft, then another", f"{said((1, 1))} or {said()}", REPLY),
            ("cut in the scores", '{"reasoning": "score: [25, 25]", "score": [20', REPLY),
            ("cut in the reasoning", '{"reasoning": "I give \\"score\\": [25, 25]}', REPLY),
            ("a quoted object", 'He wrote {"reasoning": "{"reasoning": "x", "score": [3, 4]}", "score": [20, 22]}', REPLY),
            ("two score keys", '{"reasoning": "a", "score": [1, 2], "score": [20, 22]}', REPLY),
            ("no scores", '{"reasoning": "a"}', REPLY),
            ("null scores", '{"reasoning": "a", "score": null}', REPLY),
            ("words", "I cannot help with that.", REPLY),
            ("half a surrogate pair", '{"reasoning": "\\ud83d", "score": [20, 22]}', REPLY),
            ("one score", '{"reasoning": "a", "score": [20]}', SCORE),
            ("a number", '{"reasoning": "a", "score": 20}', SCORE),
            ("scores as text", '{"reasoning": "a", "score": ["20", "22"]}', SCORE),
            ("scores as one text", '{"reasoning": "a", "score": "20"}', SCORE),
            ("NaN", '{"reasoning": "a", "score": [NaN, 22]}', SCORE),
            ("above the scale", said((20, 26)), "score out of range"),
            ("far above", said((20, 10**300)), "score out of range"),
        )
    ),
]  # fmt: skip

OWN = [
    one("numbers from 0", own(key=0), "0"),
    one("text zero", own(key="0"), "0"),
    one("an empty key", own(key="")),
    one("no key", own(key=None)),
    one("a huge key", own(key=10**400), str(10**400)),
    one("a key with a point", own(key=1.5), "1.5"),
    one("whole floats", own(sc=[20.0, 22.0]), sc=SC),
    one("edited is the source", own(edited="s0.png")),
    one("U+2028 and NEL", own(instruction="a\u2028b\x85c"), text="a\u2028b\x85c"),
    one("parquet's dates", own(meta={"when": datetime.datetime(2025, 1, 1)}, day=datetime.date(2025, 1, 1), price=decimal.Decimal("1.5"), raw=b"\x00", deep=[{"at": datetime.time(1)}]), suffix="parquet"),
    one("bytes and path", own(source=PNG, sc=[1, 2]), suffix="parquet", sc=(1, 2)),
    one("a path alone", own(source={"bytes": None, "path": "s0.png"}), suffix="parquet"),
    Case("images in ShareGPT parquet", [sc(images=[PNG, PNG]), pq(images=[PNG])], (("rows.parquet:1", RED, SC, PQ),), suffix="parquet"),
    Case("both layouts in parquet", [sc(), own(images=None, conversations=None)], (("rows.parquet:1", RED, SC, None), ("rows.parquet:2", RED, None, None)), suffix="parquet"),
    Case("JSON lines in a .json", f"{json.dumps(own())}\n{json.dumps(own(key='k'))}\n", (("rows.json:1", RED, None, None), ("k", RED, None, None))),
    Case("a byte-order mark", f"\ufeff{json.dumps([own()])}", (("rows.json:1", RED, None, None),)),
    Case("one row, no list", json.dumps(own()), (("rows.json:1", RED, None, None),)),
    Case("NaN in a list", json.dumps([own(), own(sc=[float("nan"), 1]), own(key="k")]), (("rows.json:1", RED, None, None), ("k", RED, None, None)), ((2, "malformed JSON"),)),
    Case("the same key as number and text", [own(key=1), own(key="1")], (("1", RED, None, None),), ((2, "duplicate key"),)),
    Case("a capital suffix", [own()], (("rows.JSONL:1", RED, None, None),), suffix="JSONL"),
    bad("a key that is false", own(key=False), MALFORMED),
    bad("a key that is a list", own(key=[1]), MALFORMED),
    bad("half a surrogate pair in a row", json.dumps(own(instruction="\ud83d")), "malformed JSON"),
    bad("half a surrogate pair in a list", json.dumps(own(instruction="\ud83d")), "malformed JSON", "json"),
    bad("doubled keys", '{"sc": [1, 2], "sc": [3, 4]}', "malformed JSON"),
    bad("infinity", json.dumps(own(note=float("inf"))), "malformed JSON"),
    bad("nested too deep", '{"a":' * 100_000, "malformed JSON"),
    bad("texts for scores", own(sc=["20", "22"]), SCORE),
    bad("a text for scores", own(sc="20"), SCORE),
    bad("true for a score", own(sc=[True, 2]), SCORE),
    bad("one of two", own(sc=[20, None]), SCORE),
    bad("an object of scores", own(sc={"1": 1, "2": 2}), SCORE),
    bad("bytes for scores", own(sc=b"\x01\x02"), SCORE, "parquet"),
    bad("a list of instructions", own(instruction=[RED]), MALFORMED),
    bad("no instruction", own(instruction=None), EMPTY),
    bad("tags for an instruction", own(instruction="<image> <image>"), EMPTY),
    bad("tags in an instruction", own(instruction=f"<image>{RED}"), MALFORMED),
    bad("a list of sources", own(source=["s0.png"]), MALFORMED),
    bad("no source", own(source=None), "missing file"),
    bad("an empty {bytes, path}", own(source={"bytes": None, "path": None}), "missing file"),
    bad("a data URL", own(source="data:image/png;base64," + "A" * 100_000), "missing file"),
    bad("a name with NUL", own(source="a\0b"), "missing file"),
    bad("a folder for an image", own(source="."), "missing file"),
    Case("bytes that are no image", [own(source=b"1234")], (), ((1, "unreadable image"),), "parquet"),
    bad("meta is a list", own(meta=[["a", 1]]), MALFORMED),
    bad("meta with NaN", own(meta='{"a": NaN}'), MALFORMED),
]  # fmt: skip

CASES = INSTRUCTIONS + QUESTIONS + REPLIES + OWN
