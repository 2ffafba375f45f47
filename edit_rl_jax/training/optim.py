"""Optimizers over flat weight dicts. Updates come at learning rate 1; the step multiplies by the schedule's value.

The schedule is a function of the step *argument*, not of a counter in the state, so a skipped update shifts nothing.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int
from optax.contrib import MuonDimensionNumbers, muon

_MATRICES = ("kernel", "embedding", "lora_a", "lora_b")


def is_matrix(name: str) -> bool:
    """Whether the weight of that name is a matrix (weight decay applies), going by its leaf name."""
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


def make(config: Any) -> optax.GradientTransformation:
    """The transformation of `config.optim` (see `training.config`), for flat dicts of fp32 gradients and weights.

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
    """Learning rate of an update: linear warm-up to `lr` (reached by update number `warmup`), then decay
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
