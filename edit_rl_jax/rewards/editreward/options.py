"""What EditReward can be told: flags of the scripts, `rl.judge` of online RL."""

import dataclasses
from typing import Literal

from edit_rl_jax.rewards.base import option
from edit_rl_jax.rewards.editreward.prompts import Prompts

STORED = "; default: as it is stored with the model"


@dataclasses.dataclass(frozen=True)
class Options:
    """Settings of EditReward that scripts have as flags and RL under `rl.judge`."""

    prompts: str | Prompts | None = option(None, f"prompt texts, upstream:FOLDER for released weights{STORED}")
    fusion: Literal["", "mean", "min", "sum", "none"] = option("", f"how dimensions become one figure{STORED}")
    positions: Literal["", "mrope", "1d"] = option("", f"1d: as the released weights were trained{STORED}")
    rows: int = option(64, "prompts read side by side, two an edit", "[1, 1000000]")
