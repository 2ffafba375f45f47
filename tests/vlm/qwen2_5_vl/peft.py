"""`nn.peft` with Qwen2.5-VL's names, for the tests of this folder."""

from edit_rl_jax.nn import peft as generic
from edit_rl_jax.nn.peft import CONFIG, FILE, Adapter, merge, save, tensors
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.loading import lora_of

__all__ = ["CONFIG", "FILE", "Adapter", "load", "lora", "make_adapter", "merge", "read_adapter", "save", "tensors"]
QWEN = family.named("qwen2_5_vl")


def lora(adapter):
    return lora_of(adapter, QWEN)


def read_adapter(folder):
    return generic.read_adapter(folder, QWEN.NAMING)


def make_adapter(state, rank, alpha, base=None):
    return generic.make_adapter(state, QWEN.NAMING, rank, alpha, base, task_type="CAUSAL_LM")


def load(folder, abstract, shardings=None):
    return generic.load(folder, abstract, QWEN.NAMING, shardings)
