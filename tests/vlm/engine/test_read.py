"""Prompts read instead of answered: against whole forward passes, shared or alone, in any company, on a mesh."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from edit_rl_jax.sharding import make_mesh, shardings
from edit_rl_jax.vlm.engine.prefill import Counters
from edit_rl_jax.vlm.engine.read import Reader
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded
from tests.parity import tiny
from tests.vlm.engine.test_engine import distinct_prefix_tokens, edits_of_one_source, prompts, samples

SHARED = 96


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    tiny.torch_model("tied_gqa").save_pretrained(folder)
    cfg = Config.from_hf(folder)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0))))
    return nnx.merge(graphdef, weights.load(folder, state))


@pytest.fixture(scope="module")
def reader(model):
    return Reader(model, lambda model, hidden: hidden, prompts=8)


def run(reader, prompts, **options):
    out = {r.index: r for r in reader.read(prompts, **options)}
    assert sorted(out) == list(range(len(prompts)))
    return [out[i].value for i in range(len(prompts))]


@jax.jit
def last_hidden(model, batch, last):
    return jnp.take(model.hidden(batch)[0], last, axis=0)


def whole(model, prompt):
    """The last hidden state of one prompt, in one pass over all of it."""
    tokens, loaded = prompt.tokens, [p.load() for _, p in prompt.pictures]
    grids = tuple(samples()[prompt.item].grids)
    patches = samples()[prompt.item].patches
    assert len(loaded) == len(grids)
    batch = empty_batch(Bucket(96, 1, 192, 1), 1, model.cfg)
    sample = Encoded("", tokens, np.zeros(len(tokens), bool), prompt.positions, patches, grids)
    write_row(batch, 0, [sample], model.cfg)
    return np.asarray(last_hidden(model, jax.tree.map(jnp.asarray, batch), len(tokens) - 1))


def test_reads_what_a_whole_forward_pass_gives(model, reader):
    asked = prompts(model.cfg)
    assert any(len(p.pieces()) > 2 for p in asked)
    for got, prompt in zip(run(reader, asked, shared=SHARED), asked):
        want = whole(model, prompt)
        assert np.abs(got - want).max() <= 1e-5 * np.abs(want).max()


def test_every_image_and_every_prefix_is_computed_once(model, reader):
    """Two questions about each of 12 edits of one source, in waves of 8 prompts."""
    rng = np.random.default_rng(0)
    both, _ = edits_of_one_source(model.cfg, 12, rng)
    end = lambda p, tail: dataclasses.replace(
        p,
        tokens=np.append(p.tokens, tail).astype(np.int32),
        positions=np.concatenate([p.positions, p.positions[:, -1:] + np.arange(1, len(tail) + 1)], 1).astype(np.int32),
        cuts=(*p.cuts, 40 + 36),
    )
    tails = rng.integers(3, 280, 7), rng.integers(3, 280, 4)
    asked = [end(p, tail) for p in both for tail in tails]
    reader.update(model)  # forgets what it has seen
    reader.counters = Counters()
    values = run(reader, asked, shared=SHARED)
    assert reader.counters.images == 13 and reader.counters.reads == 24
    # the questions differ from the cut behind the edited image on, so the ends of both are computed, with last tokens
    middle = len(both[0].tokens) - (40 + 36)
    assert reader.counters.prefill_tokens == distinct_prefix_tokens(asked) + len(asked) + 12 * middle
    assert len({v.tobytes() for v in values}) == 24 and values[0].shape == (64,)


def test_company_changes_nothing_and_compiles_nothing(model, reader):
    """Bit for bit at one compiled shape, whatever is read with it and in whatever waves."""
    asked = prompts(model.cfg)
    alone = [run(reader, [p], shared=SHARED)[0] for p in asked]
    compiled = reader.compilations
    for order in ([0, 1, 2, 3], [3, 1, 0, 2, 2], [2, 1, 3, 0, 1, 2, 0, 3, 1, 2, 2]):
        for i, got in zip(order, run(reader, [asked[i] for i in order], shared=SHARED)):
            np.testing.assert_array_equal(got, alone[i])
    assert reader.compilations == compiled
    with pytest.raises(ValueError, match="does not fit 8"):
        run(reader, asked, shared=8)


def test_what_cannot_be_loaded_spares_its_neighbours(model, reader):
    a, b, c, d = prompts(model.cfg)

    def broken():
        raise ValueError("unreadable image")

    ((at, picture),) = a.pictures
    bad = dataclasses.replace(a, pictures=((at, dataclasses.replace(picture, key=b"bad", load=broken)),))
    out = {r.index: r for r in reader.read([bad, b, bad, d], shared=SHARED)}
    assert str(out[0].problem) == str(out[2].problem) == "unreadable image" and out[0].value is None
    np.testing.assert_array_equal(out[1].value, run(reader, [b], shared=SHARED)[0])
    np.testing.assert_array_equal(out[3].value, run(reader, [d], shared=SHARED)[0])
    small = Reader(model, lambda model, hidden: hidden, feature_tokens=16)
    with pytest.raises(RuntimeError, match="no room for one prompt"):
        run(small, [b])


def test_other_weights_leave_nothing_behind(model, reader):
    asked = prompts(model.cfg)
    before, compiled = run(reader, asked, shared=SHARED), reader.compilations
    state = nnx.state(model)
    reader.update(jax.tree.map(lambda x: x * jnp.asarray(1.03, x.dtype), state))
    other = run(reader, asked, shared=SHARED)
    reader.update(model)
    assert not any((x == y).all() for x, y in zip(before, other))
    for x, y in zip(before, run(reader, asked, shared=SHARED)):
        np.testing.assert_array_equal(x, y)
    assert reader.compilations == compiled


def test_a_mesh_changes_rounding_only(model, reader):
    mesh = make_mesh({"data": 2, "tensor": 2})
    graphdef, state = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(state, shardings(state, mesh)))
    spread, asked = Reader(placed, lambda model, hidden: hidden, prompts=8, mesh=mesh), prompts(model.cfg)[1:3]
    for x, y in zip(run(spread, asked, shared=SHARED), run(reader, asked, shared=SHARED)):
        assert np.abs(x - y).max() <= 1e-5 * np.abs(y).max()
    compiled = spread.compilations
    run(spread, asked[::-1], shared=SHARED)
    assert spread.compilations == compiled
