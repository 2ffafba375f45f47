"""Reward models and online RL for instruction-guided image editing, in JAX."""

from edit_rl_jax.accelerators import spare_libtpu as _spare_libtpu

_spare_libtpu()
