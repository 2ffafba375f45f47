"""Training an editor: what is dropped, what the loss counts, the average of the weights, that it learns."""

import dataclasses
from functools import cache
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.images import ImageError
from edit_rl_jax.data.records import EditRecord, RecordError
from edit_rl_jax.editors.flow_matching import FlowMatching
from edit_rl_jax.editors.flux_kontext import editor as flux_kontext
from edit_rl_jax.editors.pixels import to_pixels
from edit_rl_jax.editors.rows import OWN, EditRows, EditShape, cover
from edit_rl_jax.flow import matching
from edit_rl_jax.flow.keys import Purpose, item_keys
from edit_rl_jax.flow.matching import Times
from edit_rl_jax.names import ConfigError
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import on_mesh, optim
from edit_rl_jax.training import sources as data
from edit_rl_jax.training.config import default
from edit_rl_jax.training.program import abstract_batches, build_program
from tests.editors import toy
from tests.training import micro_editor

pytestmark = pytest.mark.standard_promotion
SIDE = 8


@cache
def program(**changes):
    config = micro_editor.config(**changes)
    return build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]))


def start(p):
    rng = np.random.default_rng(0)

    def value(name, like):  # by NumPy: the initializers take longer to compile than these tests to run
        if name.endswith(("scale", "bias")):
            return jnp.full(like.shape, float(name.endswith("scale")), like.dtype)
        return jnp.asarray(rng.normal(0, like.shape[-2] ** -0.5, like.shape), like.dtype)

    trainable, frozen = ({k: value(k, v) for k, v in part.items()} for part in (p.trainable, p.frozen))
    with jax.set_mesh(p.mesh):
        return p.init_state(trainable), frozen


@cache
def batch():
    """A batch of real edits: [accum, rows, ...] arrays."""
    config = program().config
    stream = data.Input.of(config).batches(data.source(config, "train"))
    found = next(stream)[0]
    stream.close()
    return found


def test_dropped_instructions_and_references():
    record = EditRecord("key", b"source", b"edited", "make it red")
    objective = FlowMatching(drop_text=0.3, drop_references=0.5)
    made = [objective.to_examples(record, seed)[0] for seed in range(4000)]
    assert all(x.target == b"edited" and x.key == "key" for x in made)
    dropped = [x for x in made if x.instruction is None]
    bare = [x for x in dropped if not x.references]
    assert abs(len(dropped) - 1200) < 4 * np.sqrt(4000 * 0.3 * 0.7)
    assert abs(len(bare) - len(dropped) / 2) < 4 * np.sqrt(len(dropped) / 4)
    assert all(x.references == (b"source",) for x in made if x.instruction is not None)
    assert len({x.seed for x in made}) == 4000 and objective.to_examples(record, 7)[0] == made[7]


def test_a_batch_is_described_without_making_it():
    form = EditRows(toy.Editor().processor, toy.folder_tokenizer(), [EditShape(6, 1, SIDE, SIDE)])
    size = SimpleNamespace(accum=3, rows=2)
    described = lambda: abstract_batches(size, form, make_mesh({"data": 1, "fsdp": 1, "tensor": 1}, jax.devices()[:1]))
    made = form.empty(0, 2)
    assert {k: x.shape for k, x in described()[form.buckets[0]].items()} == {k: (3, *x.shape) for k, x in made.items()}
    size.rows = 1 << 30
    assert described()[form.buckets[0]]["target"].shape[:2] == (3, 1 << 30)  # terabytes


def toy_rows(examples: list[EditExample], rows: int):
    """A batch of the toy editor, whose velocity leads to reference + 0.1 x pluses."""
    editor = toy.Editor()
    form = EditRows(editor.processor, toy.folder_tokenizer(), [EditShape(6, 1, SIDE, SIDE)])
    out = form.empty(0, rows)
    for r, example in enumerate(examples):
        form.write(out, r, [form.encode(form.measure(example))])
    return editor, {k: jnp.asarray(v) for k, v in out.items()}


def edits(shifts: list[int], seed: int = 0) -> list[EditExample]:
    """Grey pictures whose edit is `shift` levels from what the toy editor does."""
    rng = np.random.default_rng(seed)
    sources = [rng.integers(0, 200, (SIDE, SIDE, 3)).astype(np.uint8) for _ in shifts]
    return [
        EditExample("x", (s,), (s + d).astype(np.uint8), f"e{i}", 11 + i)
        for i, (s, d) in enumerate(zip(sources, shifts))
    ]


def test_the_loss_in_closed_form():
    """The velocity's error is the picture's over 1 - t; rows of padding count nothing."""
    objective = FlowMatching(times=Times("uniform", "none"), sample=False, seed=5)
    editor, rows = toy_rows(edits([0, 20, 40]), 5)
    total, weight, metrics = objective.loss(editor, rows)
    keys = item_keys(5, Purpose.TRAINING, 0, rows["seed"], jnp.zeros(5, jnp.int32))
    t = np.asarray(objective.times.draw(keys, jnp.full(5, 16)))
    shifts = np.array([0, 20, 40, 0, 0]) / 127.5
    numbers = SIDE * SIDE * 3
    wanted = numbers * (shifts / (1 - t)) ** 2
    np.testing.assert_allclose(metrics["rows"][0], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(float(total), wanted.sum(), rtol=1e-4)
    assert metrics["rows"][1].tolist() == [numbers] * 3 + [0, 0] and float(weight) == 3 * numbers


def test_times_are_drawn_as_the_config_says():
    c = default(kind="qwen_image_edit", objective="flow_matching")
    assert FlowMatching.configured(c).times == Times()
    c.flow.max_shift, c.flow.max_tokens = 0.9, 8192
    assert FlowMatching.configured(c).times == Times("lognormal", "linear", 0.9, 8192)
    c.flow.shift = "sqrt"
    with pytest.raises(ConfigError, match="'flow.max_shift', 'flow.max_tokens' are of shift linear, not 'sqrt'"):
        FlowMatching.configured(c)


def test_what_changed_weighs_more():
    """1 + 4 x the squared difference to the reference, at most 5; 1 where there is no reference."""
    plain, weighted = (FlowMatching(sample=False, changed=w) for w in (0.0, 4.0))
    editor, rows = toy_rows(edits([0, 20, 55]), 4)
    before, after = (np.asarray(x.loss(editor, rows)[2]["rows"][0]) for x in (plain, weighted))
    wanted = before * (1 + 4 * np.array([0, 20 / 127.5, 55 / 127.5, 0]) ** 2)
    np.testing.assert_allclose(after, wanted, rtol=1e-4, atol=1e-5)
    bare = rows | {"reference_count": jnp.minimum(rows["reference_count"], 0)}
    same = (np.asarray(x.loss(editor, bare)[2]["rows"][0]) for x in (plain, weighted))
    np.testing.assert_array_equal(*same)


def test_an_edit_has_the_same_loss_in_any_company():
    objective = FlowMatching(sample=False)
    alone = objective.loss(*toy_rows(edits([9, 30])[1:], 1))[2]["rows"][0][0]
    beside = objective.loss(*toy_rows(edits([9, 30]), 2))[2]["rows"][0][1]
    np.testing.assert_allclose(alone, beside, rtol=1e-6)


def test_padding_reaches_no_loss():
    """Of the micro editor: other tokens, pixels and random numbers in padding change nothing."""
    p = program()
    weights, rows = start(p), batch()
    first = {k: jnp.asarray(v[0]) for k, v in rows.items()}
    for name in [k for k in first if k.endswith("segments")]:
        first[name] = first[name].at[3].set(0)
    first["reference_count"] = first["reference_count"].at[3].set(-1)
    other = dict(first)
    other["target"] = other["target"].at[3].set(77)
    empty = first["reference_count"] <= 0
    other["references"] = jnp.where(empty[:, None, None, None, None], 99, other["references"]).astype(jnp.uint8)
    other["tokens"] = jnp.where(first["token_segments"] > 0, first["tokens"], 5)
    other["seed"] = other["seed"].at[3].set(1)
    with jax.set_mesh(p.mesh):
        grad = jax.jit(jax.value_and_grad(p.loss, has_aux=True))
        (a, (n, _)), ga = grad(weights[0]["trainable"], weights[1], first)
        (b, _), gb = grad(weights[0]["trainable"], weights[1], other)
    assert float(n) == 3 * 16 * micro_editor.configs().transformer.token_dim
    assert float(a) == float(b)
    jax.tree.map(np.testing.assert_array_equal, ga, gb)


def test_the_average_of_the_weights_follows_its_recursion():
    p = program()
    state, frozen = start(p)
    rows = {k: jnp.asarray(v) for k, v in batch().items()}
    average = {k: np.asarray(v, np.float64) for k, v in state["trainable"].items()}
    for n in range(3):
        with jax.set_mesh(p.mesh):
            state, out = p.step(state, frozen, rows, np.int32(n))
        decay = min(0.9, (1 + n) / (10 + n))
        average = {k: decay * a + (1 - decay) * np.asarray(state["trainable"][k]) for k, a in average.items()}
        assert bool(out["finite"])
    for name, value in optim.averaged(state).items():
        np.testing.assert_allclose(value, average[name], rtol=1e-5, atol=1e-7, err_msg=name)
    before = jax.tree.map(np.asarray, state["ema"])
    sick = {k: v * float("nan") for k, v in frozen.items()}
    with jax.set_mesh(p.mesh):
        after, out = p.step(state, sick, rows, np.int32(3))
    assert not bool(out["finite"])
    jax.tree.map(np.testing.assert_array_equal, before, after["ema"])


def test_it_learns_one_batch_by_heart():
    p = program(optim__lr=2e-2, optim__name="muon", optim__adam_lr=5e-3, optim__schedule="constant", optim__warmup=5)
    state, frozen = start(p)
    rows = {k: jnp.asarray(v) for k, v in batch().items()}
    losses = []
    for n in range(150):
        with jax.set_mesh(p.mesh):
            state, out = p.step(state, frozen, rows, np.int32(n))
        losses.append(float(out["loss"]))
    assert losses[-1] < 0.1 * losses[0], losses[:: len(losses) // 6]


def test_smaller_references():
    """Rows and the loss where references have a limit: 10 x 10 pixels are 25 tokens beside 64."""
    editor, rng = toy.Editor(), np.random.default_rng(0)
    picture = lambda side: rng.integers(0, 256, (side, side, 3), np.uint8)
    form = EditRows(editor.processor, toy.folder_tokenizer(), [EditShape(6, 1, 16, 16)], reference_pixels=100)
    assert form.reference_size(form.buckets[0]) == (10, 10)
    source, result = picture(16), picture(16)
    rows = form.empty(0, 2)
    assert rows["references"].shape == (2, 1, 10, 10, 3) and rows["target"].shape == (2, 16, 16, 3)
    sample = form.encode(form.measure(EditExample("ab", (source,), result, "k", seed=5)))
    form.write(rows, 0, [sample])
    np.testing.assert_array_equal(rows["references"][0, 0], cover(source, 10, 10))
    assert {k: v for k, v in form.counts(rows).items() if "patch" in k} == {"patches": 89, "patch_slots": 2 * 89}

    objective = FlowMatching(Times("uniform", "none"), sample=False, seed=3)
    total, count, more = objective.loss(editor, {k: jnp.asarray(v) for k, v in rows.items()})
    assert int(count) == 64 * 12 and float(more["rows"][0][1]) == 0
    latents = [editor.encode(to_pixels(jnp.asarray(x)[None])) for x in (sample.target, sample.references[0])]
    arrays = {k: jnp.asarray(v[:1]) for k, v in rows.items() if k not in OWN}
    condition = jax.tree.map(lambda a: a[:, 0], editor.condition(arrays, latents[1]))
    keys = item_keys(3, Purpose.TRAINING, 0, jnp.int32([5]), jnp.int32([0]))
    t = objective.times.draw(keys, jnp.int32([64]))
    x, wanted = matching.noised(latents[0], t, keys)
    np.testing.assert_allclose(total, jnp.sum(jnp.square(editor.velocity(x, t, condition) - wanted)), rtol=1e-6)


def test_rows_of_edits(monkeypatch):
    asked, picture = [], lambda h, w: np.full((h, w, 3), 9, np.uint8)
    shapes = [EditShape(4, 1, 32, 32), EditShape(9, 1, 32, 32), EditShape(4, 1, 24, 48)]
    form = EditRows(toy.Processor(8), toy.folder_tokenizer(), shapes)
    row = lambda text, *sizes: form.measure(
        EditExample(text, tuple(map(picture, *zip(*sizes[1:]))), picture(*sizes[0]), "k")
    )
    assert row("ab", (64, 60), (32, 32)).bucket == 0
    assert row("abcdef", (64, 60), (32, 32)).bucket == 1
    assert row("ab", (20, 44), (20, 44)).bucket == 2
    with pytest.raises(RecordError, match="k: text too long .*10 tokens of text are more than 9"):
        row("0123456789", (32, 32), (32, 32))
    with pytest.raises(ImageError, match="k target"):
        form.measure(EditExample("a", (), b"no image", "k"))
    kontext = flux_kontext.Configs().processor  # an editor that counts tokens by itself names the row too
    monkeypatch.setattr(
        type(kontext), "text_length", lambda _, tokenizer, request, guidance: asked.append(request) or 1
    )
    EditRows(kontext, None, [EditShape(4, 1, 32, 32)]).measure(EditExample("a", (), picture(32, 32), "my row 17"))
    assert [request.where for request in asked] == ["my row 17"]
    with pytest.raises(ValueError, match="multiples of 10"):
        EditRows(toy.Processor(10), None, shapes)
    with pytest.raises(RecordError, match="k: too many references"):
        row("ab", (32, 32), (32, 32), (32, 32))
    batches, rest = form.plan(
        [dataclasses.replace(row("a", (32, 32), (32, 32)), bucket=b) for b in (0, 1, 0, 0)], 2, False, None
    )
    assert batches == [(0, [[0], [2]])] and rest == [1, 3]
    image = np.arange(4 * 8 * 3).reshape(4, 8, 3).astype(np.uint8)
    np.testing.assert_array_equal(cover(image, 4, 4), image[:, 2:6])
    assert cover(image, 8, 8).shape == (8, 8, 3)
