"""The packed, scanned update of replies against torch, one reply at a time; and what it leaves alone."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax import sharding
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import peft, weights
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.rl.vlm.losses import TokenLoss
from edit_rl_jax.rl.vlm.packing import Packer
from edit_rl_jax.rl.vlm.update import make_gradient, make_old
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.tokenizer import TextEncoder, load_tokenizer
from tests.rl.vlm import reference

SETTINGS = TokenLoss(reference.CLIP, reference.KL)
BUCKET = Bucket(180, 2, 96, 60)


@functools.cache
def ours():
    """(merge, trainable, those of an adapter that is off, frozen, architecture), of the files that torch wrote."""
    base, adapter = reference.folders()
    kind = family.of(base)
    cfg = kind.architecture(base)
    make = lambda: kind.model(cfg, rngs=nnx.Rngs(0), lora=LoRAConfig(4, 2.0))
    graphdef, t, f = nnx.split(nnx.eval_shape(make), Trainable, Frozen)
    frozen = st.flatten(weights.load(base, f, kind.NAMING))
    trainable = st.flatten(peft.load(adapter, t, kind.NAMING))
    merge = lambda a, b: nnx.merge(graphdef, st.unflatten(t, a), st.unflatten(f, b))
    off = {k: jnp.zeros_like(v) if k.endswith("lora_b") else v for k, v in trainable.items()}
    return merge, trainable, off, frozen, cfg, t


def packer(microbatches=3, rows=2, bucket=BUCKET):
    text, cfg = TextEncoder(load_tokenizer(reference.folders()[0])), ours()[4]
    return Packer(text, cfg, cfg.images(**reference.PIXELS), bucket, rows, microbatches)


@functools.cache
def gradient():
    return jax.jit(make_gradient(SETTINGS, ours()[0], reference.TEMPERATURE))


def run(batch, on_policy=False):
    _, trainable, off, frozen, *_ = ours()
    pairs = np.float32(reference.PAIRS)
    return gradient()(trainable, off, frozen, batch.arrays, np.int32(batch.count), pairs, np.bool_(on_policy))


@pytest.fixture(scope="module")
def batch():
    return packer().pack(reference.replies())


def test_images_stand_once_in_a_row(batch):
    names = [name for m in batch.names for row in m for name in row]
    assert sorted(names) == [e.key for e in reference.replies()] and batch.left_out == 0
    shown = {
        frozenset((key.split("/")[0], side) for key in row for side in ("source", key.split("/")[1]))
        for m in batch.names
        for row in m
    }
    assert batch.images == sum(map(len, shown)) and batch.count == 2
    assert 0.5 < batch.real_token_share < 0.6  # three of the four rows that are run, of small replies
    few = packer(microbatches=1, rows=1).pack(reference.replies())
    assert few.left_out == 12 - len(few.names[0][0]) > 0


def test_images_that_no_row_takes_are_told_before_anything_is_written():
    reply = reference.replies()[0]
    packer().check(reply)
    small = packer(bucket=dataclasses.replace(BUCKET, row_patches=16))
    with pytest.raises(RecordError, match=f"{reply.key}: images too large .*patches, data.buckets"):
        small.check(reply)
    assert small.pack([reply]).left_out == 1  # which more microbatches would not help


def test_a_batch_is_described_without_making_it(batch):
    described = lambda arrays: {k: (x.shape, x.dtype) for k, x in arrays.items()}
    assert described(packer().shapes()) == described(batch.arrays)
    assert packer(microbatches=1 << 30).shapes()["tokens"].shape[:2] == (1 << 30, 2)  # terabytes


def test_an_edit_that_changed_nothing_spoils_no_other(batch):
    """Its prompt shows one image twice; those that follow in the row keep their own."""
    first, second = reference.replies()[0], reference.replies()[-1]
    unchanged = dataclasses.replace(first, prompt=(*first.prompt[:3], first.prompt[1], first.prompt[4]))
    merge, trainable, _, frozen, *_ = ours()
    old = jax.jit(make_old(merge))

    def found(*replies):
        packed = packer(microbatches=1, rows=1).pack(replies)
        assert packed.left_out == 0
        return packed, np.asarray(old(trainable, frozen, packed.arrays, np.int32(1)))[0, 0]

    both, together = found(unchanged, second)
    lengths = [len(r.answer.ids) for r in (unchanged, second)]
    alone = [found(r)[1][:n] for r, n in zip((unchanged, second), lengths)]
    assert both.images == 3
    np.testing.assert_allclose(together[: sum(lengths)], np.concatenate(alone), atol=1e-5)


@pytest.mark.parametrize("on_policy", [False, True])
def test_equals_one_reply_at_a_time_in_torch(batch, on_policy):
    """Show b, with clipping, temperature and KL: the loss to 1e-6. Gradients were asked for to 1e-6 of a tensor's
    maximum, which fp32 does not reach: torch's own are off its float64 ones by 2.2e-6 at worst, ours by 1.9e-6."""
    grads, metrics = run(batch, on_policy)
    value, theirs = reference.loss(reference.replies(), on_policy)
    exact, wanted = reference.loss(reference.replies(), on_policy, torch.float64)
    for v in (value, exact):
        assert abs(float(metrics["loss"]) - v) <= 1e-6 * abs(v)
    state = st.unflatten(ours()[5], grads)
    kind = family.of(reference.folders()[0])
    found = peft.tensors(state, peft.make_adapter(state, kind.NAMING, 4, 2.0))
    assert found.keys() == wanted.keys()
    off = lambda a: {k: np.abs(np.asarray(a[k]) - wanted[k]).max() / np.abs(wanted[k]).max() for k in wanted}
    errors, of_torch = off(found), max(off(theirs).values())
    print(f"worst gradient of ours {max(errors.values()):.2e}, of torch in fp32 {of_torch:.2e}")
    assert max(errors.values()) <= 3e-6, sorted(errors.items(), key=lambda x: -x[1])[:4]
    assert np.median(list(errors.values())) <= 1e-6
    if on_policy:
        assert metrics["log_ratio_abs_max"] == 0 and metrics["ratio_positive_max"] == 1
        assert metrics["ratio_negative_min"] == 1 and metrics["clip_share"] == 0
    else:
        assert metrics["clip_share"] > 0 and metrics["kl"] > 0


def test_the_difference_to_the_engine_is_that_of_plain_log_probabilities(batch):
    _, metrics = run(batch)
    with torch.no_grad():
        off = [
            reference.token_log_probs(e, temperature=1.0).numpy() - e.answer.arrays["engine"]
            for e in reference.replies()
        ]
    off = np.abs(np.concatenate(off))
    assert off.max() > 1.5 * off.mean() > 0.1
    np.testing.assert_allclose(metrics["engine_difference"], off.mean(), rtol=1e-5)
    np.testing.assert_allclose(metrics["engine_difference_max"], off.max(), rtol=1e-5)


def test_old_is_what_the_update_finds(batch):
    """Log-probabilities made for later updates of a rollout, by the other program: the ratio is 1 but for rounding."""
    merge, trainable, _, frozen, *_ = ours()
    old = jax.jit(make_old(merge, reference.TEMPERATURE))(trainable, frozen, batch.arrays, np.int32(batch.count))
    _, metrics = run(type(batch)(batch.arrays | {"answer_old": old}, batch.count, batch.names, 0, 0))
    assert metrics["log_ratio_abs_max"] < 1e-5
    by_key = {e.key: e for e in reference.replies()}
    first = by_key[batch.names[0][0][0]]
    theirs = reference.token_log_probs(first).detach().numpy()
    np.testing.assert_allclose(old[0, 0, : len(theirs)], theirs, atol=1e-5)


def test_microbatches_without_rows_are_not_run(batch):
    """What stands there, even NaN, is of no account; nor how many there are."""
    spoilt = {
        k: np.where(
            np.arange(3).reshape(-1, *[1] * (v.ndim - 1)) < batch.count, v, np.nan if v.dtype.kind == "f" else v
        ).astype(v.dtype)
        for k, v in batch.arrays.items()
    }
    (a, m), (b, n) = run(batch), run(type(batch)(spoilt, batch.count, batch.names, 0, 0))
    jax.tree.map(np.testing.assert_array_equal, (a, m), (b, n))


def test_equals_one_device_on_a_mesh(batch):
    """With whole copies along "data" and two devices to a copy, as the presets of `configs/gcpo.py` are."""
    merge, trainable, off, frozen, cfg, t = ours()
    mesh = sharding.make_mesh({"data": 2, "tensor": 2})
    with jax.set_mesh(mesh):
        model = family.of(cfg).model
        make = lambda: model(cfg, rngs=nnx.Rngs(0), lora=LoRAConfig(4, 2.0))
        _, *states = nnx.split(nnx.eval_shape(make), Trainable, Frozen)
    over = [st.flatten(sharding.shardings(state, mesh)) for state in states]
    put = jax.device_put
    weights = (put(trainable, over[0]), put(off, over[0]), put(frozen, over[1]))
    arrays = put(batch.arrays, sharding.batch_shardings(batch.arrays, mesh, accum=True))
    parted = {k for k, v in weights[2].items() if not v.sharding.is_fully_replicated}
    assert any("q_proj" in k for k in parted) and any("embed" in k for k in parted)
    with jax.set_mesh(mesh):
        program = jax.jit(make_gradient(SETTINGS, merge, reference.TEMPERATURE))
        grads, metrics = program(*weights, arrays, np.int32(batch.count), np.float32(reference.PAIRS), np.bool_(False))
    wanted, of_one = run(batch)
    assert float(metrics["loss"]) == pytest.approx(float(of_one["loss"]), rel=1e-6)
    for key, value in wanted.items():
        np.testing.assert_allclose(grads[key], value, atol=2e-5 * np.abs(value).max(), err_msg=key)
