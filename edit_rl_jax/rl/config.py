"""The config of online RL: every key of `training.config.default`, and `rl`."""

from ml_collections import ConfigDict

from edit_rl_jax.training import config as base
from edit_rl_jax.training.config import ConfigError


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
    r.text = 888  # tokens of an instruction with its chat; longer ones are cut
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


def check(config: ConfigDict) -> None:
    """Raises ConfigError, naming the key, for values that do not fit together."""
    r = config.rl
    samples = r.prompts * r.group
    if samples % config.rows:
        raise ConfigError(
            f"config key 'rows' is {config.rows}, which does not divide {r.prompts} prompts x {r.group} samples"
        )
    if samples // config.rows % r.updates:
        raise ConfigError(
            f"config key 'rl.updates' is {r.updates}, which does not divide {samples // config.rows} microbatches"
        )
    for key in ("success_bonus", "eval_sample_steps"):
        if r[key] < 0:
            raise ConfigError(f"config key 'rl.{key}' is {r[key]}, and must not be negative")
    if r.group < 2:
        raise ConfigError("config key 'rl.group' must be above 1: samples are compared with those of their group")
    if r.algorithm == "nft" and r.overlap:
        raise ConfigError(
            "config key 'rl.overlap': nft compares with the weights that drew the samples, which moved on"
        )
    if r.algorithm not in ("policy_gradient", "nft"):
        raise ConfigError(f"config key 'rl.algorithm' is policy_gradient or nft; got '{r.algorithm}'")
    if config.model.trainable == "full" and r.loss.kl_weight > 0:
        raise ConfigError("config key 'model.trainable' is full: a KL wants a reference, the policy without its LoRA")
    if not config.model.init_from:
        raise ConfigError("config key 'model.init_from' must name the editor's folder")
    if config.steps <= 0:
        raise ConfigError("config key 'steps' must be above 0: RL counts rollouts")
