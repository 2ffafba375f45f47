"""OmniGen2's released folder (`mllm`, `processor`, `transformer`, `vae`, `scheduler`) and its LoRA files."""

from collections.abc import Sequence

from edit_rl_jax.nn.weights import Naming

STACKED = ("noise_refiner", "ref_image_refiner", "context_refiner", "layers")


def name(path: Sequence[str]) -> str:
    """The checkpoint's name of a leaf of the transformer, `{}` standing for the layer."""
    *modules, leaf = path
    names = [n for m in modules for n in ([m, "{}"] if m in STACKED else [m])]
    if not modules:  # image_index_embedding
        return leaf
    return ".".join([*names, "bias" if leaf == "bias" else "weight"])


TRANSFORMER = Naming(name, stacked=STACKED, stem="diffusion_pytorch_model")
