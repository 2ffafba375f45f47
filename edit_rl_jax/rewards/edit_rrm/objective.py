"""The objective `edit_rrm`: cross-entropy on the verifier's replies. Paper: arXiv 2604.27505 (its cold start)."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.records import RecordError, VerifierRecord, expect
from edit_rl_jax.ranges import knob
from edit_rl_jax.rewards.edit_rrm import prompts as texts
from edit_rl_jax.rewards.edit_rrm.prompts import MODES, Prompts
from edit_rl_jax.rewards.edit_rrm.replies import parse, write
from edit_rl_jax.rewards.editscore.prompts import END
from edit_rl_jax.vlm import cross_entropy

ALL = "all"


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what is learnt from a record."""

    mode: str = knob("think_verify", (*MODES, ALL))  # of prompt and reply (see `prompts`); all: each record in one of
    # them, so that one model knows all three


class Verifier:
    """The objective of a config (see `training.interfaces.Worded`)."""

    SECTIONS = {"verifier": Options}
    loss = staticmethod(cross_entropy.loss)

    def __init__(self, options: Options = Options()):
        self.options = options

    @classmethod
    def configured(cls, config: Any) -> "Verifier":
        """Reads `config.verifier`."""
        return cls(Options(**config.verifier.to_dict()))

    def choose_prompts(self, name: str, stored: Mapping[str, Any] | None) -> Prompts:
        """Chooses prompts by name, else as stored, else the default ones. Raises KeyError or ValueError."""
        return texts.choose(name, stored)

    def examples_with(self, prompts: str | Prompts) -> Callable[[VerifierRecord, int], list[Example]]:
        """Binds `to_examples` to one set of prompts (picklable)."""
        return partial(self.to_examples, prompts=texts.get(prompts))

    def to_examples(self, record: Any, seed: int = 0, *, prompts: str | Prompts = texts.DEFAULT) -> list[Example]:
        """Makes the example of a VerifierRecord: its reply, written anew in the one form that is learnt.

        Without a reply it is made of `meta["reasoning"]`, verdicts and score. seed: of the record, draws its mode.
        Raises RecordError for another kind of record, an empty instruction, and a reply that cannot be read or made.
        """
        record = expect(record, VerifierRecord)
        mode = MODES[seed % len(MODES)] if self.options.mode == ALL else self.options.mode
        reasoning, verdicts, score = record.meta.get("reasoning", ""), record.verdicts, record.score
        if record.reply:
            read = parse(record.reply, record.principles)
            if not read.valid:
                raise RecordError(record.key, "unreadable reply", read.problem)
            reasoning, verdicts, score = read.reasoning, read.verdicts, read.score
        if verdicts is None or score is None:
            raise RecordError(record.key, "no reply", "and no verdicts and score to make one of")
        try:
            parts = texts.get(prompts).build(record.source, record.edited, record.instruction, record.principles, mode)
            answer = write(reasoning, record.principles, [v or 0 for v in verdicts], score, mode)
        except ValueError as error:
            raise RecordError(record.key, str(error)) from None
        return [Example(parts, answer + END, f"{record.key}/{mode}")]
