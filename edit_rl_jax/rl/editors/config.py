"""The config of online RL: every key of `training.config.default`, and `rl`."""

from typing import Any

from ml_collections import ConfigDict

from edit_rl_jax.names import ConfigError
from edit_rl_jax.ranges import INT32_OR_0, problem
from edit_rl_jax.training import config as base
from edit_rl_jax.training.config_check import check_values

# As `training.config.RANGES`, of the numbers of `rl`.
RANGES = base.RANGES | {
    "rl.prompts": "[1, 65536]",
    "rl.group": "[2, 4096]",  # samples are compared with those of their group
    "rl.updates": "[1, 65536]",
    "rl.loss.clip_elements": "[0, 1000000000]",
    "rl.loss.divergence": "[1e-30, 1e6]",
    "rl.loss.kl_weight": "[0, 1e6]",
    "rl.loss.train_steps": "[0, 1000]",
    "rl.loss.beta": "[1e-6, 1e6]",
    "rl.old": "[0, 1]",
    "rl.text": "[1, 32768]",
    "rl.steps": "[1, 1000]",
    "rl.schedule.shift": "[1e-6, 1e6]",
    "rl.schedule.base_res": "[1, 65536]",
    "rl.guidance.text": "[0, 1000]",
    "rl.guidance.image": "[0, 1000]",
    "rl.guidance.start": "[0, 1]",
    "rl.guidance.stop": "[0, 1]",
    "rl.noise.level": "[0, 100]",
    "rl.window": "[0, 1000]",
    "rl.advantage.clip": "[1e-6, 1e6]",
    "rl.advantage.eps": "[0, 1e6]",
    "rl.advantage.min_std": "[0, 1e6]",
    "rl.success_bonus": "[0, 1e6]",
    "rl.judge.passes": "[1, 1000]",
    "rl.judge.temperature": "[0, 100]",
    "rl.judge.max_new_tokens": "[1, 65536]",
    "rl.judge.rows": "[1, 65536]",
    "rl.judge.tensor": "[1, 65536]",
    "rl.oracle_samples": "[0, 1000000]",
    "rl.eval_prompts": "[0, 1000000]",
    "rl.eval_sample_steps": "[0, 1000]",
    "rl.eval_during": "[0, 1000000]",
    "rl.report_prompts": "[0, 1000]",
}

CHOICES = base.CHOICES | {
    "rl.algorithm": ("policy_gradient", "nft"),
    "rl.loss.objective": ("ppo", "guard", "dppo"),
    "rl.loss.kl": ("upstream", "gaussian", "velocity"),
    "rl.loss.reweight": ("none", "mean", "sum"),
    "rl.solver": ("euler", "dpm2"),
    "rl.schedule.kind": ("linear", "static", "dynamic"),
    "rl.noise.kind": ("flow_sde", "dance", "cps"),
    "rl.advantage.std": ("group", "global"),
    "rl.judge.expected": ("", "reasoned", "empty"),
}


def default() -> ConfigDict:
    """Every key that exists, with its default; locked. `steps` counts rollouts, `rows` the samples of a microbatch.

    `model` is the editor (a folder in OmniGen2's layout), `data.train` the prompts' source (see `rl.prompts`).
    """
    c, r = base.default(), ConfigDict()
    c.objective = "reinforcement"
    r.prompts = 48  # (source, instruction) pairs of a rollout
    r.group = 12  # samples of each
    r.updates = 2  # optimizer updates of a rollout, each on its share of the microbatches
    r.algorithm = "policy_gradient"  # policy_gradient | nft
    r.loss = ConfigDict()  # see rl.losses.PolicyGradient; nft takes train_steps, kl_weight and beta
    r.loss.objective = "ppo"  # ppo | guard | dppo
    r.loss.clip = (1e-4, 1e-4)  # the ratio stays in [1 - low, 1 + high]
    r.loss.clip_elements = 0  # latent elements at which clip holds, elsewhere it goes with 1 / sqrt; 0 = not scaled
    r.loss.divergence = 1e-5  # dppo
    r.loss.kl = "upstream"  # upstream | gaussian | velocity
    r.loss.kl_weight = 0.0
    r.loss.reweight = "none"  # none | mean | sum: TempFlow's weights
    r.loss.train_steps = 0  # of the noisy steps, drawn for each microbatch; 0 = all
    r.loss.beta = 1.0  # nft
    r.same_noise = False  # a group starts from one noise
    r.old = 0.0  # nft: share of the sampling weights that stays at each rollout
    r.overlap = False  # a server or the host scores while the next rollout runs, with weights one rollout behind

    r.size = (512, 512)  # pixels of sources and edits: sources are cropped and resized to it
    r.text = 888  # tokens of an instruction with its chat; longer ones are refused
    r.steps = 20
    r.solver = "euler"
    r.schedule = ConfigDict(dict(kind="dynamic", shift=3.0, base_res=320))
    r.guidance = ConfigDict(dict(text=1.0, image=1.0, start=0.0, stop=1.0))
    r.negative = ""  # the other branches' instruction
    r.negative_system = "You are a helpful assistant."
    r.noise = ConfigDict(dict(kind="cps", level=0.8))  # of the window: flow_sde | dance | cps
    r.window = 3  # noisy steps, which are those that are trained; all = steps
    r.window_range = (0, 0)  # they lie in [low, high); (0, 0) = anywhere
    r.advantage = ConfigDict(dict(std="group", clip=5.0, eps=1e-4, min_std=0.0))

    r.rewards = (("editscore", 1.0),)  # (name of rl.rewards or "my_pkg.mod:Class", weight)
    r.success_bonus = 0.0  # a judge's reward: (overall / 25 + bonus * [SC both >= 20, PQ both >= 18]) / (1 + bonus)
    r.judge = ConfigDict()  # the reward model of "editscore", the server of "server"
    r.judge.model = ""
    r.judge.base = ""
    r.judge.server = ""  # URL
    r.judge.prompts = ""
    r.judge.passes = 1
    r.judge.temperature = 0.0
    r.judge.expected = ""  # "" | reasoned | empty: expected scores instead of written ones
    r.judge.max_new_tokens = 512
    r.judge.rows = 64
    r.judge.tensor = 1  # chips that share a copy of its weights; there is a copy for each so many
    r.oracle_samples = 0  # samples of a rollout that the oracle also scores, for the curves; built-in world only

    r.eval_prompts = 512  # held-out prompts, one sample each without noise in its steps, before and after
    r.eval_sample_steps = 0  # of denoising; 0 = `steps`: a rollout may do with fewer, as in Flow-GRPO
    r.eval_during = 0  # of these, so many at every `eval.every` steps
    r.report_prompts = 12  # shown before and after
    with c.unlocked():
        c.rl, c.model.kind = r, "omnigen2"
    return c.lock()


def _check_pair(key: str, pair: Any, kinds: tuple[type, ...], allowed: str) -> None:
    if len(pair) != 2 or not all(type(n) in kinds for n in pair):
        raise ConfigError(f"config key '{key}' holds two numbers{' (whole)' * (float not in kinds)}, got {pair}")
    for number in pair:
        if wrong := problem(number, allowed):
            raise ConfigError(f"config key '{key}' {wrong} in {tuple(pair)}")


def _check_rewards(rewards: Any) -> None:
    form = lambda r: isinstance(r, (tuple, list)) and len(r) == 2 and type(r[0]) is str and type(r[1]) in (int, float)
    if not rewards or not all(map(form, rewards)):
        raise ConfigError(f"config key 'rl.rewards' holds pairs of name and weight, (('oracle', 1.0),); got {rewards}")
    for name, weight in rewards:
        if wrong := problem(weight, "[-1e6, 1e6]"):
            raise ConfigError(f"config key 'rl.rewards': the weight of '{name}' {wrong}")


def _check_steps(r: Any) -> None:
    """The noisy steps lie among all, and those that are trained among them (see `flow.sampling.Sampler`)."""
    low, high = r.window_range
    if r.algorithm == "nft":
        if r.window:
            raise ConfigError(f"config key 'rl.window' is {r.window}: nft draws its samples without noise, say 0")
        if r.loss.train_steps > r.steps:
            raise ConfigError(f"config key 'rl.loss.train_steps' is {r.loss.train_steps}, of {r.steps} rl.steps")
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
    if r.loss.train_steps > r.window:
        raise ConfigError(f"config key 'rl.loss.train_steps' is {r.loss.train_steps}, of {r.window} noisy steps")
    if wrong := problem(r.noise.level, "(0, 1]" if r.noise.kind == "cps" else "(0, 100]"):
        raise ConfigError(f"config key 'rl.noise.level' {wrong}")


def check(config: ConfigDict) -> None:
    """Raises ConfigError, naming the key, for values that cannot work or do not fit together."""
    if not isinstance(config.get("rl"), ConfigDict):
        raise ConfigError(
            "the config has no section 'rl': one of online RL starts from edit_rl_jax.rl.editors.config.default()"
        )
    check_values(config, default(), RANGES, CHOICES)
    r = config.rl
    _check_pair("rl.size", r.size, (int,), "[1, 16384]")
    _check_pair("rl.loss.clip", r.loss.clip, (int, float), "[0, 1000]")
    _check_pair("rl.window_range", r.window_range, (int,), "[0, 1000]")
    _check_rewards(r.rewards)
    if r.algorithm == "nft" and r.overlap:
        raise ConfigError(
            "config key 'rl.overlap': nft compares with the weights that drew the samples, which moved on"
        )
    _check_steps(r)
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
    if config.model.trainable == "full" and r.loss.kl_weight > 0:
        raise ConfigError("config key 'model.trainable' is full: a KL wants a reference, the policy without its LoRA")
    if not config.model.init_from:
        raise ConfigError("config key 'model.init_from' must name the editor's folder")
