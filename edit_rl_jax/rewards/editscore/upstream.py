"""The prompt texts of the released EditScore adapters, read at run time from the installed `editscore` package.

The package is never imported (that would need torch and vLLM): its text file is parsed and the composed texts are
checked by SHA-256, because the adapters only behave with the very bytes that they were trained on. Get it with
`pip install --no-deps editscore==0.2`. Facts: `vie_prompts.py`, `mllm_tools/qwen25vl.py`, `qwen3vl.py` of that version.
"""

import dataclasses
import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from edit_rl_jax.data.records import SCORE_RANGE
from edit_rl_jax.data.source_texts import constants
from edit_rl_jax.rewards.editscore.aggregate import profile
from edit_rl_jax.rewards.editscore.prompts import END, Image, Parts, Prompts, Question, check_instruction, plain

FILE = "vie_prompts.py"
CONTEXT, TWO_IMAGES = "_context_no_delimit_reasoning_first", "_prompts_0shot_two_image_edit_rule"
RULES = {"sc": "_prompts_0shot_tie_rule_SC", "pq": "_prompts_0shot_rule_PQ"}
SHA256 = {
    "sc": "2fbb018b0e448b2d6066266556ad88019129b7842073fdae7e48c1ffd54abbf5",
    "pq": "8249deba103d112dddd4c2e7fe1d5a1c40fe3143dc640a422a19aced0d260c78",
}
# what the trainer of the Qwen3-VL adapters wrote before every answer; upstream's inference leaves it to the model
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"
NAMES = {  # name: (chat layout, profile, opening)
    "upstream": ("qwen2_5_vl", "paper", ""),
    "upstream-rl-compat": ("qwen2_5_vl", "rl-compat", ""),
    "upstream-qwen3": ("qwen3_vl", "paper", ""),
    "upstream-qwen3-rl-compat": ("qwen3_vl", "rl-compat", ""),
    "upstream-qwen3-think": ("qwen3_vl", "paper", EMPTY_THOUGHT),
    "upstream-qwen3-think-rl-compat": ("qwen3_vl", "rl-compat", EMPTY_THOUGHT),
}


def texts(folder: str | Path | None = None) -> dict[str, str]:
    """The composed texts `sc` and `pq` on the scale 0..25, `<instruction>` left in.

    `folder`: the package's, by default the installed one's. Raises FileNotFoundError where it is not installed, and
    ValueError where its texts are not those of version 0.2.
    """
    advice = "pip install --no-deps editscore==0.2"
    if folder is None:
        spec = importlib.util.find_spec("editscore")  # finds without importing
        folder = next(iter((spec and spec.submodule_search_locations) or ()), "")
    path = Path(folder) / FILE
    if not folder or not path.is_file():
        where = f" in {folder}" if folder else ""
        raise FileNotFoundError(f"the package editscore, which holds the prompts, was not found{where}: {advice}")
    found = constants(path.read_bytes())
    missing = {CONTEXT, TWO_IMAGES, *RULES.values()} - set(found)
    if missing:
        raise ValueError(f"{path} has no {', '.join(sorted(missing))}: {advice}")
    rules = {q: found[name].replace("10", str(SCORE_RANGE)) for q, name in RULES.items()}
    composed = {"sc": [found[CONTEXT], found[TWO_IMAGES], rules["sc"]], "pq": [found[CONTEXT], rules["pq"]]}
    out = {q: "\n".join(parts) for q, parts in composed.items()}
    for q, text in out.items():
        got = hashlib.sha256(text.encode()).hexdigest()
        if got != SHA256[q]:
            raise ValueError(f"{path}: the {q} prompt has sha256 {got}, wanted {SHA256[q]}: {advice}")
    return out


@dataclasses.dataclass(frozen=True)
class UpstreamPrompts(Prompts):
    """Upstream's texts in the chat layout of its Qwen2.5-VL or Qwen3-VL adapters; images first, then the text.

    `qwen2_5_vl`: ChatML with a system turn and a numbered tag before each image. `qwen3_vl`: the processor's own
    template, one user turn. What PQ sees follows the profile, one of `aggregate.PROFILES`. The released Qwen3-VL
    adapters were trained with an empty thought before every answer: constrained and expected scores, which would skip
    it, want the names with "think".
    """

    layout: Literal["qwen2_5_vl", "qwen3_vl"] = "qwen2_5_vl"
    profile: str = "paper"  # pyright: ignore[reportIncompatibleVariableOverride]
    opening: str = ""  # pyright: ignore[reportIncompatibleVariableOverride]

    def to_json(self) -> dict:
        """A reference by name and hash: the texts are not ours to pass on."""
        return {"name": self.name, "sha256": self.sha256}

    def shown(self, question: Question, source: Image, edited: Image) -> tuple[Image, ...]:
        return (source, edited) if question == "sc" or profile(self.profile).pq_sees_source else (edited,)

    def build(self, question: Question, instruction: str, images: Sequence[Image]) -> Parts:
        """As `Prompts.build`; PQ takes [source, edited] where the profile shows both.

        The instruction is placed as it is, as upstream does, but for control tokens, which stay plain text.
        """
        wanted = len(self.shown(question, b"", b""))
        if len(images) != wanted:
            raise ValueError(f"{question} of {self.name} takes {wanted} images, got {len(images)}")
        check_instruction(instruction)
        text = getattr(self, question).replace("<instruction>", plain(instruction))
        tagged = self.layout == "qwen2_5_vl"
        system = f"<|im_start|>system\n{self.system}{END}\n" if tagged else ""
        parts: list = [f"{system}<|im_start|>user\n"]
        for i, image in enumerate(images, 1):
            parts[-1] += (f"<img{i}>: " if tagged else "") + "<|vision_start|>"
            parts += [image, "<|vision_end|>"]
        parts[-1] += f"{text}{END}\n<|im_start|>assistant\n{self.opening}"
        return tuple(parts)


def load(name: str = "upstream", folder: str | Path | None = None) -> UpstreamPrompts:
    """The prompts of one of NAMES. Raises KeyError, and as `texts`."""
    layout, behaviour, opening = NAMES[name]
    found = texts(folder)
    system = "You are a helpful assistant." if layout == "qwen2_5_vl" else ""
    return UpstreamPrompts(name, 1, system, found["sc"], found["pq"], layout=layout, profile=behaviour, opening=opening)
