"""What an editor's layer keeps by name is not computed again in the backward pass."""

import jax
import jax.numpy as jnp
import pytest
from flax import nnx

from edit_rl_jax import flops
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.transformer import FluxTransformer
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.transformer import OmniGen2Transformer
from tests.editors import flux, tiny

NETWORKS = {
    "flux_kontext": (FluxTransformer, FluxConfig(**flux.CONFIGS["three_heads"]), flux.inputs("three_heads")),
    "omnigen2": (OmniGen2Transformer, OmniGen2Config(**tiny.CONFIGS["grouped"]), tiny.inputs("grouped")),
}


def executed(editor: str, remat: str) -> int:
    """FLOPs of products without batch dimensions in a gradient by all weights."""
    network, cfg, inputs = NETWORKS[editor]
    make = lambda: network(cfg, rngs=nnx.Rngs(0), lora=None, trainable="full", remat=remat)
    graphdef, state = nnx.split(nnx.eval_shape(make))
    loss = lambda state: jnp.sum(nnx.merge(graphdef, state)(*inputs.jax()) ** 2)
    return flops.count_by_kind(jax.grad(loss), state, remat=True)["linear"]


@pytest.mark.parametrize("editor", NETWORKS)
def test_what_is_kept_is_not_repeated(editor):
    """Modulations are left: of a row, not of a token."""
    least = executed(editor, "none")
    names = ("nothing_saveable", "attention", "gate", "feed_forward", "gate_up")
    again = {name: executed(editor, name) / least - 1 for name in names}
    assert 0.32 < again["nothing_saveable"] < 0.34
    assert 0.22 < again["attention"] < 0.28
    assert 0 < again["gate_up"] < 0.002
    assert again["gate_up"] < again["feed_forward"] < again["gate"]
    one_half = again["attention"] - again["gate"]  # of a gated feed-forward; FLUX's is plain
    assert one_half > 0.08 if editor == "omnigen2" else one_half == 0
