"""RMSNorm and rotary tables against transformers' modules."""

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf
from transformers.models.qwen2_5_vl.configuration_qwen2_5_vl import Qwen2_5_VLTextConfig, Qwen2_5_VLVisionConfig

from edit_rl_jax.nn.norms import RMSNorm
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.rotary import mrope_table, rotate, vision_table


def test_rms_norm():
    """A small input, where a wrong epsilon shows, and bf16, whose statistics must be fp32."""
    rng = np.random.default_rng(0)
    for dtype, size, tol in [("float32", 1e-3, 1e-6), ("float32", 100.0, 1e-6), ("bfloat16", 100.0, 8e-3)]:
        x = rng.normal(size=(3, 5, 64)).astype(np.float32) * size
        ours, theirs = RMSNorm(64, eps=1e-6, rngs=nnx.Rngs(0), init=Init()), hf.Qwen2_5_VLRMSNorm(64, 1e-6)
        scale = rng.uniform(0.5, 1.5, 64).astype(np.float32)
        ours.scale[...], theirs.weight.data = jnp.asarray(scale), torch.tensor(scale)
        got = ours(jnp.asarray(x, dtype))
        assert got.dtype == dtype
        want = theirs(torch.tensor(x).to(getattr(torch, dtype)).float()).detach().numpy()
        assert np.abs(np.asarray(got, np.float32) - want).max() <= tol * max(1, np.abs(want).max())
        if dtype == "bfloat16":  # a mean square in bf16 is within the tolerance
            whole = ours(jnp.asarray(x, dtype).astype(jnp.float32)).astype(dtype)
            np.testing.assert_array_equal(got, whole)


@pytest.mark.parametrize("head_dim,sections", [(128, (16, 24, 24)), (16, (2, 3, 3))])
def test_mrope_table(head_dim, sections):
    rope = dict(rope_theta=1e6, rope_type="default", mrope_section=list(sections))
    cfg = Qwen2_5_VLTextConfig(hidden_size=2 * head_dim, num_attention_heads=2, rope_parameters=rope)
    positions = np.random.default_rng(0).integers(0, 4000, (2, 3, 50)).astype(np.int32)
    cos, sin = mrope_table(jnp.asarray(positions), head_dim, 1e6, sections)
    want = hf.Qwen2_5_VLRotaryEmbedding(cfg)(torch.zeros(1), torch.tensor(positions).transpose(0, 1))
    for ours, theirs in zip((cos, sin), want):
        assert ours.dtype == jnp.float32
        # an angle of 4000 has an ulp of 2.4e-4
        np.testing.assert_allclose(ours, theirs.numpy()[..., : head_dim // 2], atol=3e-4)
        near = positions.max(1) < 64
        np.testing.assert_allclose(np.asarray(ours)[near], theirs.numpy()[..., : head_dim // 2][near], atol=1e-5)


def test_vision_table_and_rotation():
    cfg = Qwen2_5_VLVisionConfig(hidden_size=160, num_heads=2, rope_parameters=dict(rope_theta=1e4, rope_type="axial"))
    rng = np.random.default_rng(0)
    hw = rng.integers(0, 128, (60, 2)).astype(np.int32)
    q = rng.normal(size=(60, 2, 80)).astype(np.float32)
    cos, sin = hf.Qwen2_5_VLVisionRotaryEmbedding(cfg)(torch.zeros(1), torch.tensor(hw))
    want = hf.apply_rotary_pos_emb_vision(torch.tensor(q), torch.tensor(q), cos, sin)[0].numpy()
    table = vision_table(jnp.asarray(hw[None]), 80)
    np.testing.assert_allclose(rotate(jnp.asarray(q[None]), *table)[0], want, atol=5e-5)
    rounded = rotate(jnp.asarray(q[None], jnp.bfloat16), *table)
    assert rounded.dtype == jnp.bfloat16 and table[0].dtype == jnp.float32
    # only the input and the result are rounded, neither the angles nor the product
    exact = rotate(jnp.asarray(q[None], jnp.bfloat16).astype(jnp.float32), *table).astype(jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(rounded, np.float32), np.asarray(exact, np.float32))


def test_rotation_is_relative():
    """Scores depend on differences of positions only."""
    q, k = np.random.default_rng(0).normal(size=(2, 1, 6, 1, 16)).astype(np.float32)
    at = np.random.default_rng(1).integers(0, 20, (1, 3, 6)).astype(np.int32)

    def scores(shift):
        cos, sin = mrope_table(jnp.asarray(at + np.array(shift, np.int32)[None, :, None]), 16, 1e4, (2, 3, 3))
        return jnp.einsum("bthd,bshd->bhts", rotate(jnp.asarray(q), cos, sin), rotate(jnp.asarray(k), cos, sin))

    np.testing.assert_allclose(scores((0, 0, 0)), scores((7, 3, 11)), atol=1e-4)
    with pytest.raises(ValueError, match="head_dim/2"):
        mrope_table(jnp.asarray(at), 16, 1e4, (2, 3, 4))
