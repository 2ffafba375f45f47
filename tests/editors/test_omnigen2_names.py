"""The released OmniGen2 transformer by abstract shapes: every name and shape, and their sum."""

import numpy as np
from flax import nnx

from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.transformer import OmniGen2Transformer
from edit_rl_jax.editors.omnigen2.weights import TRANSFORMER
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import LoRAConfig

D, FFN, KV, TIME = 2520, 10240, 840, 1024


def expected() -> dict[str, tuple[int, ...]]:
    """Names and shapes as the released checkpoint has them, written out from its table."""
    linear = lambda name, out, inner: {f"{name}.weight": (out, inner), f"{name}.bias": (out,)}
    found = linear("x_embedder", D, 64) | linear("ref_image_patch_embedder", D, 64)
    found |= linear("time_caption_embed.timestep_embedder.linear_1", TIME, 256)
    found |= linear("time_caption_embed.timestep_embedder.linear_2", TIME, TIME)
    found |= {"time_caption_embed.caption_embedder.0.weight": (2048,)}
    found |= linear("time_caption_embed.caption_embedder.1", D, 2048)
    found |= linear("norm_out.linear_1", D, TIME) | linear("norm_out.linear_2", 64, D)
    found["image_index_embedding"] = (5, D)
    depths = {"noise_refiner": 2, "ref_image_refiner": 2, "context_refiner": 2, "layers": 32}
    for block in (f"{kind}.{i}" for kind, depth in depths.items() for i in range(depth)):
        shapes = {"attn.to_q": (D, D), "attn.to_out.0": (D, D), "attn.to_k": (KV, D), "attn.to_v": (KV, D)}
        shapes |= {"attn.norm_q": (120,), "attn.norm_k": (120,)}
        shapes |= {
            "feed_forward.linear_1": (FFN, D),
            "feed_forward.linear_3": (FFN, D),
            "feed_forward.linear_2": (D, FFN),
        }
        shapes |= {"norm2": (D,), "ffn_norm1": (D,), "ffn_norm2": (D,)}
        if block.startswith("context"):
            shapes["norm1"] = (D,)
        else:
            shapes["norm1.norm"] = (D,)
            found |= linear(f"{block}.norm1.linear", 4 * D, TIME)
        found |= {f"{block}.{name}.weight": shape for name, shape in shapes.items()}
    return found


def names(**options) -> tuple[dict[str, tuple[int, ...]], int]:
    """Names and shapes of our model in the checkpoint's terms, and the number of adapter weights."""
    model = nnx.eval_shape(lambda: OmniGen2Transformer(OmniGen2Config(), rngs=nnx.Rngs(0), **options))
    found, adapter = {}, 0
    for path, v in zip(*weights.flatten(nnx.state(model))[:2]):
        for name in TRANSFORMER.sources(path, v.shape):
            shape = TRANSFORMER.file_shape(path, v)
            if path[-1] in weights.LORA:
                adapter += int(np.prod(shape))
            else:
                assert name not in found
                found[name] = shape
    return found, adapter


def test_every_name_and_shape_of_the_released_weights():
    found, _ = names()
    assert found == expected()
    assert len(found) == 582
    assert sum(int(np.prod(s)) for s in found.values()) == 3_967_161_400


def test_padding_for_a_mesh_is_no_part_of_the_checkpoint_and_the_adapter_has_its_size():
    found, adapter = names(tensor_parallel=8, hidden_multiple=128, lora=LoRAConfig(rank=32))
    assert found == expected()
    assert adapter == 20_428_800
