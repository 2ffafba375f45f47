"""Reward models and online RL for instruction-guided image editing, in JAX."""
