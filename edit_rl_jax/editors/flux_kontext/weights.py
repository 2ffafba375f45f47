"""FLUX.1-Kontext's released folder, in and out."""

from edit_rl_jax.editors.mmdit import weights as mmdit
from edit_rl_jax.nn.weights import Naming

TRANSFORMER = Naming(mmdit.name, stacked=mmdit.STACKED, stem="diffusion_pytorch_model")
