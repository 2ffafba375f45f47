"""EditScore's questions as prompts of the generation engine: the edits of one source and instruction share everything
up to the edited image."""

from collections.abc import Sequence
from typing import Any

from edit_rl_jax.rewards.editscore.prompts import Image, Parts, Prompts, Question
from edit_rl_jax.vlm.engine.prompt import Prompt
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.image_prompts import ImagePrompts, common, digest
from edit_rl_jax.vlm.patches import ImageSettings

__all__ = ["Questions", "digest"]
PURPOSE = {"sc": 0, "pq": 1}
_INSTRUCTIONS = ("make it red", "Zoom", "7 more", "(none)", "“Wow”", "一 added", ".", "\tx")


class Questions:
    """Makes `Prompt`s of the questions about an edit, for one model's tokenizer, texts and image settings.

    `opening`: tokens with which every answer begins, as a part of the prompt.
    """

    def __init__(
        self,
        arch: Architecture,
        tokenizer: Any,
        prompts: Prompts,
        images: ImageSettings,
        opening: Sequence[int] = (),
    ):
        self.prompts, self.opening, self._make = prompts, tuple(opening), ImagePrompts(arch, tokenizer, images)
        # the tokens with which every prompt of a question begins, whatever the instruction and the images
        stems = {q: self._make.stem([self.parts(q, b"", b"", i)[0] for i in _INSTRUCTIONS]) for q in PURPOSE}
        both = common(list(stems.values()))
        self._heads = {q: (both, stem) for q, stem in stems.items()}

    def parts(self, question: Question, source: Image, edited: Image, instruction: str) -> Parts:
        """The prompt's text and images. Raises ValueError on an empty instruction."""
        return self.prompts.build(question, instruction, self.prompts.shown(question, source, edited))

    def prompt(self, question: Question, parts: Parts, key: str, item: int = 0) -> Prompt:
        """The prompt of `parts`. Raises ImageError or RecordError (ValueErrors), naming `key`."""
        named = dict(item=item, purpose=PURPOSE[question], heads=self._heads[question], opening=self.opening)
        return self._make.make(parts, key, after_last=len(self.prompts.shown("pq", b"", b"")) == 2, **named)
