"""Attention in plain XLA: what runs on a CPU, and what the kernels are held against."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool

_MASKED = -1e30

# From LONG queries on, scores are made of a block of queries at a time, about SCORES numbers: in one piece they do not
# stay in a CPU's cache, and take three times as long.
LONG, SCORES = 1024, 1 << 21


def attention_mask(
    tq: int, tk: int, q_segments: Array | None, kv_segments: Array | None, causal: bool
) -> Bool[Array, "#batch tq tk"] | None:
    """True where a query may see a key; None when everything may. Causal: queries are the last `tq` of the `tk`."""
    mask = None
    if q_segments is not None:
        q_ids, kv_ids = q_segments[:, :, None], kv_segments[:, None, :]
        mask = (q_ids == kv_ids) & (q_ids != 0)
    if causal:
        lower = jnp.tril(jnp.ones((1, tq, tk), bool), k=tk - tq)
        mask = lower if mask is None else mask & lower
    return mask


def xla_attention(q, k, v, *, q_segments, kv_segments, causal, scale):
    """Attends as `attention.attention` says, by scores that are written out; the others are held against it."""
    tq = q.shape[1]
    blocks = min(4, max(1, tq // 64)) if causal else 1
    if not causal and tq >= LONG:
        return _blocked(q, k, v, q_segments, kv_segments, scale)
    if blocks == 1:
        return _dense(q, k, v, q_segments, kv_segments, causal, scale)
    # Causal queries in 4 blocks, each against the keys up to its end: 5/8 of the scores of one block.
    cuts = [round(i * tq / blocks) for i in range(blocks + 1)]
    take = lambda x, start, stop: None if x is None else x[:, start:stop]
    out = [
        _dense(q[:, a:b], k[:, :b], v[:, :b], take(q_segments, a, b), take(kv_segments, 0, b), True, scale)
        for a, b in zip(cuts, cuts[1:])
    ]
    return jnp.concatenate(out, axis=1)


def _blocked(q, k, v, q_segments, kv_segments, scale):
    B, tq, H = q.shape[:3]
    n = max(2, -(-tq // max(64, SCORES // (B * H * k.shape[1]))))  # a loop of one is undone, and takes twice as long
    size = -(-tq // n)

    def split(x):  # [n, B, size, ...]
        x = jnp.pad(x, [(0, 0), (0, n * size - tq)] + [(0, 0)] * (x.ndim - 2))
        return x.reshape(B, n, size, *x.shape[2:]).swapaxes(0, 1)

    block = lambda x: _dense(x[0], k, v, x[1], kv_segments, False, scale)
    out = jax.lax.map(block, (split(q), None if q_segments is None else split(q_segments)))
    return out.swapaxes(0, 1).reshape(B, n * size, *q.shape[2:])[:, :tq]


def _dense(q, k, v, q_segments, kv_segments, causal, scale):
    B, tq, H, d = q.shape
    tk, K = k.shape[1:3]
    # [B, K, queries of the group, d]: the layout in which CPU runs batched products fastest, forward and backward.
    q = q.reshape(B, tq, K, H // K, d).transpose(0, 2, 3, 1, 4).reshape(B, K, H // K * tq, d)
    k, v = k.transpose(0, 2, 1, 3), v.transpose(0, 2, 1, 3)
    mask = attention_mask(tq, tk, q_segments, kv_segments, causal)
    bias = None if mask is None else jnp.where(mask, 0.0, _MASKED).astype(jnp.float32)[:, None, None]
    out = _attend(q * scale, k, v, bias)
    return out.reshape(B, K, H // K, tq, d).transpose(0, 3, 1, 2, 4).reshape(B, tq, H, d)


# The gradient is written out: of the [T, S] arrays only the weights are kept, which saves a CPU half its time.
@jax.custom_vjp
def _attend(q, k, v, bias):
    """softmax(q k^T + bias) v for q [B, K, G * T, d], k and v [B, K, S, d], bias [#B, 1, 1, T, S] or None."""
    return _attend_forward(q, k, v, bias)[0]


def _attend_forward(q, k, v, bias):
    scores = jnp.einsum("bkqd,bksd->bkqs", q, k, preferred_element_type=jnp.float32)
    if bias is not None:
        scores = (scores.reshape(*scores.shape[:2], -1, *bias.shape[-2:]) + bias).reshape(scores.shape)
    # A query that sees nothing: every score lies below the floor, so every weight is exactly 0.
    weights = jnp.exp(scores - jnp.maximum(jnp.max(scores, axis=-1, keepdims=True), 0.1 * _MASKED))
    total = jnp.sum(weights, axis=-1, keepdims=True)
    share = 1.0 / jnp.where(total == 0, 1.0, total)  # of [T, 1]: to divide weights would be one more pass over [T, S]
    weights = weights.astype(v.dtype)
    out = (jnp.einsum("bkqs,bksd->bkqd", weights, v, preferred_element_type=jnp.float32) * share).astype(v.dtype)
    return out, (q, k, v, bias, weights, share, out)


def _attend_backward(saved, grad):
    q, k, v, bias, weights, share, out = saved
    wide = {"preferred_element_type": jnp.float32}
    grad = (share * grad.astype(jnp.float32)).astype(grad.dtype)
    inner = jnp.sum(grad.astype(jnp.float32) * out.astype(jnp.float32), axis=-1, keepdims=True)  # of it as rounded
    grad_v = jnp.einsum("bkqs,bkqd->bksd", weights, grad, **wide).astype(v.dtype)
    grad_weights = jnp.einsum("bkqd,bksd->bkqs", grad, v, **wide)
    grad_scores = (weights.astype(jnp.float32) * (grad_weights - inner)).astype(q.dtype)
    grad_q = jnp.einsum("bkqs,bksd->bkqd", grad_scores, k, **wide).astype(q.dtype)
    grad_k = jnp.einsum("bkqs,bkqd->bksd", grad_scores, q, **wide).astype(k.dtype)
    return grad_q, grad_k, grad_v, None if bias is None else jnp.zeros_like(bias)


_attend.defvjp(_attend_forward, _attend_backward)
