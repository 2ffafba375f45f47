"""The splash kernel, interpreted, against the reference attention: forward and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType

from edit_rl_jax.nn.attention import attention
from edit_rl_jax.nn.attention_gpu import cudnn_attention
from edit_rl_jax.nn.attention_splash import block_size, splash_attention


def inputs(batch, length, heads, kv_heads, dim, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, heads, dim), *[(batch, length, kv_heads, dim)] * 2, (batch, length, heads, dim)]
    return [jnp.asarray(rng.standard_normal(s), jnp.float32) for s in shapes]


def packed(batch, length, samples, padding, seed=1):
    """Segments 1..samples of uneven length, then padding."""
    rng, out = np.random.default_rng(seed), np.zeros((batch, length), np.int32)
    for row in out:
        cuts = np.sort(rng.choice(np.arange(1, length - padding), samples - 1, replace=False))
        row[: length - padding] = 1 + np.searchsorted(cuts, np.arange(length - padding), side="right")
    return jnp.asarray(out)


def compare(got, want, q, k, v, weight, segments):
    def loss(fn):
        def value(q, k, v):
            out = fn(q, k, v)
            return jnp.sum(out * weight), out

        return jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))

    with jax.default_matmul_precision("highest"):
        ((_, out), grads), ((_, expected), expected_grads) = loss(got)(q, k, v), loss(want)(q, k, v)
    assert float(jnp.max(jnp.abs(out - expected))) <= 1e-5 * max(1.0, float(jnp.max(jnp.abs(expected))))
    for a, b in zip(grads, expected_grads):
        assert float(jnp.max(jnp.abs(a - b))) <= 1e-5 * float(jnp.max(jnp.abs(b)))
    padding = np.asarray(segments) == 0
    assert not np.asarray(out)[padding].any()
    for grad in grads:
        assert not np.asarray(grad)[padding].any()


CASES = {
    "packed_causal_gqa": dict(shape=(2, 200, 4, 2, 16), samples=3, causal=True),
    "image_full_head_80": dict(shape=(1, 272, 2, 2, 80), samples=2, causal=False),
    "windows_as_segments": dict(shape=(1, 256, 2, 2, 16), samples=9, causal=False),
    "mqa_causal_head_128": dict(shape=(1, 256, 4, 1, 128), samples=2, causal=True),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_the_reference(case):
    shape, samples, causal = CASES[case].values()
    q, k, v, weight = inputs(*shape)
    segments = packed(*shape[:2], samples, padding=23)
    kw = dict(q_segments=segments, kv_segments=segments, causal=causal)
    compare(
        lambda q, k, v: splash_attention(q, k, v, interpret=True, **kw),
        lambda q, k, v: attention(q, k, v, impl="xla", **kw),
        *(q, k, v, weight, segments),
    )


@pytest.mark.parametrize("shape", [(4, 2), (2, 4)])
def test_under_a_mesh_with_fewer_kv_heads_than_shards(shape):
    q, k, v, weight = inputs(4, 128, 4, 2, 16)
    segments = packed(4, 128, 2, padding=9)
    kw = dict(q_segments=segments, kv_segments=segments, causal=True)
    mesh = jax.make_mesh(shape, ("fsdp", "tensor"), axis_types=(AxisType.Auto,) * 2)
    with jax.set_mesh(mesh):
        compare(
            lambda q, k, v: splash_attention(q, k, v, interpret=True, **kw),
            lambda q, k, v: attention(q, k, v, impl="xla", **kw),
            *(q, k, v, weight, segments),
        )


def test_queries_whose_segment_has_no_key_give_zero():
    q, k, v, _ = inputs(1, 128, 2, 2, 16)
    q_segments = jnp.asarray(np.repeat([[1, 2, 3, 0]], 32), jnp.int32).reshape(1, 128)
    kv_segments = jnp.where(q_segments == 2, 1, q_segments)
    kw = dict(q_segments=q_segments, kv_segments=kv_segments)
    out = splash_attention(q, k, v, interpret=True, **kw)
    assert not np.asarray(out)[np.asarray(q_segments) == 2].any()
    np.testing.assert_allclose(out, attention(q, k, v, impl="xla", **kw), atol=1e-5)


def test_errors_name_the_mismatch():
    q, k, v, _ = inputs(1, 128, 2, 2, 16)
    with pytest.raises(ValueError, match="128 queries and 64 keys"):
        splash_attention(q, k[:, :64], v[:, :64], causal=True, interpret=True)
    with (
        jax.set_mesh(jax.make_mesh((8,), ("fsdp",), axis_types=(AxisType.Auto,))),
        pytest.raises(ValueError, match="1 rows"),
    ):
        splash_attention(q, k, v, interpret=True)


def test_block_size_pads_least():
    assert [block_size(n) for n in (64, 128, 200, 1024, 2624, 2048, 1300)] == [128, 128, 256, 512, 384, 512, 128]


@pytest.mark.parametrize("length", [48, 47])
@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_mask_by_the_same_masks_on_xla(causal, length):
    """cuDNN itself needs a GPU; its mask, scale and zeroed rows are checked through the other implementation."""
    q, k, v, weight = inputs(2, length, 4, 2, 16)
    segments = packed(2, length, 3, padding=5)
    kw = dict(q_segments=segments, kv_segments=segments, causal=causal)
    compare(
        lambda q, k, v: cudnn_attention(q, k, v, implementation="xla", **kw),
        lambda q, k, v: attention(q, k, v, impl="xla", **kw),
        *(q, k, v, weight, segments),
    )


@pytest.mark.parametrize("length", [256, 251])
@pytest.mark.parametrize("causal", [False, True])
def test_cudnn_takes_our_shapes(monkeypatch, causal, length):
    """JAX's own checks of what cuDNN can do run when a program is lowered, without a GPU; odd lengths were refused."""
    from jax._src.cudnn import fused_attention_stablehlo as checks

    monkeypatch.setattr(checks, "check_cudnn_version", lambda: 91000)
    shape = lambda heads: jax.ShapeDtypeStruct((2, length, heads, 80), jnp.bfloat16)
    segments = jax.ShapeDtypeStruct((2, length), jnp.int32)

    def loss(q, k, v, segments):
        out = cudnn_attention(q, k, v, q_segments=segments, kv_segments=segments, causal=causal)
        return out.astype(jnp.float32).sum()

    step = jax.jit(jax.grad(loss, (0, 1, 2)))
    lowered = step.trace(shape(8), shape(2), shape(2), segments).lower(lowering_platforms=("cuda",)).as_text()
    assert "__cudnn$fmhaScaleBiasSoftmaxBackward" in lowered
