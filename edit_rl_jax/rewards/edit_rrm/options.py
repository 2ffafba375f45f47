"""What the verifier can be told: flags of the scripts, `rl.judge` of online RL."""

import dataclasses
from typing import ClassVar, Literal

from edit_rl_jax.ranges import INT32_OR_0
from edit_rl_jax.rewards.base import option
from edit_rl_jax.rewards.edit_rrm.prompts import Prompts
from edit_rl_jax.rewards.edit_rrm.replies import WEIGHTS
from edit_rl_jax.rewards.writing import Sampled


@dataclasses.dataclass(frozen=True)
class Options(Sampled):
    """Settings of the verifier that scripts have as flags and RL under `rl.judge`."""

    WORLD: ClassVar = {"max_new_tokens": 384}  # of the benchmark editworld, whose replies are under 300 tokens

    prompts: str | Prompts | None = option(None, "prompt texts; default: those stored with the model")
    mode: Literal["think", "verify", "think_verify"] = option("think_verify", "what a reply holds (see prompts.py)")
    reward: Literal["score", "verdicts", "categories"] = option("score", "which figure is the overall one")
    weight_follow: float = option(WEIGHTS["Follow"], "of a category, for --reward categories", "[0, 1e6]")
    weight_keep: float = option(WEIGHTS["Keep"], "", "[0, 1e6]")
    weight_quality: float = option(WEIGHTS["Quality"], "", "[0, 1e6]")
    weight_score: float = option(0.0, "of the final score beside them, as a share of 10", "[0, 1e6]")
    principles: str = option("", "file of sets of principles, for edits that bring none (see data/principles.py)")
    expected: bool = option(False, "a verdict is the probability of a yes, not what was written")
    constrained: bool = option(False, "only a valid reply can be written")
    passes: int = option(1, "replies to an edit, averaged; 1 is greedy unless sampled", "[1, 1000]")
    retries: int = option(2, "sampled replies that cannot be read are written anew", "[0, 1000]")
    temperature: float | None = option(None, "default 0 (greedy) for one pass, 0.7 for more", "[0, 100]")
    top_k: int = option(20, allowed=INT32_OR_0)
    top_p: float = option(0.9, allowed="(0, 1]")
    max_new_tokens: int = option(1024, allowed="[1, 100000]")
    rows: int = option(32, "replies written side by side", "[1, 1000000]")
    seed: int = option(0, allowed=INT32_OR_0)

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the categories, by name, and of the score, where it has one."""
        score = {"score": self.weight_score} if self.weight_score else {}
        return {"Follow": self.weight_follow, "Keep": self.weight_keep, "Quality": self.weight_quality} | score
