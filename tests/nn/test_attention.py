"""The reference attention against a loop over queries in float64, values and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.nn import attention_xla
from edit_rl_jax.nn.attention import attention, default_implementation

PACKED = np.array([[1, 1, 1, 2, 2, 0, 3, 0], [0, 0, 5, 5, 5, 5, 5, 5]], np.int32)


def arrays(tq=8, tk=8, heads=6, kv_heads=2, seed=0):
    rng = np.random.default_rng(seed)
    shapes = [(2, tq, heads, 16), (2, tk, kv_heads, 16), (2, tk, kv_heads, 16)]
    return [rng.normal(size=s).astype(np.float32) for s in shapes]


def by_hand(q, k, v, q_segments, kv_segments, causal):
    """Output, and vector-Jacobian products for an output gradient of `cos` of the output index."""
    q, k, v = (x.astype(np.float64) for x in (q, k, v))
    out, group = np.zeros_like(q), q.shape[2] // k.shape[2]
    dq, dk, dv = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    dout = np.cos(np.arange(q.size)).reshape(q.shape)
    for b, i, h in np.ndindex(q.shape[:3]):
        g = h // group
        seen = [
            j
            for j in range(k.shape[1])
            if not (causal and j > i) and (q_segments is None or q_segments[b, i] == kv_segments[b, j] != 0)
        ]
        if not seen:
            continue
        s = k[b, seen, g] @ q[b, i, h] / 4
        p = np.exp(s - s.max()) / np.exp(s - s.max()).sum()
        out[b, i, h] = p @ v[b, seen, g]
        do = dout[b, i, h]
        ds = p * (v[b, seen, g] @ do - do @ out[b, i, h]) / 4
        dq[b, i, h] += ds @ k[b, seen, g]
        for n, j in enumerate(seen):
            dk[b, j, g] += ds[n] * q[b, i, h]
            dv[b, j, g] += p[n] * do
    return out, (dq, dk, dv)


@pytest.mark.parametrize("packed", [True, False])
def test_long_rows_are_computed_in_blocks(packed, monkeypatch):
    """Three blocks of 44 of 131 queries, against fewer keys."""
    monkeypatch.setattr(attention_xla, "LONG", 131)
    monkeypatch.setattr(attention_xla, "SCORES", 1)
    q, k, v = arrays(131, 70, heads=4, kv_heads=2)
    row = lambda *lengths: np.repeat([1, 2, 0, 3], lengths).astype(np.int32)
    ids = (np.stack([row(40, 50, 10, 31), row(70, 20, 40, 1)]), np.stack([row(20, 30, 5, 15), row(9, 1, 20, 40)]))
    ids = ids if packed else (None, None)
    given = {} if not packed else {"q_segments": jnp.asarray(ids[0]), "kv_segments": jnp.asarray(ids[1])}
    run = lambda q, k, v: attention(q, k, v, **given, impl="xla")
    out, pull = jax.vjp(run, *(jnp.asarray(x) for x in (q, k, v)))
    want, gradients = by_hand(q, k, v, *ids, False)
    np.testing.assert_allclose(out, want, atol=1e-5)
    for got, expected in zip(pull(jnp.cos(jnp.arange(q.size, dtype=jnp.float32)).reshape(q.shape)), gradients):
        np.testing.assert_allclose(got, expected, atol=1e-5)


def test_long_causal_rows_are_computed_in_blocks():
    """From 128 queries on the causal triangle is cut into blocks: also for a length that does not divide."""
    segments = np.repeat([1, 2, 0, 3], [40, 50, 10, 31])[None].repeat(2, 0).astype(np.int32)
    ids, (q, k, v) = jnp.asarray(segments), arrays(131, 131, heads=2, kv_heads=1)
    run = lambda q, k, v: attention(q, k, v, q_segments=ids, kv_segments=ids, causal=True, impl="xla")
    got, pull = jax.vjp(run, *map(jnp.asarray, (q, k, v)))
    want, grads = by_hand(q, k, v, segments, segments, True)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(pull(jnp.asarray(np.cos(np.arange(q.size)).reshape(q.shape), jnp.float32)), grads):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("segments", [None, PACKED])
@pytest.mark.parametrize("kv_heads", [1, 2, 6])
def test_reference(causal, segments, kv_heads):
    q, k, v = arrays(kv_heads=kv_heads)
    ids = None if segments is None else jnp.asarray(segments)
    run = lambda q, k, v: attention(q, k, v, q_segments=ids, kv_segments=ids, causal=causal, impl="xla")
    got, pull = jax.vjp(run, *map(jnp.asarray, (q, k, v)))
    want, grads = by_hand(q, k, v, segments, segments, causal)
    np.testing.assert_allclose(got, want, atol=1e-5)
    for a, b in zip(pull(jnp.asarray(np.cos(np.arange(q.size)).reshape(q.shape), jnp.float32)), grads):
        assert np.abs(a - b).max() <= 1e-5 * np.abs(b).max()
        if segments is not None:
            assert not np.asarray(a)[segments == 0].any(), "padding has exactly no gradient"
    if segments is not None:
        assert not np.asarray(got)[segments == 0].any(), "padding is exactly zero"


def test_cross_and_one_sided_segments():
    q, k, v = arrays(tq=3, tk=8)
    kv = np.array([[1, 1, 1, 0, 0, 0, 0, 0], [0] * 8], np.int32)
    got = attention(*map(jnp.asarray, (q, k, v)), kv_segments=jnp.asarray(kv), impl="xla")
    np.testing.assert_allclose(got, by_hand(q, k, v, np.ones((2, 3), int), kv, False)[0], atol=1e-5)
    assert not np.asarray(got)[1].any(), "a query that sees nothing gives zero, not the mean"


def test_softmax_is_fp32():
    """bf16 inputs: the only rounding is that of the inputs, the weights, the scores' gradient and the output."""
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in arrays(tk=200))
    got, pull = jax.vjp(lambda q, k, v: attention(q, k, v, impl="xla"), q, k, v)
    assert got.dtype == jnp.bfloat16
    want, grads = by_hand(*(np.asarray(x, np.float32) for x in (q, k, v)), None, None, False)
    assert np.abs(np.asarray(got, np.float64) - want).max() < 2e-3  # with a softmax in bf16 5.6e-3
    for a, b in zip(pull(jnp.asarray(np.cos(np.arange(q.size)).reshape(q.shape), jnp.bfloat16)), grads):
        assert a.dtype == jnp.bfloat16 and np.abs(np.asarray(a, np.float64) - b).max() < 1e-2 * np.abs(b).max()


def test_platforms():
    choose = lambda platform: [default_implementation(platform, d) for d in (jnp.float32, jnp.bfloat16)]
    assert choose("cpu") == ["xla", "xla"] and choose("tpu") == ["splash", "splash"]
    assert choose("gpu") == ["xla", "cudnn"]


def test_errors():
    q, k, v = map(jnp.asarray, arrays())
    with pytest.raises(ValueError, match="not one of .*splash"):
        attention(q, k, v, impl="flash")
    with pytest.raises(ValueError, match="do not divide into 2 KV"):
        attention(q[:, :, :5], k, v)
    with pytest.raises(ValueError, match="compares indices"):
        attention(q[:, :3], k, v, causal=True)
