"""Attention by the splash kernel (TPU; interpreted on CPU in tests). Same contract as `nn.attention.attention`."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_kernel as splash
from jax.experimental.pallas.ops.tpu.splash_attention import splash_attention_mask as masks
from jax.sharding import PartitionSpec as P
from jaxtyping import Array, Float, Int

from edit_rl_jax.nn.attention_xla import xla_attention

LANES = 128


def block_size(length: int, largest: int = 512) -> int:
    """Block (a multiple of 128 lanes) that pads `length` least; of equals the largest."""
    sizes = range(min(largest, -(-length // LANES) * LANES), 0, -LANES)
    return min(sizes, key=lambda b: -(-length // b) * b)


def splash_attention(
    q: Float[Array, "B T H d"],
    k: Float[Array, "B S K d"],
    v: Float[Array, "B S K d"],
    *,
    q_segments: Int[Array, "B T"] | None = None,
    kv_segments: Int[Array, "B S"] | None = None,
    causal: bool = False,
    scale: float | None = None,
    interpret: bool = False,
) -> Float[Array, "B T H d"]:
    """Attention inside equal, non-zero segments; rows that may attend nothing give 0 and get no gradient.

    Under a mesh (`jax.set_mesh`) the kernel runs in `jax.shard_map`: rows over the axes "data" and "fsdp", heads over
    "tensor". Sequences shorter than one block of the kernel (vision windows) go to `xla_attention`.
    Raises ValueError for causal attention between unequal lengths, and for rows or heads that do not divide over the
    mesh.
    """
    if max(q.shape[1], k.shape[1]) < LANES:
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        return xla_attention(q, k, v, q_segments=q_segments, kv_segments=kv_segments, causal=causal, scale=scale)
    length, head_dim = q.shape[1], q.shape[-1]
    if causal and k.shape[1] != length:
        raise ValueError(f"causal splash attention wants equal lengths, got {length} queries and {k.shape[1]} keys")
    same = q_segments is kv_segments
    if q_segments is None:
        q_segments = jnp.ones(q.shape[:2], jnp.int32)
    if kv_segments is None:
        kv_segments = jnp.ones(k.shape[:2], jnp.int32)
    live = q_segments > 0
    if not same:
        live &= (q_segments[:, :, None] == kv_segments[:, None, :]).any(-1)
    q = (q.astype(jnp.float32) * (head_dim**-0.5 if scale is None else scale)).astype(q.dtype)

    block_q, block_kv = block_size(length), block_size(k.shape[1])
    q, q_segments = _pad(q, block_q), _pad(q_segments, block_q)
    k, v, kv_segments = _pad(k, block_kv), _pad(v, block_kv), _pad(kv_segments, block_kv)

    mesh = jax.sharding.get_abstract_mesh()
    rows = tuple(axis for axis in ("data", "fsdp") if axis in mesh.shape)
    heads = "tensor" if "tensor" in mesh.shape else None
    head_shards = mesh.shape[heads] if heads else 1
    row_shards = math.prod(mesh.shape[axis] for axis in rows)
    if q.shape[0] % row_shards or q.shape[2] % head_shards:
        raise ValueError(
            f"splash attention: {q.shape[0]} rows over {row_shards}, {q.shape[2]} heads over {head_shards}"
        )
    repeat = math.lcm(k.shape[2], head_shards) // k.shape[2]
    if repeat > 1:  # fewer KV heads than tensor shards: every shard has its copy
        k, v = jnp.repeat(k, repeat, axis=2), jnp.repeat(v, repeat, axis=2)

    def local(q, k, v, q_segments, kv_segments):
        kernel = _kernel(q.shape[2], q.shape[1], k.shape[1], block_q, block_kv, causal, interpret)
        q, k, v = (x.swapaxes(1, 2) for x in (q, k, v))
        out = jax.vmap(kernel)(q, k, v, splash.SegmentIds(q_segments, kv_segments))
        return out.swapaxes(1, 2)

    if mesh.shape and mesh.size > 1:
        array, ids = P(rows or None, None, heads, None), P(rows or None, None)
        local = jax.shard_map(local, in_specs=(array, array, array, ids, ids), out_specs=array, check_vma=False)
    out = local(q, k, v, q_segments, kv_segments)[:, :length]
    return jnp.where(live[:, :, None, None], out, 0)


splash_attention_interpret = functools.partial(splash_attention, interpret=True)


def _pad(x: Array, multiple: int) -> Array:
    short = -x.shape[1] % multiple
    return jnp.pad(x, [(0, 0), (0, short)] + [(0, 0)] * (x.ndim - 2)) if short else x


def _kernel(heads: int, q_len: int, kv_len: int, block_q: int, block_kv: int, causal: bool, interpret: bool):
    mask = masks.CausalMask((q_len, kv_len)) if causal else masks.FullMask((q_len, kv_len))
    sizes = splash.BlockSizes(
        block_q=block_q,
        block_kv=block_kv,
        block_q_dkv=block_q,
        block_kv_dkv=block_kv,
        block_q_dq=block_q,
        block_kv_dq=block_kv,
    )
    heads_mask = masks.MultiHeadMask([mask] * heads)
    # what its backward pass wants is named for rematerialisation (nn/stack.py), so that it need not run twice
    how = dict(head_shards=1, q_seq_shards=1, residual_checkpoint_name="attention", interpret=interpret)
    return splash.make_splash_mha(heads_mask, block_sizes=sizes, **how)
