"""The config of a verifier's RL: the sections of every run and of the model, and `rl`."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax.names import ConfigError
from edit_rl_jax.ranges import knob, problem
from edit_rl_jax.rewards.edit_rrm.prompts import MODES
from edit_rl_jax.rl.advantages import AdvantageConfig
from edit_rl_jax.rl.vlm.losses import TokenLoss
from edit_rl_jax.training import config_keys
from edit_rl_jax.training.config_check import check_buckets, check_values

ALGORITHMS = ("gcpo", "grpo_pointwise", "verdicts")


@dataclasses.dataclass(frozen=True)
class RL:
    """Says what a rollout is and what it learns from."""

    algorithm: str = knob("gcpo", ALGORITHMS)  # gcpo: win shares between a pair's images | grpo_pointwise: nearness of
    # the score to the image's own label | verdicts: share of right verdicts. The last two normalise as `rl.advantage`
    pairs: int = knob(16, "[1, 65536]")  # human pairs of a rollout, ties left out
    group: int = knob(8, "[2, 4096]")  # N replies an image: they are compared with each other
    updates: int = knob(1, "[1, 65536]")  # of a rollout, each on its share of the pairs
    invalid: str = knob("mask", ("mask", "lose"))  # replies that cannot be read: see `advantages.win_shares`; lose with
    # another algorithm: reward 0
    mode: str = knob("think_verify", MODES)
    prompts: str = knob("")  # named texts; "" = those stored with the adapter or base, else the standard ones
    principles: str = knob("")  # file of sets (`data.principles`) for records without any
    temperature: float = knob(1.0, "[1e-3, 100]")  # ratios are of the distribution that it makes; all tokens
    max_new_tokens: int = knob(512, "[1, 65536]")
    slots: int = knob(64, "[1, 65536]")  # replies written side by side
    shared: int = knob(512, "[1, 65536]")  # tokens before a pair's second image, padded to this; longer ones are bad
    own: int = knob(64, "[1, 65536]")  # tokens from it on, as well
    microbatches: int = knob(16, "[1, 65536]")  # of `rows` rows that an update may take; what is empty is not run
    eval_pairs: int = knob(0, "[0, 1000000]")  # held-out pairs, N replies an image, before and after
    report_pairs: int = knob(4, "[0, 1000]")  # of these, shown with a reply of each image


SECTIONS = {"rl": RL, "rl.loss": TokenLoss, "rl.advantage": AdvantageConfig}


def sections(kind: str) -> config_keys.Sections:
    """Gives the sections of RL of a kind of model."""
    return config_keys.together(config_keys.sections(kind, config_keys.REPLIES), SECTIONS)


def default(kind: str = "qwen2_5_vl") -> ConfigDict:
    """Makes a config with every key at its default; locked. `steps` counts rollouts."""
    config = config_keys.make(sections(kind))
    config.model.kind, config.objective, config.data.train = kind, config_keys.REPLIES, "editworld_preferences"
    return config.lock()


def check(config: Any) -> None:
    """Raises ConfigError, naming the key, for values that cannot work or do not fit together."""
    if not isinstance(config.get("rl"), ConfigDict) or "pairs" not in config.rl:
        raise ConfigError("no config of a verifier's RL: one starts from edit_rl_jax.rl.vlm.config.default()")
    check_values(config, sections(config.model.kind))
    check_buckets(
        config.data.buckets, {"tokens": 1, "vision rows": 1, "patch slots a vision row": 1, "answer tokens": 1}
    )
    r, clip = config.rl, config.rl.loss.clip
    if len(config.data.buckets) != 1:
        raise ConfigError("config key 'data.buckets' holds one bucket here: all rows of an update have one shape")
    if len(clip) != 2 or any(problem(c, "[0, 1000]") for c in clip):
        raise ConfigError(f"config key 'rl.loss.clip' holds two numbers on [0, 1000], got {tuple(clip)}")
    if r.algorithm == "verdicts" and r.mode == "think":
        raise ConfigError("config key 'rl.algorithm' is verdicts: replies of rl.mode think have none")
    a, plain = r.advantage, AdvantageConfig()
    wrong = [f.name for f in dataclasses.fields(plain) if a[f.name] != getattr(plain, f.name)]
    if wrong and r.algorithm == "gcpo":
        raise ConfigError(f"config key 'rl.advantage.{wrong[0]}' has no say in gcpo: win shares are not normalised")
    if a.decoupled:
        raise ConfigError("config key 'rl.advantage.decoupled' has no say here: a reply has one reward")
    if config.steps <= 0:
        raise ConfigError("config key 'steps' must be above 0: RL counts rollouts")
    if r.pairs % r.updates:
        raise ConfigError(f"config key 'rl.updates' is {r.updates}, which does not divide {r.pairs} rl.pairs")
    longest, most = r.shared + r.own + r.max_new_tokens, config.data.buckets[0]
    if longest > most[0] or r.max_new_tokens > most[3]:
        raise ConfigError(
            f"config key 'data.buckets': {tuple(most)} does not take a reply of rl.max_new_tokens after rl.shared + "
            f"rl.own tokens, {longest} in all"
        )
