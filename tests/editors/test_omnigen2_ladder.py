"""Every rung of OmniGen2's ladder on every tiny configuration, and its known faults: each must fail it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.editors.omnigen2 import layout, transformer
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.nn import rotary
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.norms import RMSNorm
from tests.editors import ladder, tiny
from tests.mutations.test_mutations import stuck

LONG = [("gradients", name) for name in ("grouped", "uneven_axes", "heads_equal")]
CASES = [(r, n) for r in ladder.RUNGS if r != "network" for n in tiny.CONFIGS]  # the gradients' rung compares it too


@pytest.mark.parametrize(
    "rung, name", [pytest.param(*case, marks=[pytest.mark.slow] * (case in LONG)) for case in CASES]
)
def test_rung(rung, name):
    run, bar = ladder.RUNGS[rung]
    wrong = {what: e for what, e in run(name).items() if not e <= bar}
    assert not wrong, f"above {bar}: {wrong}"


NAME = "released_heads"
FAULTS = {}


def fault(rung: str):
    return lambda patch: FAULTS.setdefault(patch.__name__, (rung, patch))


@fault("layers")
def gelu_for_silu(m):
    m.setattr(jax.nn, "silu", lambda x: jax.nn.gelu(x, approximate=False))


@fault("layers")
def gates_without_tanh(m):
    m.setattr(jnp, "tanh", lambda x: x)


@fault("layers")
def scale_without_one(m):
    right = transformer.Modulation.__call__
    lowered = lambda self, t: [x - float(i % 2 == 0) for i, x in enumerate(right(self, t))]
    m.setattr(transformer.Modulation, "__call__", lowered)


@fault("layers")
def scales_and_gates_swapped(m):
    def swapped(self, temb):
        parts = jnp.split(self.linear(jax.nn.silu(temb)), 4, axis=-1)
        gate_a, scale_a, gate_m, scale_m = (p[:, None] for p in parts)
        return [1 + scale_a, jnp.tanh(gate_a), 1 + scale_m, jnp.tanh(gate_m)]

    m.setattr(transformer.Modulation, "__call__", swapped)


@fault("layers")
def rotary_in_halves(m):
    m.setattr(transformer, "rotate_pairs", rotary.rotate)


@fault("layers")
def rotary_before_the_norms(m):
    def late(self, x, cos, sin, segments):
        split = lambda y: y.reshape(*y.shape[:2], -1, self.head_dim)
        turn = lambda y: transformer.rotate_pairs(y, cos, sin)
        q, k = self.norm_q(turn(split(self.to_q(x)))), self.norm_k(turn(split(self.to_k(x))))
        out = transformer.attention(q, k, split(self.to_v(x)), q_segments=segments, kv_segments=segments)
        return self.to_out[0](out.reshape(x.shape))

    m.setattr(transformer.Attention, "__call__", late)


@fault("layers")
def kv_heads_tiled(m):
    right = transformer.attention

    def tiled(q, k, v, **options):
        G = q.shape[2] // k.shape[2]
        return right(q, *(jnp.concatenate([x[:, :, ::-1]] * G, axis=2) for x in (k, v)), **options)

    m.setattr(transformer, "attention", tiled)


@fault("layers")
def attention_scale_of_a_padded_head(m):
    right = transformer.attention
    m.setattr(transformer, "attention", lambda *a, **k: right(*a, scale=(a[0].shape[-1] + 8) ** -0.5, **k))


@fault("layers")
def swiglu_branches_swapped(m):
    def swapped(self, x):
        return self.linear_2(jax.nn.silu(self.linear_3(x)) * self.linear_1(x))

    m.setattr(transformer.FeedForward, "__call__", swapped)


@fault("layers")
def wrong_epsilon(m):
    m.setattr(RMSNorm, "eps", stuck(1e-3), raising=False)


@fault("layers")
def layer_norm_as_rms_norm(m):
    def rms(self, x, temb):
        x = x * jax.lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + 1e-6)
        return self.linear_2(x * (1 + self.linear_1(jax.nn.silu(temb))[:, None]))

    m.setattr(transformer.NormOut, "__call__", rms)


@fault("embeddings")
def sines_before_cosines(m):
    right = jnp.concatenate
    halves = lambda xs, **k: right(xs[::-1] if len(xs) == 2 else xs, **k)
    m.setattr(jnp, "concatenate", halves)


@fault("embeddings")
def times_not_scaled(m):
    m.setattr(transformer.TimestepEmbedder, "scale", stuck(1.0), raising=False)


@fault("embeddings")
def bias_dropped(m):
    m.setattr(Linear, "bias", stuck(None), raising=False)


@fault("positions")
def bf16_angles(m):
    right = transformer.rotary_tables

    def rounded(cfg, positions):
        cos, sin = right(cfg, positions)
        angles = jnp.arctan2(sin, cos).astype(jnp.bfloat16).astype(jnp.float32)
        return jnp.cos(angles), jnp.sin(angles)

    m.setattr(transformer, "rotary_tables", rounded)


@fault("positions")
def rows_and_columns_swapped(m):
    right = layout.grid
    m.setattr(layout, "grid", lambda *a: right(*a)[:, [0, 2, 1]])


@fault("positions")
def images_start_after_all_tokens_before(m):
    right = layout.layout

    def late(lengths, references, sizes, bucket):
        found = right(lengths, references, sizes, bucket)
        for b, images in enumerate(references):
            extra = sum(h * w - max(h, w) for h, w in images)
            found["noise_positions"][b, found["noise_segments"][b] > 0, 0] += extra
        return found

    m.setattr(tiny, "layout", late)


@fault("positions")
def images_ignore_the_text(m):
    right = layout.layout
    shift = np.array([1, 0, 0])

    def early(lengths, *rest):
        found = right(lengths, *rest)
        for b, n in enumerate(lengths):
            for kind in ("reference", "noise"):
                found[f"{kind}_positions"][b, found[f"{kind}_segments"][b] > 0] -= n * shift
        return found

    m.setattr(tiny, "layout", early)


@fault("network")
def references_see_each_other_in_their_refiner(m):
    right = transformer.Block.__call__  # elsewhere a row has one segment, or ids of 0 and 1 already
    m.setattr(
        transformer.Block,
        "__call__",
        lambda self, x, t, cos, sin, ids: right(self, x, t, cos, sin, jnp.minimum(ids, 1)),
    )


@fault("network")
def image_index_dropped(m):
    class Zero:
        def __getitem__(self, key):
            return jnp.zeros((transformer.REFERENCES, OmniGen2Config(**tiny.CONFIGS[NAME]).hidden_size))

    m.setattr(transformer.OmniGen2Transformer, "image_index_embedding", stuck(Zero()), raising=False)


@fault("network")
def refiners_swapped(m):
    model = ladder.ours(NAME)
    m.setattr(model, "noise_refiner", model.ref_image_refiner)


@fault("network")
def context_not_refined(m):
    right = transformer.scan_layers
    m.setattr(
        transformer,
        "scan_layers",
        lambda body, x, xs, remat: (x, None) if isinstance(xs.norm1, RMSNorm) else right(body, x, xs, remat=remat),
    )


@fault("network")
def padding_attended(m):
    right = transformer.attention
    ids = lambda s: jnp.maximum(s, 1)
    m.setattr(
        transformer,
        "attention",
        lambda *qkv, q_segments, kv_segments, **k: right(
            *qkv, q_segments=ids(q_segments), kv_segments=ids(kv_segments), **k
        ),
    )


@pytest.mark.parametrize("rung", ["positions", "embeddings", "layers", "network"])
def test_without_a_fault_nothing_is_caught_op_by_op(rung):
    run, bar = ladder.RUNGS[rung]
    with jax.disable_jit():
        assert all(e <= bar for e in run(NAME).values())


@pytest.mark.parametrize("name", FAULTS)
def test_the_ladder_catches(name, monkeypatch):
    first, patch = FAULTS[name]
    ladder.ours(NAME)
    patch(monkeypatch)
    run, bar = ladder.RUNGS[first]
    # op by op: the operators are compiled once for all faults, a jitted network once for each
    with jax.disable_jit():
        found = run(NAME)
    assert any(not e <= bar for e in found.values()), f"{name} passes {first}"
