"""Parameters: one declaration each, holding shape, dtype, initializer and logical axis names together."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax.ranges import knob

# A logical axis is a name, or (name, units) where a dimension is `units` pieces that must not be cut (heads), or None.
Axis = str | tuple[str, int] | None


class Trainable(nnx.Param):
    """A parameter that is differentiated and has optimizer state: always fp32, cast at use."""


class Frozen(nnx.Param):
    """A parameter without gradient or optimizer state, in the model's dtype. A sibling of Trainable, not a subclass."""


def param(
    rngs: nnx.Rngs,
    shape: tuple[int, ...],
    axes: tuple[Axis, ...],
    init: Callable,
    *,
    kind: type[nnx.Param],
    dtype,
    valid: tuple[int, ...] | None = None,
) -> nnx.Param:
    """The one way to make a parameter; `axes` names every dimension of `shape` (not the stacked one).

    `valid`: the shape without padding, as checkpoints have it; what lies beyond is zero and stays so in training (see
    editors/omnigen2/transformer.py for why).
    """
    if len(shape) != len(axes):
        raise ValueError(f"shape {shape} and axes {axes} differ in length")
    if valid is None or valid == shape:
        return kind(init(rngs.params(), shape, dtype), axes=axes)
    value = jnp.pad(init(rngs.params(), valid, dtype), [(0, n - m) for n, m in zip(shape, valid)])
    return kind(value, axes=axes, valid=valid)


@dataclasses.dataclass(frozen=True)
class LoRA:
    """Low-rank adapters W + (alpha / rank) A B on every linear of a network."""

    rank: int = knob(32, "[1, 8192]")
    alpha: float = knob(64.0, "[1e-6, 1e6]")


@dataclasses.dataclass(frozen=True)
class LoRAConfig(LoRA):
    """Low-rank adapters on every decoder linear; on the rest of a VLM where it is named."""

    vision: bool = knob(False)
    merger: bool = knob(False)
    deepstack: bool = knob(False)  # the mergers of a tower's inner levels (Qwen3-VL)
    patches: bool = False
    head: bool = False


@dataclasses.dataclass(frozen=True)
class Init:
    """How the parameters of a module are made: `dtype` of frozen weights, `full`: base trainable, `lora`."""

    dtype: jnp.dtype = jnp.dtype("float32")
    full: bool = False
    lora: LoRAConfig | None = None

    def base(self, rngs: nnx.Rngs, shape, axes: tuple[Axis, ...], init: Callable, valid=None) -> nnx.Param:
        """A base weight: Trainable fp32 when the whole model is trained, else Frozen in `dtype`."""
        kind, dtype = (Trainable, jnp.float32) if self.full else (Frozen, self.dtype)
        return param(rngs, shape, axes, init, kind=kind, dtype=dtype, valid=valid)

    def adapter(self, rngs: nnx.Rngs, shape, axes: tuple[Axis, ...], init: Callable, valid=None) -> nnx.Param:
        """An adapter weight: Trainable fp32."""
        return param(rngs, shape, axes, init, kind=Trainable, dtype=jnp.float32, valid=valid)


KERNEL_INIT = jax.nn.initializers.variance_scaling(1.0, "fan_in", "normal")
LORA_A_INIT = jax.nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")  # U(-1/sqrt(in), 1/sqrt(in)), as PEFT
EMBED_INIT = jax.nn.initializers.normal(0.02)
ZEROS, ONES = jax.nn.initializers.zeros, jax.nn.initializers.ones
