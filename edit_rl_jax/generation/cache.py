"""The KV cache: [shared prefix | own]. A prompt's keys and values are held once, however many answers it gets.

Heads stand before tokens, so that both products of attention are plain batched matrix products without transposing the
cache. L layers, P prompts, K samples a prompt, T prompt tokens, N new tokens, Hkv key-value heads of size d.
"""

import dataclasses

import jax
import jax.numpy as jnp
from jax.tree_util import register_dataclass
from jaxtyping import Array, Bool, Float, Int

from edit_rl_jax.sharding import shard

HEADS = (None, "batch", "kv_heads")


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Prefix:
    """What prefill leaves of P prompts.

    Attributes:
      k, v: [L, P, Hkv, T, d], rotary applied, in the model's activation dtype.
      mask: [P, T], False on padding. A prompt without tokens is a row to ignore.
      next_position: [P], the M-RoPE position of the first answer token (all three axes).
      logits: [P, V] fp32, for the first answer token.
    """

    k: Float[Array, "L P Hkv T d"]
    v: Float[Array, "L P Hkv T d"]
    mask: Bool[Array, "P T"]
    next_position: Int[Array, " P"]
    logits: Float[Array, "P V"]


@register_dataclass
@dataclasses.dataclass(frozen=True)
class Own:
    """Keys and values of the answers' own tokens, [L, P, Hkv, K, N, d]."""

    k: Float[Array, "L P Hkv K N d"]
    v: Float[Array, "L P Hkv K N d"]

    @classmethod
    def empty(cls, prefix: Prefix, samples: int, tokens: int) -> "Own":
        L, P, H, _, d = prefix.k.shape
        zeros = lambda x: shard(jnp.zeros((L, P, H, samples, tokens, d), x.dtype), *HEADS, None, None, None)
        return cls(zeros(prefix.k), zeros(prefix.v))

    def write(self, k: Array, v: Array, step: Array) -> "Own":
        """With the keys and values [L, P, Hkv, K, d] of token `step` of every answer."""
        put = lambda cache, new: jax.lax.dynamic_update_slice_in_dim(cache, new[..., None, :], step, axis=4)
        return Own(put(self.k, k), put(self.v, v))


def to_heads(x: Float[Array, "P T H d"]) -> Float[Array, "P H T d"]:
    return shard(jnp.swapaxes(x, 1, 2), "batch", "kv_heads", None, None)


def decode_attention(
    q: Float[Array, "B 1 H d"],
    k: Float[Array, "B 1 Hkv d"],
    v: Float[Array, "B 1 Hkv d"],
    prefix: tuple[Array, Array],
    own: tuple[Array, Array],
    mask: Bool[Array, "P T"],
    step: Array,
) -> tuple[Float[Array, "B 1 H d"], tuple[Array, Array]]:
    """One new token of each of B = P * K answers against its prompt's prefix, its `step` earlier tokens, and itself.

    `prefix` k, v [P, Hkv, T, d]; `own` k, v [P, Hkv, K, N, d]. The prefix is multiplied with all K queries of its
    prompt at once and never copied. One softmax (fp32) over the joined scores is the
    two-part softmax merged by log-sum-exp.
    Returns the output and the token's (k, v) as [P, Hkv, K, d].
    """
    (pk, pv), (ok, ov) = prefix, own
    P, Hkv, T, d = pk.shape
    K, N = ok.shape[2:4]
    q = jnp.swapaxes(q.reshape(P, K, Hkv, -1, d), 1, 2)  # [P, Hkv, K, G, d]
    k, v = (jnp.swapaxes(x.reshape(P, K, Hkv, d), 1, 2) for x in (k, v))
    product = lambda spec, a, b: jnp.einsum(spec, a, b, preferred_element_type=jnp.float32)
    scores = [
        jnp.where(mask[:, None, None, None, :], product("phkgd,phtd->phkgt", q, pk), -1e30),
        jnp.where((jnp.arange(N) < step)[None, None, None, None, :], product("phkgd,phknd->phkgn", q, ok), -1e30),
        product("phkgd,phkd->phkg", q, k)[..., None],
    ]
    p = jax.nn.softmax(jnp.concatenate(scores, axis=-1) * d**-0.5, axis=-1).astype(v.dtype)
    out = product("phkgt,phtd->phkgd", p[..., :T], pv) + product("phkgn,phknd->phkgd", p[..., T:-1], ov)
    out = out + p[..., -1:].astype(jnp.float32) * v[..., None, :].astype(jnp.float32)
    return jnp.swapaxes(out.astype(v.dtype), 1, 2).reshape(P * K, 1, -1, d), (k, v)
