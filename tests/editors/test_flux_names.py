"""The released FLUX.1-Kontext transformer by abstract shapes: every name and shape, as diffusers lists them."""

import accelerate
import diffusers
import jax
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax import flops
from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.layout import layout
from edit_rl_jax.editors.flux_kontext.transformer import FluxTransformer
from edit_rl_jax.editors.flux_kontext.weights import TRANSFORMER
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError


def names(**options) -> tuple[dict[str, tuple[int, ...]], int]:
    """Names and shapes of our model in the checkpoint's terms, and the number of adapter weights."""
    model = nnx.eval_shape(lambda: FluxTransformer(FluxConfig(), rngs=nnx.Rngs(0), **options))
    found, adapter = {}, 0
    for path, v in zip(*weights.flatten(nnx.state(model))[:2]):
        for name in TRANSFORMER.sources(path, v.shape):
            if path[-1] in weights.LORA:
                adapter += int(np.prod(TRANSFORMER.file_shape(path, v)))
            else:
                assert name not in found
                found[name] = TRANSFORMER.file_shape(path, v)
    return found, adapter


def test_every_name_and_shape_of_the_released_weights():
    with accelerate.init_empty_weights():
        config = {k: v for k, v in FluxConfig().to_hf().items() if k != "_class_name"}
        theirs = diffusers.FluxTransformer2DModel(**config).state_dict()
    found, _ = names()
    assert found == {k: tuple(v.shape) for k, v in theirs.items()}
    assert len(found) == 1160
    assert sum(int(np.prod(s)) for s in found.values()) == 11_901_408_320


@pytest.mark.parametrize(
    "rank, targets, size", [(32, "attention", 52_297_728), (64, "feed_forward", 216_662_016), (4, "all", 21_685_760)]
)
def test_adapters_have_the_sizes_of_published_recipes(rank, targets, size):
    """Edit-R1's eight linears of attention, Flow-GRPO's with the feed-forwards, and every linear."""
    assert names(lora=LoRAConfig(rank=rank), targets=targets)[1] == size


@pytest.mark.parametrize(
    "given, named",
    [
        ({"use_layer3d_rope": True}, "unknown keys .*use_layer3d_rope"),
        ({"patch_size": 2}, "not implemented"),
        ({"axes_dims_rope": [16, 56, 50]}, "must be 3 even numbers that sum to 128"),
        ({"num_layers": 0}, "num_layers is 0"),
    ],
)
def test_other_configs_are_refused(given, named):
    with pytest.raises(WeightsError, match=named):
        FluxConfig.from_hf(FluxConfig().to_hf() | given)


@pytest.mark.parametrize("side, text, want", [(512, 512, 3.77e13), (512, 128, 3.14e13), (1024, 512, 1.655e14)])
def test_a_forward_costs_what_torch_counts(side, text, want):
    """One reference, batch 1; torch's FlopCounterMode on the meta device."""
    graphdef, state = nnx.split(
        nnx.eval_shape(lambda: FluxTransformer(FluxConfig(), rngs=nnx.Rngs(0), dtype="bfloat16"))
    )
    n = (side // 16) ** 2
    index = {
        k: np.asarray(v)
        for k, v in layout([text], [((side // 16,) * 2,)], [(side // 16,) * 2], TokenLengths(text, n, n)).items()
    }
    shape = lambda *s: jax.ShapeDtypeStruct(s, np.float32)
    condition = index | {"text": shape(1, text, 4096), "pooled": shape(1, 768), "guidance": shape(1)}
    condition["references"] = shape(1, n, 64)
    run = lambda s, *a: nnx.merge(graphdef, s)(*a)
    assert flops.count(run, state, shape(1, n, 64), shape(1), condition) == pytest.approx(want, rel=0.005)
