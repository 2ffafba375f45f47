"""The objective `sft`: the source's items are examples already; cross-entropy on their answers (as `editscore`)."""

from edit_rl_jax.data.example import Example
from edit_rl_jax.rewards.editscore.objective import loss

__all__ = ["loss", "to_examples"]


def to_examples(example: Example, seed: int = 0) -> list[Example]:
    """The example itself."""
    return [example]
