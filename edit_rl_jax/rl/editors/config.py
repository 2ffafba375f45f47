"""The config of online RL: the sections of every run and of the editor's model, and `rl`."""

import dataclasses
from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.names import ConfigError
from edit_rl_jax.ranges import INT32_OR_0, knob, problem
from edit_rl_jax.rewards import judges
from edit_rl_jax.rl.advantages import AdvantageConfig
from edit_rl_jax.rl.editors.losses import PolicyGradient, noisiest
from edit_rl_jax.rl.editors.nft import DiffusionNFT
from edit_rl_jax.training import config_keys
from edit_rl_jax.training.config_check import check_values


@dataclasses.dataclass(frozen=True)
class RL:
    """Says what a rollout is and what it is rewarded for."""

    prompts: int = knob(48, "[1, 65536]")  # (source, instruction) pairs of a rollout
    group: int = knob(12, "[2, 4096]")  # samples of each: they are compared with those of their group
    updates: int = knob(2, "[1, 65536]")  # optimizer updates of a rollout, each on its share of the microbatches
    # nft takes of rl.loss train_steps, noisiest, kl_weight and beta
    algorithm: str = knob("policy_gradient", ("policy_gradient", "nft"))
    same_noise: bool = knob(False)  # a group starts from one noise
    old: float = knob(0.0, "[0, 1]")  # nft: share of the sampling weights that stays at each rollout: they are a moving
    # average of the trained ones
    old_rise: float = knob(0.0, "[0, 1]")  # the share is this times the number of rollouts done, at most `old`; 0 =
    # always `old`
    old_from: int = knob(0, "[0, 2147483647]")  # rollouts after which that begins; until then nothing stays
    reference_every: int = knob(0, "[0, 2147483647]")  # the KL's reference moves to the policy after so many rollouts;
    # 0 = the policy without its LoRA, for good
    # share of the reference that stays then: with 1 above, a moving average
    reference_stays: float = knob(0.0, "[0, 1)")
    overlap: bool = knob(False)  # a server or the host scores while the next rollout runs, with weights one behind

    size: tuple = knob((512, 512))  # pixels of sources and edits: sources are cropped and resized to it
    reference_pixels: int = knob(0, "[0, 1e9]")  # of what the editor reads of a source, at most; 0: all of `size`
    text: int = knob(888, "[1, 32768]")  # tokens of an instruction with its chat; longer ones are refused
    steps: int = knob(20, "[1, 1000]")
    solver: str = knob("euler", ("euler", "dpm2"))
    negative: str = knob("")  # the other branches' instruction
    negative_system: str = knob("You are a helpful assistant.")
    window: int = knob(3, "[0, 1000]")  # noisy steps, which are those that are trained; all = steps
    window_range: tuple = knob((0, 0))  # they lie in [low, high); (0, 0) = anywhere

    rewards: tuple = knob((("editscore", 1.0),))  # (name of rl.rewards or "my_pkg.mod:Class", weight)
    dimensions: tuple = knob(())  # (name, weight) of the dimensions of the judges among these that their rewards are
    # the sum of; () = the overall score
    success_bonus: float = knob(0.0, "[0, 1e6]")  # a judge's reward: (overall / its scale + bonus * success) / (1 +
    # bonus)
    oracle_samples: int = knob(0, "[0, 1000000]")  # samples of a rollout that the oracle also scores, for the curves;
    # built-in world only

    eval_prompts: int = knob(512, "[0, 1000000]")  # held-out prompts, one sample each without noise in its steps,
    # before and after
    # pixels of sources and edits of evaluations; (0, 0) = `size`: a rollout may do with smaller ones
    eval_size: tuple = knob((0, 0))
    eval_sample_steps: int = knob(0, "[0, 1000]")  # of denoising; 0 = `steps`: a rollout may do with fewer, as in
    # Flow-GRPO
    eval_during: int = knob(0, "[0, 1000000]")  # of these, so many at every `eval.every` steps
    report_prompts: int = knob(12, "[0, 1000]")  # shown before and after


@dataclasses.dataclass(frozen=True)
class WindowNoise:
    """Says which noise the steps of the window have (see `flow.steps.Noise`)."""

    kind: str = knob("cps", ("flow_sde", "dance", "cps"))
    level: float = knob(0.8, "[0, 100]")


@dataclasses.dataclass(frozen=True)
class Judge:
    """Names the reward model, or the server of "server"."""

    model: str = knob("")
    base: str = knob("")
    server: str = knob("")  # URL
    tensor: int = knob(1, "[1, 65536]")  # chips that share a copy of its weights; there is a copy for each so many


@dataclasses.dataclass(frozen=True)
class Written:
    """Says how EditScore, or a judge that only its folder names, is asked; another judge has its own `Options`."""

    prompts: str = knob("")
    passes: int = knob(1, "[1, 1000]")
    temperature: float = knob(0.0, "[0, 100]")
    expected: str = knob("", ("", "reasoned", "empty"))  # expected scores instead of written ones
    max_new_tokens: int = knob(512, "[1, 65536]")
    rows: int = knob(64, "[1, 65536]")


SECTIONS = {
    "rl": RL, "rl.loss": (PolicyGradient, DiffusionNFT), "rl.schedule": Schedule, "rl.guidance": Guidance,
    "rl.noise": WindowNoise, "rl.advantage": AdvantageConfig,
}  # fmt: skip


def sections(kind: str, judge: str = "") -> config_keys.Sections:
    """Gives the sections of RL of a kind of editor, by a judge (`rewards.judges`; "": one that writes)."""
    asked = Written if judge in ("", judges.DEFAULT) else judges.kind(judge).Options
    judging = {"rl.judge": (Judge, asked)}
    return config_keys.together(config_keys.sections(kind, config_keys.REINFORCEMENT), SECTIONS, judging)


def default(kind: str = "omnigen2", judge: str = "") -> ConfigDict:
    """Makes a config with every key at its default; locked. `steps` counts rollouts, `rows` the samples of a
    microbatch.

    `model` is the editor, `data.train` the prompts' source (see `rl.prompts`). judge: that rewards, where it is not
    EditScore.
    """
    config = config_keys.make(sections(kind, judge))
    config.model.kind, config.objective = kind, config_keys.REINFORCEMENT
    if judge:
        config.rl.rewards = ((judge, 1.0),)
    return config.lock()


def evaluation_size(r: Any) -> tuple[int, int]:
    """Gives the pixels of the images of evaluations."""
    return tuple(r.eval_size if any(r.eval_size) else r.size)


def _judge_of(r: Any) -> str:
    """Finds the judge whose options stand in `rl.judge`, "" for one that writes. Raises ConfigError for the verifier
    where its options do not: without principles it is another judge."""
    _check_rewards(r.get("rewards"))
    for name in [name for name, _ in r.rewards if ":" in name or name in judges.JUDGES.keys() - {judges.DEFAULT}]:
        found = getattr(judges.kind(name), "Options", None)
        if found and (missing := {f.name for f in dataclasses.fields(found)} - set(r.get("judge", ()))):
            if "principles" in missing:
                raise ConfigError(
                    f"config key 'rl.judge' has no 'principles', an option of the reward '{name}': a config for it "
                    f"starts from edit_rl_jax.rl.editors.config.default(kind, '{name}')"
                )
        elif found:
            return name
    return ""


def _check_pair(key: str, pair: Any, kinds: tuple[type, ...], allowed: str) -> None:
    if len(pair) != 2 or not all(type(n) in kinds for n in pair):
        raise ConfigError(f"config key '{key}' holds two numbers{' (whole)' * (float not in kinds)}, got {pair}")
    for number in pair:
        if wrong := problem(number, allowed):
            raise ConfigError(f"config key '{key}' {wrong} in {tuple(pair)}")


def _check_weights(key: str, pairs: Any, example: str, least: int) -> None:
    form = lambda r: isinstance(r, (tuple, list)) and len(r) == 2 and type(r[0]) is str and type(r[1]) in (int, float)
    if not isinstance(pairs, (tuple, list)) or len(pairs) < least or not all(map(form, pairs)):
        raise ConfigError(f"config key '{key}' holds pairs of name and weight, (('{example}', 1.0),); got {pairs}")
    for name, weight in pairs:
        if wrong := problem(weight, "[-1e6, 1e6]"):
            raise ConfigError(f"config key '{key}': the weight of '{name}' {wrong}")


def _check_rewards(rewards: Any) -> None:
    _check_weights("rl.rewards", rewards, "oracle", least=1)


def _check_dimensions(r: Any) -> None:
    _check_weights("rl.dimensions", r.dimensions, "consistency", least=0)
    names = [name for name, _ in r.dimensions]
    if doubled := {name for name in names if names.count(name) > 1}:
        raise ConfigError(f"config key 'rl.dimensions' names '{min(doubled)}' twice")
    if names and not any(weight for _, weight in r.dimensions):
        raise ConfigError("config key 'rl.dimensions' gives no dimension a weight")
    if names and r.success_bonus:
        raise ConfigError("config key 'rl.success_bonus' belongs to the overall score: say 0 beside rl.dimensions")


def _check_trained(r: Any, steps: int, name: str) -> None:
    if r.loss.train_steps > (few := noisiest(steps, r.loss.noisiest)):
        many = f"the noisiest {few} of {steps}" if few < steps else f"{steps}"
        raise ConfigError(f"config key 'rl.loss.train_steps' is {r.loss.train_steps}, of {many} {name}")


def _check_copies(config: Any) -> None:
    """The weights that sample and the KL's reference move where there are any."""
    r = config.rl
    if r.algorithm != "nft" and r.old:
        raise ConfigError("config key 'rl.old' belongs to nft: a policy gradient samples with the trained weights")
    if r.old_rise and not r.old:
        raise ConfigError("config key 'rl.old_rise' rises to rl.old, which is 0")
    if r.old_from and not r.old_rise:
        raise ConfigError("config key 'rl.old_from' is when rl.old_rise begins, which is 0")
    if r.reference_every and not r.loss.kl_weight:
        raise ConfigError("config key 'rl.reference_every' moves the reference of a KL: rl.loss.kl_weight is 0")
    if r.reference_stays and not r.reference_every:
        raise ConfigError("config key 'rl.reference_stays' belongs to rl.reference_every, which is 0")
    if config.model.trainable == "full" and r.loss.kl_weight > 0 and not r.reference_every:
        raise ConfigError(
            "config key 'model.trainable' is full: a KL wants a reference, the policy without its LoRA, or one that "
            "moves (rl.reference_every)"
        )
    a = r.advantage
    if a.std == "none" and not a.over_batch and a.eps != AdvantageConfig.eps:
        raise ConfigError("config key 'rl.advantage.eps' is added to a standard deviation: rl.advantage.std is none")


def _check_steps(r: Any) -> None:
    """The noisy steps lie among all, and those that are trained among them (see `flow.sampling.Denoising`)."""
    low, high = r.window_range
    if r.algorithm == "nft":
        if r.window:
            raise ConfigError(f"config key 'rl.window' is {r.window}: nft draws its samples without noise, say 0")
        _check_trained(r, r.steps, "rl.steps")
        return
    last = r.steps - (r.noise.kind == "cps" or r.noise.kind == "dance" and not high)
    if (low, high) == (0, 0):
        high = last
    elif not low < high <= last:
        raise ConfigError(f"config key 'rl.window_range': no noisy steps [{low}, {high}) among the first {last} steps")
    if not 1 <= r.window <= high - low:
        raise ConfigError(
            f"config key 'rl.window' is {r.window}: noisy steps lie in [{low}, {high}) of {r.steps} steps"
        )
    _check_trained(r, r.window, "noisy steps")
    if wrong := problem(r.noise.level, "(0, 1]" if r.noise.kind == "cps" else "(0, 100]"):
        raise ConfigError(f"config key 'rl.noise.level' {wrong}")


def check(config: ConfigDict) -> None:
    """Raises ConfigError, naming the key, for values that cannot work or do not fit together."""
    if not isinstance(config.get("rl"), ConfigDict):
        raise ConfigError(
            "the config has no section 'rl': one of online RL starts from edit_rl_jax.rl.editors.config.default()"
        )
    check_values(config, sections(config.model.kind, _judge_of(config.rl)))
    r = config.rl
    _check_pair("rl.size", r.size, (int,), "[1, 16384]")
    _check_pair("rl.eval_size", r.eval_size, (int,), "[0, 16384]")
    if any(r.eval_size) and not all(r.eval_size):
        raise ConfigError(f"config key 'rl.eval_size' is {tuple(r.eval_size)}: two sides, or (0, 0) for rl.size")
    _check_pair("rl.loss.clip", r.loss.clip, (int, float), "[0, 1000]")
    _check_pair("rl.window_range", r.window_range, (int,), "[0, 1000]")
    if r.algorithm == "nft" and r.overlap:
        raise ConfigError(
            "config key 'rl.overlap': nft compares with the weights that drew the samples, which moved on"
        )
    _check_steps(r)
    _check_dimensions(r)
    if r.guidance.start > r.guidance.stop:
        raise ConfigError(f"config key 'rl.guidance.start' is {r.guidance.start}, after stop={r.guidance.stop}")
    if config.steps <= 0:
        raise ConfigError("config key 'steps' must be above 0: RL counts rollouts")
    if wrong := problem(config.steps * r.updates, INT32_OR_0):
        raise ConfigError(f"config key 'steps' times rl.updates {wrong}")
    samples = r.prompts * r.group
    if samples % config.rows:
        raise ConfigError(
            f"config key 'rows' is {config.rows}, which does not divide {r.prompts} prompts x {r.group} samples"
        )
    if samples // config.rows % r.updates:
        raise ConfigError(
            f"config key 'rl.updates' is {r.updates}, which does not divide {samples // config.rows} microbatches"
        )
    _check_copies(config)
    if not config.model.init_from:
        raise ConfigError("config key 'model.init_from' must name the editor's folder")
