"""Rules of guidance: true guidance at the norm of the full branch, a number that the network reads."""

import zlib

import jax
import jax.numpy as jnp
import numpy as np

from edit_rl_jax.flow.guidance import EmbeddedGuidance, TrueGuidance


def drawn(name, shape=(2, 6, 16)):
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def test_true_guidance_is_qwen_image_edits():
    """The numbers are those of diffusers' pipeline, recorded."""
    rule = TrueGuidance(4.0)
    v = jnp.stack([drawn("cond"), drawn("negative")], axis=1)
    out = np.asarray(rule.combine(v, jnp.zeros(2)))
    want = [0.0018288, 1.0114831, 157.11658, -0.817251, -0.974987, -1.706161, -1.195136, -1.760136, -1.946910]
    found = [out.mean(), out.std(), np.abs(out).sum(), *out.ravel()[:4], *out.ravel()[-2:]]
    np.testing.assert_allclose(found, want, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(out, axis=-1), np.linalg.norm(v[:, 0], axis=-1), rtol=1e-5)
    assert (rule.branches, TrueGuidance(1.0).branches, TrueGuidance(4.0, 3.0).branches) == (2, 1, 2)
    plain = TrueGuidance(4.0, keep_norm=False).combine(v, jnp.zeros(2))
    np.testing.assert_allclose(plain, v[:, 1] + 4 * (v[:, 0] - v[:, 1]), rtol=1e-5)


def test_padding_stays_zero_and_has_a_gradient():
    """Where both branches are 0 their norms are too."""
    v = jnp.stack([drawn("cond"), drawn("negative")], axis=1).at[:, :, 3:].set(0.0)
    value, grad = jax.value_and_grad(lambda v: jnp.sum(TrueGuidance(4.0).combine(v, jnp.zeros(2)) ** 2))(v)
    out = TrueGuidance(4.0).combine(v, jnp.zeros(2))
    assert not np.asarray(out)[:, 3:].any() and np.isfinite(value) and np.isfinite(grad).all()


def test_embedded_guidance_is_one_forward():
    assert EmbeddedGuidance(2.5).branches == 1 and not EmbeddedGuidance(2.5).guided(0, 28)
