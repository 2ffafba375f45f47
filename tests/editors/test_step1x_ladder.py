"""Every rung of Step1X-Edit's ladder on every tiny configuration, golden numbers, names, and known faults."""

import accelerate
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext import transformer as flux_transformer
from edit_rl_jax.editors.mmdit import bfl, blocks
from edit_rl_jax.editors.step1x_edit import connector, layout, transformer
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.weights import ORIGINAL, TRANSFORMER
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.norms import LayerNorm
from edit_rl_jax.nn.safetensors_io import WeightsError
from tests.editors import golden, step1x
from tests.editors.test_text_encoders import filled
from tests.mutations.test_mutations import stuck
from tests.parity.ladder import jit

LONG = [("gradients", "deeper"), ("gradients", "scaled_wide")]
CASES = [(r, n) for r in step1x.RUNGS if r != "network" for n in step1x.CONFIGS]  # the gradients' rung compares it too


@pytest.mark.parametrize(
    "rung, name", [pytest.param(*case, marks=[pytest.mark.slow] * (case in LONG)) for case in CASES]
)
def test_rung(rung, name):
    run, bar = step1x.RUNGS[rung]
    wrong = {what: e for what, e in run(name).items() if not e <= bar}
    assert not wrong, f"above {bar}: {wrong}"


GOLDEN = {
    False: ".1161182 1.2008416 186.48561 -2.540114 -.977971 1.363597 -.442942 .255077 -.505393",
    True: ".0628063 1.1748592 183.66621 -2.371689 -.884399 1.506732 -.306659 -.146484 -1.158304",
}


@pytest.mark.parametrize("scaled", [False, True])
def test_golden_numbers(scaled):
    """2 x 3 tokens, a reference of 3 x 2, of v1.1 and v1.0; the reference's output is ours times -1."""
    cfg = Step1XConfig(
        in_channels=16, num_layers=2, num_single_layers=3, num_attention_heads=3, attention_head_dim=16,
        axes_dims_rope=(4, 6, 6), joint_attention_dim=32, connector_in_channels=24, connector_heads_num=4,
        connector_scale_factor=scaled,
    )  # fmt: skip
    model = filled(lambda: transformer.Step1XTransformer(cfg, rngs=nnx.Rngs(0), remat="none"), TRANSFORMER)
    if scaled:
        model.connector.scale_factor[...] = jnp.full(1, -0.91)
    index = layout.layout([5, 5], [((3, 2),)] * 2, [(2, 3)] * 2, TokenLengths(5, 6, 6), cfg.version)
    condition = {**index, "text": golden.draw("text", (2, 5, 24)), "references": golden.draw("reference", (2, 6, 16))}
    condition["state_mask"] = np.array([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]], bool)
    given = (golden.draw("noise", (2, 6, 16)), 1 - np.array([0.3, 0.9], np.float32), condition)
    x, t, c = jax.tree.map(jnp.asarray, given)

    @jit
    def run(m, x, t, c):
        return m(x, t, c), m.connector(c["text"], c["state_mask"], t, "none")

    out, (tokens, pooled) = run(model, x, t, c)
    golden.check(-out, GOLDEN[scaled])
    golden.check(tokens, ".0275178 .9877111 235.01430 -.689609 -.469554 1.645740 -.785926 -.019779 .182668", 2e-6)
    if not scaled:
        golden.check(pooled, ".0029880 .5352638 635.38474 1.084424 .266052 .354817 .021784 -.966480 .774987", 2e-6)


def shapes(naming, scaled: bool) -> dict[str, tuple[int, ...]]:
    cfg = Step1XConfig(connector_scale_factor=scaled)
    model = nnx.eval_shape(lambda: transformer.Step1XTransformer(cfg, rngs=nnx.Rngs(0)))
    leaves = zip(*weights.flatten(nnx.state(model))[:2])
    return {n: naming.file_shape(p, v) for p, v in leaves for n in naming.sources(p, v.shape)}


def test_every_name_and_shape_of_the_released_weights():
    c = {f: getattr(Step1XConfig(), f) for f in step1x.CONFIGS["v1.1"]}
    with accelerate.init_empty_weights():
        theirs = {k: tuple(v.shape) for k, v in step1x.Network(c).state_dict().items()}
    found = shapes(TRANSFORMER, False)
    assert found == theirs
    size = lambda shapes: sum(int(np.prod(s)) for s in shapes.values())
    assert (len(found), size(found)) == (1196, 12_427_800_384)
    own = {k: s for k, s in found.items() if k.startswith("connector.")}
    assert (len(own), size(own)) == (40, 536_621_824)
    assert shapes(TRANSFORMER, True).keys() - found.keys() == {"connector.scale_factor"}
    # of FLUX's names that BFL's table splits, all are there: v1.0's 817 are 776 of them, the connector's, the scale
    split = {n.format(i) for names, _ in bfl.TABLE.values() for n in names for i in range(57)}
    assert sum(n not in split for n in shapes(ORIGINAL, True)) == 41


@pytest.mark.parametrize(
    "given, named",
    [
        ({"enable_text_token_mapping": True}, "enable_text_token_mapping, of v1p2"),
        ({"timestep_in_dim": 128}, "timestep_in_dim other than 256"),
        ({"connector_hidden_size": 1024}, "connector_hidden_size 1024 is not joint_attention_dim"),
        ({"connector_heads_num": 3}, "3 heads do not divide 4096"),
        ({"guidance_embeds": True}, "Step1X-Edit has none"),
        ({"zero_cond_t": True}, "unknown keys .*zero_cond_t"),
    ],
)
def test_other_configs_are_refused(given, named):
    with pytest.raises(WeightsError, match=named):
        Step1XConfig.from_hf(Step1XConfig().to_hf() | given)
    scaled = Step1XConfig(connector_scale_factor=True)
    assert Step1XConfig.from_hf(scaled.to_hf()) == scaled


NAME = "v1.0"
FAULTS = {}


def fault(rung: str):
    return lambda patch: FAULTS.setdefault(patch.__name__, (rung, patch))


@fault("positions")
def reference_as_in_the_other_version(m):
    m.setattr(layout, "V1_0", "v1.1")


@fault("connector")
def padding_sees_nothing(m):
    m.setattr(connector, "jnp", Numbers(where=lambda mask, a, b: a if mask.ndim == 4 else jnp.where(mask, a, b)))


@fault("connector")
def padding_sees_text(m):
    right = connector.attention
    ones = lambda s: jnp.ones_like(s)
    m.setattr(connector, "attention", lambda *a, q_segments, **k: right(*a, q_segments=ones(q_segments), **k))
    m.setattr(connector, "jnp", Numbers(where=lambda mask, a, b: a if mask.ndim == 4 else jnp.where(mask, a, b)))


@fault("connector")
def mean_over_padding(m):
    m.setattr(connector, "jnp", Numbers(maximum=lambda count, least: jnp.full_like(count, 7)))


@fault("connector")
def scale_factor_dropped(m):
    m.setattr(connector.Connector, "scale_factor", stuck(None), raising=False)


@fault("connector")
def scale_factor_of_the_modulation_too(m):
    right = connector.SingleTokenRefiner.__getattribute__
    scaled = lambda f: lambda x: f(0.09 * x)
    m.setattr(
        connector.SingleTokenRefiner,
        "__getattribute__",
        lambda self, name: scaled(right(self, name)) if name == "c_embedder" else right(self, name),
    )


@fault("connector")
def gates_swapped(m):
    right = blocks.Modulation.__call__
    m.setattr(blocks.Modulation, "__call__", lambda self, temb: right(self, temb)[::-1])


@fault("connector")
def modulation_without_silu(m):
    m.setattr(blocks.jax.nn, "silu", lambda x: x)


@fault("connector")
def feed_forward_by_gelu(m):
    m.setattr(jax.nn, "silu", jax.nn.gelu)


@fault("connector")
def layer_norm_epsilon(m):
    m.setattr(LayerNorm, "eps", stuck(1e-5), raising=False)


@fault("connector")
def attention_unscaled(m):
    right = connector.attention
    m.setattr(connector, "attention", lambda *a, **k: right(*a, scale=1.0, **k))


@fault("connector")
def time_for_sigma(m):
    right = connector.sinusoids
    m.setattr(connector, "sinusoids", lambda x: right(1 - x))


@fault("connector")
def sines_before_cosines(m):
    right = connector.sinusoids
    m.setattr(connector, "sinusoids", lambda x: jnp.roll(right(x), 128, axis=-1))


@fault("network")
def padding_of_the_text_not_attended(m):
    right = flux_transformer.FluxTransformer.__call__

    def masked(self, latents, t, c):
        return right(self, latents, t, {**c, "text_segments": c["state_mask"].astype(jnp.int32)})

    m.setattr(transformer.Step1XTransformer, "__call__", masked)


@fault("network")
def vector_dropped(m):
    right = transformer.Step1XTransformer.embedded

    def without(self, t, c, text):
        _, tokens = right(self, t, c, text)
        return self.time_embed(transformer.sinusoids(1 - t)), tokens

    m.setattr(transformer.Step1XTransformer, "embedded", without)


class Numbers:
    """jax.numpy with other functions."""

    def __init__(self, **other):
        self.other = other

    def __getattr__(self, name):
        return self.other.get(name) or getattr(jnp, name)


@pytest.mark.parametrize("name", FAULTS)
def test_the_ladder_catches(name, monkeypatch):
    first, patch = FAULTS[name]
    step1x.ours(NAME)
    patch(monkeypatch)
    run, bar = step1x.RUNGS[first]
    with jax.disable_jit(first != "network"):  # the operators are compiled once for all faults
        found = run(NAME)
    assert any(not e <= bar for e in found.values()), f"{name} passes {first}"


def test_without_a_fault_nothing_is_caught_op_by_op():
    run, bar = step1x.RUNGS["connector"]
    with jax.disable_jit():
        assert all(e <= bar for e in run(NAME).values())
