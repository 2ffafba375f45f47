"""Rewards of RL: of a rollout's images, a value in about [0, 1] and whether it is valid. Several are added by weight.

A reward is a class with `__init__(config, mesh)` and `__call__(samples) -> Scores`, by name or "my_pkg.mod:Class"; a
judge (`rewards.judges`), by its name or class, stands for what it says of the model `rl.judge.model`: its overall
score, or the dimensions of `rl.dimensions` by weight.
On one process images stay on the device for rewards that take them there; with several, each process scores its share
of them, on its own devices or its host, and the values are gathered.
"""

import dataclasses
import functools
import os
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Bool, Float, UInt8

from edit_rl_jax.names import ConfigError, resolve
from edit_rl_jax.rewards import judges, oracle
from edit_rl_jax.rewards.base import Dimension, Edit, Judgement
from edit_rl_jax.rewards.serving.client import TOKEN, RewardClient
from edit_rl_jax.rewards.serving.service import ServiceError
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.sharding import make_mesh

SCALE = oracle.SCALE


class Scores(NamedTuple):
    """values fp32 [N]; those that are not valid mean nothing. each, spread: fp32 [N, D] of the reward's `dimensions` (a
    judge's figures as shares of their scales, and their standard deviations), NaN where there is none; None for a
    reward without dimensions."""

    values: Float[np.ndarray, " N"]
    valid: Bool[np.ndarray, " N"]
    each: Float[np.ndarray, "N D"] | None = None
    spread: Float[np.ndarray, "N D"] | None = None


Weighted = tuple[tuple[str, float], ...]  # names of dimensions and their weights


@dataclasses.dataclass(frozen=True)
class Samples:
    """Edited images u8 [N, H, W, 3], on the device or the host, and the prompt of each."""

    prompts: Sequence[Prompt]
    images: UInt8[Array, "N H W 3"] | UInt8[np.ndarray, "N H W 3"]

    @functools.cached_property
    def host(self) -> UInt8[np.ndarray, "N H W 3"]:
        """On the host."""
        return np.asarray(self.images)

    def on_device(self, place: NamedSharding | None = None) -> list[UInt8[Array, "H W 3"]]:
        """Puts each image by itself on the device, or on all devices of `place`, in one call."""
        return _apart(jnp.asarray(self.images) if place is None else jax.device_put(self.images, place))


@jax.jit
def _apart(images: UInt8[Array, "N H W 3"]) -> list[UInt8[Array, "H W 3"]]:
    return list(images)


def of_judgements(found: Sequence[Judgement], bonus: float = 0.0, dimensions: Weighted = ()) -> Scores:
    """Returns overall scores on [0, 1]: (overall / its scale + bonus * whether it is a success) / (1 + bonus).

    Where one of `dimensions` has a weight, the value is their weighted sum instead, each as a share of its scale; a
    judgement that lacks one of these is not valid as a whole: a sum of fewer compares with no other. A spread is part
    of no value. Raises ConfigError where there is a bonus and the judge does not say what a success is.
    """
    unknown = Dimension(np.nan)
    of = lambda j, name: j.dimensions.get(name, unknown) if j.valid else unknown
    table = lambda f: np.array([f(of(j, name)) for j in found for name, _ in dimensions], np.float32)
    each = table(lambda d: d.share).reshape(len(found), len(dimensions))
    spread = table(lambda d: np.nan if d.spread is None else d.spread / d.scale).reshape(each.shape)
    weights = np.array([w for _, w in dimensions], np.float32)
    if weights.any():
        counted = each[:, weights != 0]
        valid = np.array([j.valid for j in found], bool) & np.isfinite(counted).all(1)
        return Scores(np.where(valid, counted @ weights[weights != 0], 0).astype(np.float32), valid, each, spread)
    valid = np.array([j.valid and j.overall is not None for j in found], bool)

    def value(j: Judgement) -> float:
        if bonus > 0 and j.success is None:
            raise ConfigError("config key 'rl.success_bonus': this judge does not say what a success is")
        return (j.overall.share + bonus * (bonus > 0 and j.success)) / (1 + bonus)

    values = np.array([value(j) if ok else 0.0 for j, ok in zip(found, valid)], np.float32)
    return Scores(values, valid, each, spread)


def weighted(config: Any, reward: str, has: Sequence[str]) -> Weighted:
    """Returns the dimensions of a judge with the weights of `rl.dimensions`, 0 for those that it leaves out.

    Raises ConfigError, naming those that the judge has, where `rl.dimensions` names another.
    """
    asked = {name: float(weight) for name, weight in config.rl.dimensions}
    if wrong := [name for name in asked if name not in has]:
        there = f"has {', '.join(has)}" if has else "names none"
        raise ConfigError(f"config key 'rl.dimensions': no dimension '{wrong[0]}': the reward '{reward}' {there}")
    return tuple((name, asked.get(name, 0.0)) for name in has)


def judge_mesh(mesh: Any, tensor: int) -> Any:
    """The mesh of a reward model on the policy's devices of this process, `tensor` to a copy; None for one device.

    Raises ConfigError where the devices do not divide.
    """
    local = [d for d in mesh.devices.flat if d.process_index == jax.process_index()]
    if len(local) % tensor:
        raise ConfigError(f"config key 'rl.judge.tensor' is {tensor}, a process has {len(local)} devices")
    return make_mesh({"data": len(local) // tensor, "tensor": tensor}, local) if len(local) > 1 else None


class JudgeReward:
    """The reward model of `rl.judge` on the policy's devices: each process has its own copies, which write
    `rl.judge.rows` answers at a time, and scores its share. On one process images do not leave the device, for a judge
    that takes them there.

    name: of the judge (`rewards.judges`); "": as its folder says.
    """

    def __init__(self, config: Any, mesh: Any, name: str = ""):
        j = config.rl.judge
        if not j.model:
            raise ConfigError(f"config key 'rl.judge.model': the reward '{name or 'judge'}' wants a model's folder")
        over = judge_mesh(mesh, j.tensor)
        self.place = over and NamedSharding(over, PartitionSpec())
        self.bonus = config.rl.success_bonus
        found = judges.find(j.model, name)[1]
        unset = {f.name for f in dataclasses.fields(found.Options) if f.default is None}  # a config has no None: empty
        said = {key: value for key, value in j.items() if value or key not in unset} | {"seed": config.seed}
        options = judges.options(found, said)
        self.judge = judges.load(j.model, name, options, base=j.base or None, mesh=over)
        self.dimensions = weighted(config, name or "judge", self.judge.dimensions())

    def __call__(self, samples: Samples) -> Scores:
        on_device = getattr(self.judge, "device_images", False)
        images = samples.on_device(self.place) if on_device else samples.host
        edits = [Edit(p.source, i, p.instruction, p.extras) for p, i in zip(samples.prompts, images, strict=True)]
        return of_judgements(self.judge.score(edits, progress=False), self.bonus, self.dimensions)


class ServerReward:
    """A reward server (`serve_reward.py`) at `rl.judge.server`; its token is in the environment. It is asked for its
    dimensions where `rl.dimensions` names some: else it may be away when a run begins."""

    def __init__(self, config: Any, mesh: Any):
        if not config.rl.judge.server:
            raise ConfigError("config key 'rl.judge.server': the reward 'server' wants its URL")
        self.bonus = config.rl.success_bonus
        self.client = RewardClient(config.rl.judge.server, os.environ.get(TOKEN, ""))
        try:
            self.dimensions = weighted(config, "server", self.client.dimensions()) if config.rl.dimensions else ()
        except ServiceError as error:
            raise ConfigError(f"config key 'rl.dimensions': the server does not say which it has: {error}") from None

    def __call__(self, samples: Samples) -> Scores:
        found = zip(samples.prompts, samples.host, strict=True)
        edits = [Edit(p.source, i, p.instruction, p.extras) for p, i in found]
        return of_judgements(self.client.score(edits, progress=False), self.bonus, self.dimensions)


class OracleReward:
    """The built-in world's truth."""

    def __init__(self, config: Any, mesh: Any):
        self.bonus = config.rl.success_bonus
        self.dimensions = weighted(config, "oracle", oracle.DIMENSIONS)

    def __call__(self, samples: Samples) -> Scores:
        return of_judgements(judge_by_oracle(samples), self.bonus, self.dimensions)


def judge_by_oracle(samples: Samples) -> list[Judgement]:
    """The oracle's judgements. Raises ConfigError for prompts from elsewhere than the built-in world."""
    if any(p.edit is None for p in samples.prompts):
        raise ConfigError("the oracle knows the built-in world only: config key 'data.train' must be editworld")
    return oracle.score([(p.edit, image) for p, image in zip(samples.prompts, samples.host, strict=True)])


class SaturationReward:
    """Wrong on purpose: the mean spread of colour channels. It shows what the report makes of a gamed reward."""

    def __init__(self, config: Any, mesh: Any):
        pass

    def __call__(self, samples: Samples) -> Scores:
        levels = samples.host.astype(np.float32)
        values = (levels.max(-1) - levels.min(-1)).mean((1, 2)) / 255
        return Scores(values, np.ones(len(values), bool))


REWARDS = {
    "judge": "edit_rl_jax.rl.rewards:JudgeReward",
    "server": "edit_rl_jax.rl.rewards:ServerReward",
    "oracle": "edit_rl_jax.rl.rewards:OracleReward",
    "saturation": "edit_rl_jax.rl.rewards:SaturationReward",
}


def judge_class(config: Any) -> Any:
    """Returns the class of the judge that is loaded for RL; None where no reward of the config is one.

    Raises ConfigError where there is no model, and what `judges.find` raises.
    """
    for name, _ in [r for r in config.rl.rewards if r[1]]:
        found = resolve(name, judges.JUDGES | REWARDS)
        if found is JudgeReward or hasattr(found, "from_folder"):
            if not config.rl.judge.model:
                raise ConfigError(f"config key 'rl.judge.model': the reward '{name}' wants a model's folder")
            return judges.find(config.rl.judge.model)[1] if found is JudgeReward else found
    return None


def reward(name: str, config: Any, mesh: Any) -> Callable[[Samples], Scores]:
    """Makes a reward by its name. Raises ConfigError."""
    found = resolve(name, judges.JUDGES | REWARDS)
    return JudgeReward(config, mesh, name) if hasattr(found, "from_folder") else found(config, mesh)


@dataclasses.dataclass(frozen=True)
class Sum:
    """Several rewards as one: their weighted sum, valid where all are.

    parts: (name, reward, weight).
    """

    parts: tuple[tuple[str, Callable[[Samples], Scores], float], ...]

    @functools.cached_property
    def dimensions(self) -> Weighted:
        """Names what `each` of its scores holds, and the weight of each in the sum: a reward's dimensions where they
        have weights, else its value as "overall", and the dimensions only for the figures, with weight 0."""
        out = []
        for name, part, weight in self.parts:
            own = getattr(part, "dimensions", ())
            whole = [] if any(w for _, w in own) else [("overall", 1.0)]
            prefix = f"{name.rpartition(':')[2]}/" if len(self.parts) > 1 else ""
            out += [(prefix + dimension, weight * w) for dimension, w in (*whole, *own)]
        return tuple(out)

    def __call__(self, samples: Samples) -> Scores:
        n = len(samples.prompts)
        total, valid, each, spread = np.zeros(n, np.float32), np.ones(n, bool), [], []
        for _, part, weight in self.parts:
            found = part(samples)
            ok = found.valid & np.isfinite(found.values)
            total, valid = total + weight * np.where(ok, found.values, 0), valid & ok
            own = getattr(part, "dimensions", ())
            if not any(w for _, w in own):
                each.append(np.where(ok, found.values, np.nan)[:, None])
                spread.append(np.full((n, 1), np.nan))
            if own:
                each.append(found.each)
                spread.append(found.spread)
        stack = lambda parts: np.concatenate(parts, 1).astype(np.float32)
        return Scores(total.astype(np.float32), valid, stack(each), stack(spread))


def make(config: Any, mesh: Any) -> Sum:
    """The rewards of `rl.rewards` that have a weight as one.

    Raises ConfigError for a name that is unknown or a reward that wants more than the config says.
    """
    parts = [(name, reward(name, config, mesh), float(weight)) for name, weight in config.rl.rewards]
    if not any(weight for *_, weight in parts):
        raise ConfigError("config key 'rl.rewards' gives no reward a weight")
    return Sum(tuple(part for part in parts if part[2]))


def score(
    reward: Callable[[Samples], Scores],
    prompts: Sequence[Prompt],
    images: UInt8[Array, "N H W 3"] | UInt8[np.ndarray, "N H W 3"],
    finite: Bool[Array, " N"] | Bool[np.ndarray, " N"],
) -> Scores:
    """A reward of images u8 [N, H, W, 3], over all processes' devices or whole on every host; the same result on every
    process. finite: whether an image had only numbers for pixels; one that had not is not valid."""
    found = _score(reward, prompts, images)
    return found._replace(valid=found.valid & gather(finite))


def _score(reward: Callable[[Samples], Scores], prompts: Sequence[Prompt], images: Any) -> Scores:
    if jax.process_count() == 1:
        return reward(Samples(prompts, images))
    host, most = gather(images), -(-len(prompts) // jax.process_count())
    start = jax.process_index() * most  # neighbours stay together: they share a source, which is prefilled once
    mine = prompts[start : start + most]
    count = len(getattr(reward, "dimensions", ()))
    padded = np.zeros((2 + 2 * count, most), np.float32)
    if mine:
        found = reward(Samples(mine, host[start : start + most]))
        padded[0, : len(mine)], padded[1, : len(mine)] = found.values, found.valid
        if count:
            padded[2:, : len(mine)] = np.concatenate([found.each, found.spread], 1).T
    every = multihost_utils.process_allgather(padded)  # [processes, 2 + 2 D, most]
    rows = every.transpose(1, 0, 2).reshape(len(padded), -1)[:, : len(prompts)]
    return Scores(rows[0], rows[1] > 0, *(rows[2:].reshape(2, count, -1).transpose(0, 2, 1) if count else ()))


def gather(images: Any) -> np.ndarray:
    """An array on the mesh as NumPy, on every process."""
    everywhere = isinstance(images, np.ndarray) or jax.process_count() == 1
    return np.asarray(images if everywhere else multihost_utils.process_allgather(images, tiled=True))
