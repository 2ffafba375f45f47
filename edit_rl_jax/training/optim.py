"""Optimizers over flat weight dicts: schedule, clipping, moving average, and the refusal of non-finite updates.

The schedule is a function of the step *argument*, not of a counter in the state, so a skipped update shifts nothing.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, muon

from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import flat as st
from edit_rl_jax.training.on_mesh import State

_MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


def is_matrix(name: str) -> bool:
    """Says whether the weight of that name is a matrix (weight decay applies), going by its leaf name."""
    return name.rsplit(".", 1)[-1] in _MATRICES


def _muon_dims(params: Mapping[str, Any]) -> dict[str, MuonDimensionNumbers | None]:
    """[.., in, out]: leading axes (stacked layers) are separate matrices, but a filter [k, k, in, out] is one.
    Embeddings are lookups, the head is its transpose, and a LoRA factor is a matrix of its own."""
    spec = MuonDimensionNumbers(reduction_axis=-2, output_axis=-1)
    filters = MuonDimensionNumbers(reduction_axis=(0, 1, 2), output_axis=3)
    skip = ("embedding",)
    return {
        k: (filters if getattr(v, "ndim", 0) == 4 else spec)  # optax also asks for trees without the others' leaves
        if is_matrix(k) and k.rsplit(".", 1)[-1] not in skip and not k.startswith("lm_head.")
        else None
        for k, v in params.items()
    }


@dataclasses.dataclass(frozen=True)
class Optimizer:
    """What makes an update of gradients.

    Attributes:
      tx: gives updates at learning rate 1. learning_rate: of an update's number.
      clip: the greatest norm of a gradient, 0 = any. ema: decay of the weights' moving average, 0 = none.
      groups: factors of the learning rate, by the beginning of weights' names; the longest that fits counts.
    """

    tx: optax.GradientTransformation
    learning_rate: Callable[[Array], Array]
    clip: float
    ema: float = 0.0
    groups: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def factor(self, name: str) -> float:
        """Gives the factor of a weight's learning rate."""
        fits = [g for g in self.groups if name.startswith(g)]
        return self.groups[max(fits, key=len)] if fits else 1.0

    def init(self, trainable: st.Flat) -> State:
        """Makes the train state that begins with these weights. Raises ConfigError for a group of no weight."""
        if lost := [g for g in self.groups if not any(name.startswith(g) for name in trainable)]:
            parts = sorted({n.split(".")[0] for n in trainable})
            raise ConfigError(f"config key 'optim.groups': no trained weight begins with {lost[0]!r}; {parts} do")
        ema = {"ema": jax.tree.map(jnp.copy, trainable)} if self.ema else {}
        return {"trainable": trainable, "opt_state": self.tx.init(trainable)} | ema

    def apply(
        self, state: State, grads: st.Flat, loss: Array, number: Array, empty: Array | bool = False
    ) -> tuple[State, dict[str, Array]]:
        """Makes update `number`: (state, {grad_norm before clipping, lr, finite}).

        The state comes back unchanged when the loss or the gradient's norm is not finite; weights and optimizer also
        when the batch was `empty` (nothing of it had weight).
        """
        trainable, opt_state, lr = state["trainable"], state["opt_state"], self.learning_rate(number)
        norm = st.global_norm(grads)
        finite = jnp.isfinite(norm) & jnp.isfinite(loss)
        if self.clip:
            grads = jax.tree.map(lambda g: g * jnp.minimum(1.0, self.clip / jnp.maximum(norm, 1e-30)), grads)
        updates, new_opt = self.tx.update(grads, opt_state, trainable)
        new = {k: p + (lr * self.factor(k) if self.groups else lr) * updates[k] for k, p in trainable.items()}
        keep = lambda new, old: jnp.where(finite & jnp.logical_not(empty), new, old)
        new = jax.tree.map(keep, new, trainable)
        out = state | {"trainable": new, "opt_state": jax.tree.map(keep, new_opt, opt_state)}
        if self.ema:  # the decay is (1 + n) / (10 + n) until that is larger than `ema`
            share = jnp.where(finite, 1 - jnp.minimum(self.ema, (1 + number) / (10 + number)), 0.0)
            out["ema"] = jax.tree.map(lambda a, p: a + share * (p - a), state["ema"], new)
        return out, {"grad_norm": norm, "lr": lr, "finite": finite}


def averaged(state: State) -> st.Flat:
    """Returns the weights to validate and to export: their moving average where there is one."""
    return state.get("ema", state["trainable"])


def make(config: Any, steps: int) -> Optimizer:
    """Makes the optimizer of `config.optim` (see `training.config`) for a run of so many updates."""
    groups = {name: lr / config.lr for name, lr in config.get("groups", ())}  # a key of some kinds of models
    return Optimizer(transformation(config), schedule(config, steps), config.clip, config.ema, groups)


def transformation(config: Any) -> optax.GradientTransformation:
    """Makes the transformation of `config.optim`, for flat dicts of fp32 gradients and weights.

    State is fp32. `muon` treats matrices by Muon and the rest by AdamW at `adam_lr / lr` of the schedule.
    """
    mask = lambda params: {k: is_matrix(k) for k in params}
    if config.name == "adamw":
        return optax.adamw(1.0, b1=config.b1, b2=config.b2, eps=config.eps, weight_decay=config.weight_decay, mask=mask)
    return muon(
        1.0,
        beta=config.momentum,
        ns_steps=config.ns_steps,
        weight_decay=config.weight_decay,
        adam_b1=config.b1,
        adam_b2=config.b2,
        adam_learning_rate=(config.adam_lr or config.lr) / config.lr,
        muon_weight_dimension_numbers=_muon_dims,
    )


def schedule(config: Any, steps: int) -> Callable[[Int[Array, ""]], Float[Array, ""]]:
    """Makes the learning rate of an update: linear warm-up to `lr` (reached by update number `warmup`), then decay
    towards `end` * lr, which step number `steps` would have. Update n is made at step_number n - 1."""
    warmup = max(1, round(config.warmup * steps) if config.warmup < 1 else round(config.warmup))

    def value(step: Int[Array, ""]) -> Float[Array, ""]:
        step = jnp.asarray(step, jnp.float32)
        done = jnp.clip((step - warmup) / max(1, steps - warmup), 0.0, 1.0)
        shape = {
            "cosine": 0.5 * (1 + jnp.cos(jnp.pi * done)),
            "linear": 1 - done,
            "constant": jnp.ones_like(done),
        }[config.schedule]
        decayed = config.end + (1 - config.end) * shape
        return config.lr * jnp.where(step < warmup, jnp.minimum((step + 1) / warmup, 1.0), decayed)

    return value
