"""Replies by a folder of our own: the generation engine draws several about each edit, by temperature."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax.data.principles import Principles
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.edit_rrm import prompts
from edit_rl_jax.rewards.edit_rrm.writers import Asking
from edit_rl_jax.rewards.writing import ended
from edit_rl_jax.vlm import loading
from edit_rl_jax.vlm.engine.engine import Engine
from edit_rl_jax.vlm.engine.prompt import Prompt
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.image_prompts import ImagePrompts, digest


class OwnModel:
    """A model or adapter folder that writes replies.

    Its prompts are those named, else those stored with it. The edits of one source and instruction share their prefill,
    the replies about one edit too; the random numbers of a reply come from its content and number. rows: replies
    written side by side. Raises WeightsError, KeyError for unknown prompts, FileNotFoundError.
    """

    def __init__(
        self,
        folder: str | Path,
        base: str | Path | None = None,
        *,
        named: str = "",
        temperature: float = 1.0,
        top_p: float = 1.0,
        max_tokens: int = 512,
        seed: int = 0,
        rows: int = 32,
    ):
        found = loading.open_model(folder, base)
        stored = found.metadata.get("prompts") if found.metadata.get("objective") == "edit_rrm" else None
        try:
            self.prompts = prompts.choose(named, stored)
        except ValueError as error:
            raise WeightsError(f"{found.where}: {error}") from None
        self.tokenizer, self.max_tokens = found.tokenizer, max_tokens
        sampling = ended(TokenSampling(temperature, 0, top_p, max_tokens), found.tokenizer)
        self._prompts = ImagePrompts(found.cfg, found.tokenizer, found.images)
        self._engine = Engine(found.load(), sampling, slots=rows, seed=seed)

    def write(
        self, items: Sequence[tuple[Asking, Principles]], count: int
    ) -> Iterator[tuple[int, list[str] | str, int, int]]:
        """Yields (place of an edit, its `count` replies or why there are none, tokens read, tokens written) as they get
        ready."""
        made: list[tuple[int, Prompt]] = []
        for place, (record, principles) in enumerate(items):
            try:
                made.append((place, self._prompt(record, principles)))
            except ValueError as error:  # RecordError and ImageError are ValueErrors
                yield place, str(error), 0, 0
        order = sorted(made, key=lambda m: (items[m[0]][0].group, digest(items[m[0]][0].source), m[0]))
        for one in self._engine.generate([prompt for _, prompt in order], answers=count):
            place, prompt = order[one.index]
            if one.problem is not None:
                yield place, str(one.problem), 0, 0
                continue
            texts = [self.tokenizer.decode(a.tokens[:-1] if a.stopped else a.tokens) for a in one.answers]
            yield place, texts, len(prompt.tokens), sum(len(a.tokens) for a in one.answers)

    def _prompt(self, record: Asking, principles: Principles) -> Prompt:
        parts: Any = self.prompts.build(record.source, record.edited, record.instruction, principles)
        return self._prompts.make(parts, record.key, item=int.from_bytes(digest(*parts)[:4], "big") >> 1)
