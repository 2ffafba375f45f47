"""The loss of answer tokens against its definition, and what must not reach it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.vlm.cross_entropy import loss

V, D, B, T, A = 50, 16, 3, 20, 11


class LinearModel:
    """The smallest model with the interface of the loss: hidden states are given, the head is one matrix."""

    def __init__(self, hidden, head):
        self.states, self.head = hidden, head

    def hidden(self, batch):
        return self.states

    def logits(self, h):
        return h @ self.head


def make(seed=0):
    r = np.random.default_rng(seed)
    index = r.integers(0, T, (B, A)).astype(np.int32)
    index[1, 5:], index[2, :] = -1, -1
    weights = np.where(index >= 0, r.uniform(0.5, 1, (B, A)), 1.0).astype(np.float32)  # weight 1 under padding: ignored
    targets = r.integers(0, V, (B, A)).astype(np.int32)
    hidden, head = r.normal(size=(B, T, D)).astype(np.float32), r.normal(size=(D, V)).astype(np.float32)
    return hidden, head, {"answer_index": index, "answer_targets": targets, "answer_weights": weights}


def direct(hidden, head, batch):
    logp = jax.nn.log_softmax(hidden @ head)
    rows = jnp.zeros(B)
    for b in range(B):
        for a in range(A):
            if batch["answer_index"][b, a] >= 0:
                nats = -logp[b, batch["answer_index"][b, a], batch["answer_targets"][b, a]]
                rows = rows.at[b].add(nats * batch["answer_weights"][b, a])
    return rows


@pytest.mark.parametrize("chunk", [1, 4, 11, 256])
def test_loss_and_gradients_equal_the_definition(chunk):
    hidden, head, batch = make()
    total, weight, metrics = loss(LinearModel(hidden, head), batch, chunk=chunk)
    rows = direct(hidden, head, batch)
    np.testing.assert_allclose(total, rows.sum(), rtol=1e-6)
    np.testing.assert_allclose(metrics["rows"][0], rows, rtol=1e-6)
    assert float(weight) == pytest.approx(float(batch["answer_weights"][batch["answer_index"] >= 0].sum()))
    ours = jax.grad(lambda h, w: loss(LinearModel(h, w), batch, chunk=chunk)[0], (0, 1))(hidden, head)
    theirs = jax.grad(lambda h, w: direct(h, w, batch).sum(), (0, 1))(hidden, head)
    for a, b in zip(ours, theirs):
        assert np.abs(a - b).max() <= 1e-6 * np.abs(b).max()


def test_padding_never_reaches_the_loss():
    hidden, head, batch = make()
    used = np.zeros((B, T), bool)
    for b in range(B):
        used[b, batch["answer_index"][b][batch["answer_index"][b] >= 0]] = True
    poisoned = np.where(used[..., None], hidden, np.nan)
    poisoned[2] = np.nan  # a row without answers
    value, grad = jax.value_and_grad(lambda h: loss(LinearModel(h, head), batch)[0])(poisoned)
    assert float(value) == float(loss(LinearModel(hidden, head), batch)[0])
    assert np.isfinite(grad).all() and (np.asarray(grad)[~used] == 0).all()


def test_a_nan_row_is_named_by_its_sum():
    hidden, head, batch = make()
    hidden[1, batch["answer_index"][1, 0]] = np.nan
    rows = loss(LinearModel(hidden, head), batch)[2]["rows"][0]
    assert np.isnan(rows[1]) and np.isfinite(rows[0]) and float(rows[2]) == 0


def test_logits_of_a_whole_row_never_exist():
    hidden, head, batch = make()
    jaxpr = jax.make_jaxpr(jax.grad(lambda h: loss(LinearModel(h, head), batch, chunk=4)[0]))(hidden)
    sizes = [v.aval.size for e in _equations(jaxpr.jaxpr) for v in e.outvars if V in getattr(v.aval, "shape", ())]
    assert max(sizes) <= B * 4 * V


def _equations(jaxpr):
    for e in jaxpr.eqns:
        yield e
        for value in e.params.values():
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _equations(inner)
