"""What EditScore can be told: flags of the scripts, `rl.judge` of online RL."""

import dataclasses
from typing import Literal

from edit_rl_jax.ranges import INT32_OR_0
from edit_rl_jax.rewards.base import option
from edit_rl_jax.rewards.editscore.prompts import Prompts
from edit_rl_jax.rewards.writing import Sampled


@dataclasses.dataclass(frozen=True)
class Options(Sampled):
    """Settings of EditScore that scripts have as flags and RL under `rl.judge`."""

    prompts: str | Prompts | None = option(None, "prompt texts; default: those stored with the model")
    passes: int = option(1, "answers a question, averaged; 1 is greedy unless sampled", "[1, 1000]")
    reduction: Literal["average_last", "average_first"] = option("average_last", "of the passes (see aggregate.py)")
    expected: Literal["", "reasoned", "empty"] = option("", "expected scores, after a reasoning or without")
    constrained: bool = option(False, "only a valid reply can be written")
    retries: int = option(2, "sampled answers that cannot be read are written anew", "[0, 1000]")
    temperature: float | None = option(None, "default 0 (greedy) for one pass, 0.7 for more", "[0, 100]")
    top_k: int = option(20, allowed=INT32_OR_0)
    top_p: float = option(0.9, allowed="(0, 1]")
    max_new_tokens: int = option(512, allowed="[1, 100000]")
    rows: int = option(32, "answers written side by side", "[1, 1000000]")
    seed: int = option(0, allowed=INT32_OR_0)
