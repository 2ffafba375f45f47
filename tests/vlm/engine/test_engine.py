"""The engine on random tiny models: full recompute, transformers, sharing, company, stops, slots, compiled programs."""

import dataclasses
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.rl.vlm.config import default as gcpo_config
from edit_rl_jax.rl.vlm.rollout import shape_of
from edit_rl_jax.sharding import make_mesh, shardings
from edit_rl_jax.vlm.engine.branch import Tree
from edit_rl_jax.vlm.engine.engine import Engine
from edit_rl_jax.vlm.engine.placement import FeatureRing, Job, Placement
from edit_rl_jax.vlm.engine.prefill import Counters
from edit_rl_jax.vlm.engine.programs import make_stores
from edit_rl_jax.vlm.engine.prompt import Prompt, Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling, greedy
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.positions import rope_index
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import Encoded
from tests.parity import tiny
from tests.vlm.engine import prompts as make

GRIDS = [((1, 6, 10),), ((1, 10, 14), (1, 4, 6)), (), ((1, 2, 18),)]
ALL = Tree(np.zeros(1, np.int32), np.full(1, -1, np.int32), np.arange(300, dtype=np.int32)[None])  # every token's logit
WARM = TokenSampling(temperature=1.0, top_k=40, top_p=0.95, max_new_tokens=12)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    reference = tiny.torch_model("tied_gqa")
    folder = tmp_path_factory.mktemp("model")
    reference.save_pretrained(folder)
    cfg = Config.from_hf(folder)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0))))
    return reference, nnx.merge(graphdef, weights.load(folder, state))


@pytest.fixture(scope="module")
def model(pair):
    return pair[1]


def samples():
    return [tiny.sample(10 + i, grids, text=4 + i) for i, grids in enumerate(GRIDS)]


def prompts(cfg, **options):
    return [make.of_sample(cfg, s, item=i, **options) for i, s in enumerate(samples())]


def run(engine, prompts, **options):
    """Token rows [prompts][answers]."""
    out = {a.index: [x.tokens for x in a.answers] for a in engine.generate(prompts, **options)}
    return [out[i] for i in range(len(prompts))]


@jax.jit
def most_likely(model, batch, last):
    return model.logits(jnp.take(model.hidden(batch)[0], last, axis=0)).argmax()


def recomputed(model, sample, n):
    """Greedy answer of one prompt, all of it computed anew at every token."""
    tokens, start = sample.tokens, len(sample.tokens)
    for _ in range(n):
        rope, _ = rope_index(tokens, sample.grids, model.cfg.image_token_id)
        s = Encoded("", tokens, np.zeros(len(tokens), bool), rope, sample.patches, sample.grids)
        batch = empty_batch(Bucket(96, 1, 192, 1), 1, model.cfg)
        write_row(batch, 0, [s], model.cfg)
        tokens = np.append(tokens, np.int32(most_likely(model, jax.tree.map(jnp.asarray, batch), len(tokens) - 1)))
    return tokens[start:]


@pytest.fixture(scope="module")
def greedily(model):
    return Engine(model, greedy(64), slots=8)


@pytest.fixture(scope="module")
def warmly(model):
    return Engine(model, WARM, slots=16, tree=ALL)


def test_greedy_equals_a_full_recompute(model, greedily):
    out = run(greedily, prompts(model.cfg), answers=2)
    for got, s in zip(out, samples()):
        np.testing.assert_array_equal(got[0][:12], recomputed(model, s, 12))


def test_greedy_equals_transformers_for_64_tokens(pair, greedily):
    reference, model = pair
    out = run(greedily, prompts(model.cfg), answers=2)
    for got, s in zip(out, samples()):
        inputs = s.torch()
        with torch.no_grad():
            theirs = reference.generate(**inputs, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
        theirs = theirs[0, inputs["input_ids"].shape[1] :].numpy()
        for one in got:
            np.testing.assert_array_equal(one, theirs)


def test_sampled_answers_do_not_depend_on_row_order_or_company(model, warmly):
    """Bit for bit, at one compiled shape: shared or alone, in any slot, beside anything."""
    a, b, c, d = prompts(model.cfg)
    shape = Shape.of([a, b, c, d], 3, 16)
    alone = [run(warmly, [p], answers=3, shape=shape)[0] for p in (a, b, c, d)]
    assert len({tuple(t) for answers in alone for t in answers}) == 12  # all different
    compiled = warmly.compilations
    other = make.of_sample(model.cfg, tiny.sample(11, GRIDS[1], text=5), item=9)  # shares its images with b
    for order in ([a, b, c, d], [d, other, b, c, a], [other, c, a, other, b, d]):
        for p, got in zip(order, run(warmly, order, answers=3, shape=shape)):
            if p is not other:
                for x, y in zip(got, alone[p.item]):
                    np.testing.assert_array_equal(x, y)
    assert warmly.compilations == compiled
    again = run(warmly, [a], answers=3, shape=shape, seed=1)[0]
    assert any((x != y).any() for x, y in zip(again, alone[0]))


@pytest.mark.parametrize(("slots", "answers"), [(8, 32), (16, 64), (64, 256), (2, 8), (1, 4), (64, 8)])
def test_more_answers_than_slots_find_their_places(slots, answers):
    """One prompt's answers all have a place in its tiles, whatever is written at once."""
    prompt = Prompt(np.arange(20, dtype=np.int32), np.tile(np.arange(20, dtype=np.int32), (3, 1)), (), (10,))
    config = gcpo_config()
    config.rl.slots, config.rl.group = slots, answers
    for shape in (Shape.of([prompt] * 4, answers, slots), shape_of(config.rl, 1)):
        queue = deque([Job(0, prompt, tuple(range(answers)), (5,) * answers)])
        Placement(shape, shape.tiles + 4, FeatureRing(64)).refill(queue, lambda picture: None)
        assert not queue, shape


def edits_of_one_source(cfg, n, rng):
    """n prompts [text, source, text, edited, text] that differ in the edited image, and n that show only that."""
    grid, text = (1, 6, 10), rng.integers(3, 280, 40).tolist()
    image = lambda: rng.normal(size=(60, 1176)).astype(np.float32)
    source, edited = image(), [image() for _ in range(n)]
    pads, tail = [tiny.START] + [tiny.IMAGE] * 15 + [tiny.END], rng.integers(3, 280, 5).tolist()
    both = [make.prompt(cfg, text + pads + pads + tail, (grid, grid), (source, e), cuts=(40 + 18,)) for e in edited]
    one = [make.prompt(cfg, text[::-1] + pads + tail, (grid,), (e,), cuts=(41,)) for e in edited]
    return both, one


def distinct_prefix_tokens(prompts):
    """Nodes of the trie of all prompts but for their last tokens, an image's pads named by its content."""
    seen = set()
    for p in prompts:
        names = p.tokens.tolist()
        for at, picture in p.pictures:
            names[at : at + picture.tokens] = [(picture.key, i) for i in range(picture.tokens)]
        node = 0
        for name in names[:-1]:
            node = hash((node, name))
            seen.add(node)
    return len(seen)


def test_every_image_and_every_prefix_is_computed_once(model):
    both, one = edits_of_one_source(model.cfg, 12, np.random.default_rng(0))
    asked = [p for pair in zip(both, one) for p in pair]
    engine = Engine(model, WARM, slots=32)
    out = run(engine, asked, answers=4)
    assert engine.counters.images == 13
    assert engine.counters.prefill_tokens == distinct_prefix_tokens(asked)  # whatever the number of answers
    assert engine.counters.answers == 24 * 4
    whole = [make.prompt(model.cfg, p.tokens, [(1, 6, 10)] * len(p.pictures), (), cuts=False) for p in asked]
    for w, p in zip(whole, asked):
        object.__setattr__(w, "pictures", p.pictures)
    alone = run(Engine(model, WARM, slots=32), whole, answers=4)  # nothing shared
    same = np.mean([np.array_equal(x, y) for a, b in zip(out, alone) for x, y in zip(a, b)])
    print(f"sampled answers that sharing changes: {1 - same:.3f}")
    assert same > 0.9


def test_slots_stay_full_and_mixed_sizes_compile_nothing(model):
    rng = np.random.default_rng(1)
    grids = [(1, 2 * h, 2 * w) for h in (2, 3, 5) for w in (2, 4)]
    sizes = [grids[i] for i in rng.integers(0, len(grids), 200)]
    asked = [
        make.of_sample(model.cfg, tiny.sample(i, [g], text=int(rng.integers(2, 30))), item=i, slots=64)
        for i, g in enumerate(sizes)
    ]
    engine = Engine(
        model,
        TokenSampling(1.0, 20, 0.95, 256),
        slots=16,
        unit=64,
        vision_slots=64,
        feature_tokens=1024,
    )
    shape = Shape.of(asked, 2, 16, unit=64)
    run(engine, asked[:4], answers=2, shape=shape, limits=lambda *_: 3)  # warm-up
    compiled, engine.counters = engine.compilations, Counters()
    lengths = rng.integers(16, 257, (200, 2))
    out = run(engine, asked, answers=2, shape=shape, limits=lambda i, n: int(lengths[i, n]))
    assert engine.compilations == compiled
    np.testing.assert_array_equal([[len(t) for t in a] for a in out], lengths)
    print(f"occupancy {engine.counters.occupancy:.3f}")
    assert engine.counters.occupancy >= 0.85


def test_stop_tokens_end_an_answer(model, greedily):
    free = [a[0][:12] for a in run(greedily, prompts(model.cfg), answers=2)]
    stops = tuple({int(row[3]) for row in free})
    engine = Engine(model, greedy(12, stops), slots=8, unit=96, vision_slots=0, feature_tokens=48)
    asked = prompts(model.cfg, cuts=False, slots=192)
    for row, answered in zip(free, sorted(engine.generate(asked, answers=2), key=lambda a: a.index)):
        end = next(i for i, t in enumerate(row) if t in stops) + 1
        for one in answered.answers:
            np.testing.assert_array_equal(one.tokens, row[:end])
            assert one.stopped
    assert engine.counters.decode_steps <= 4  # all at once, though their images are encoded one after another


def test_an_answer_that_is_not_accepted_is_written_anew(model, warmly):
    a, b, *_ = prompts(model.cfg)
    shape = Shape.of(prompts(model.cfg), 3, 16)
    first = run(warmly, [a, b], answers=3, shape=shape)
    refused = {tuple(first[0][1]), tuple(first[1][0])}
    accept = lambda index, tokens, stopped: tuple(tokens) not in refused
    again = run(warmly, [a, b], answers=3, shape=shape, accept=accept, retries=2)
    for i, n in ((0, 0), (0, 2), (1, 1), (1, 2)):
        np.testing.assert_array_equal(again[i][n], first[i][n])
    assert all(tuple(t) not in refused for answers in again for t in answers)
    before = warmly.counters.retries
    never = run(warmly, [a], answers=3, shape=shape, accept=lambda *_: False, retries=2)
    assert warmly.counters.retries - before == 6 and len(never[0]) == 3


def test_what_cannot_be_loaded_is_a_problem_of_its_own(model, warmly):
    a, b, *_ = prompts(model.cfg)

    def broken():
        raise ValueError("unreadable image")

    ((at, picture),) = a.pictures
    bad = dataclasses.replace(a, pictures=((at, dataclasses.replace(picture, key=b"bad", load=broken)),))
    shape = Shape.of([a, b], 3, 16)
    out = {x.index: x for x in warmly.generate([bad, b], answers=3, shape=shape)}
    assert str(out[0].problem) == "unreadable image" and not out[0].answers
    assert out[1].problem is None and len(out[1].answers) == 3
    with pytest.raises(ValueError, match="do not fit"):
        run(warmly, [b], answers=3, shape=dataclasses.replace(shape, own=8))
    small = Engine(model, WARM, feature_tokens=16)
    with pytest.raises(RuntimeError, match="no room for one prompt"):
        run(small, [b])


def written(engine, cfg, **shape):
    """(tokens, log-probabilities of every token after the prompt) of the answers of an engine with the tree of all."""
    found = engine.generate(prompts(cfg), answers=3, branch_at=lambda tokens: -1, **shape)
    found = sorted(found, key=lambda a: a.index)
    tokens = [tuple(a.tokens.tolist()) for f in found for a in f.answers]
    return tokens, np.concatenate([a.branch for f in found for a in f.answers])


def on_mesh(model, tensor):
    """An engine on two rows of `tensor` devices."""
    mesh = make_mesh({"data": 2, "tensor": tensor})
    graphdef, state = nnx.split(model)
    placed = nnx.merge(graphdef, jax.device_put(state, shardings(state, mesh)))
    return Engine(placed, WARM, slots=16, mesh=mesh, tree=ALL)


def test_nothing_is_compiled_anew_where_one_device_is_a_mesh(model):
    """As training leaves its weights; what one call gives back, the next takes."""
    graphdef, state = nnx.split(model)
    placed = nnx.merge(
        graphdef, jax.device_put(state, shardings(state, make_mesh({"fsdp": 1, "tensor": 1}, jax.devices()[:1])))
    )
    engine, asked = Engine(placed, WARM, slots=16), prompts(model.cfg)
    shape = Shape.of(asked, 3, 16)
    before = run(engine, asked, answers=3, shape=shape)
    compiled = engine.compilations
    engine.update(placed)
    again = run(engine, asked, answers=3, shape=shape)
    assert engine.compilations == compiled
    assert all(np.array_equal(x, y) for one, other in zip(before, again) for x, y in zip(one, other))


def check_rounding(name, one, other):
    """The log-probabilities of every token, and the sampled answers, are alike."""
    (tokens, logp), (theirs, their_logp) = one, other
    changed = np.mean([a != b for a, b in zip(tokens, theirs)])
    print(f"{name}: log-probabilities within {np.abs(logp - their_logp).max():.1e}, {changed:.3f} answers changed")
    assert np.abs(logp - their_logp).max() <= 1e-4 and changed <= 1 / 12


@pytest.mark.slow
def test_other_shapes_and_meshes_change_rounding_only(model, warmly):
    engine = on_mesh(model, 2)
    mine, plain = Shape.of(prompts(model.cfg), 3, 16, engine.rows), written(warmly, model.cfg)
    check_rounding("a mesh", plain, written(engine, model.cfg, shape=mine))
    check_rounding("another shape", plain, written(warmly, model.cfg, shape=Shape(96, 96, 5, 4, 3, 3, 5)))
    compiled = engine.compilations
    again = [tiny.sample(30 + i, grids, text=4 + i) for i, grids in enumerate(GRIDS)]
    run(engine, [make.of_sample(model.cfg, s) for s in again], answers=3, shape=mine)
    assert engine.compilations == compiled


@pytest.fixture(scope="module")
def few_heads():
    """Two KV heads where all else divides by four."""
    config = tiny.CONFIGS["all_windowed"]
    config = config | {"text_config": config["text_config"] | {"num_key_value_heads": 2}}
    return Qwen25VL(Config.from_hf(config), rngs=nnx.Rngs(0))


@pytest.mark.slow
def test_more_chips_than_kv_heads_change_rounding_only(few_heads):
    plain, wide = Engine(few_heads, WARM, slots=16, tree=ALL), on_mesh(few_heads, 4)
    check_rounding("KV heads twice", written(plain, few_heads.cfg), written(wide, few_heads.cfg))


def test_every_chip_keeps_one_kv_head_where_there_are_fewer(few_heads):
    """Kept whole on every chip they would take as much room as all of them on one."""
    graphdef, state = nnx.split(few_heads)
    with jax.set_mesh(make_mesh({"data": 2, "tensor": 4})):
        stores, _ = make_stores(graphdef, state, Shape(8, 8, 2, 2, 1, 2, 1), 2, 8, 4, rows=2)
        made = jax.jit(stores)()
    for keys, values in (made.contexts, made.tiles, made.own, made.answers):
        assert keys.shape[2] == values.shape[2] == 4
        assert {x.data.shape[2] for x in keys.addressable_shards} == {1}


def test_other_weights_compile_nothing_and_leave_nothing_behind(model, warmly):
    """After `update` the engine answers as a new one does: no prefix or image of the old weights is read."""
    graphdef, state = nnx.split(model)
    other = jax.tree.map(lambda x: x * jnp.asarray(1.03, x.dtype), state)
    asked, compiled = prompts(model.cfg), []
    options = dict(answers=3, shape=Shape.of(asked, 3, 16))
    answers = lambda engine: [tuple(t.tolist()) for row in run(engine, asked, **options) for t in row]
    before, fresh = answers(warmly), answers(Engine(nnx.merge(graphdef, other), WARM, slots=16))
    count = lambda event, *_, **__: compiled.append(event) if "backend_compile" in event else None
    jax.monitoring.register_event_duration_secs_listener(count)
    try:
        warmly.update(other)
        after = answers(warmly)
        warmly.update(model)
        again = answers(warmly)
    finally:
        jax.monitoring.unregister_event_duration_listener(count)
    assert not compiled and after == fresh != before == again
    with pytest.raises(ValueError, match="the engine's"):
        warmly.update(jax.tree.map(lambda x: x[..., :1], state))


@jax.jit
def log_probs_of(model, batch):
    return jax.nn.log_softmax(model.logits(model.hidden(batch)[0]))


def test_log_probabilities_are_those_of_a_teacher_forced_pass(model, warmly):
    """Of every sampled token and of others in its place, before temperature and filters; asked for or not, the answers
    are the same."""
    asked, options = prompts(model.cfg), dict(answers=3, shape=Shape.of(prompts(model.cfg), 3, 16))
    plain = run(warmly, asked, **options)
    others = (7, 0, 11)
    found, worst = list(warmly.generate(asked, log_probs=True, alternatives=others, **options)), 0.0
    for one in found:
        s = samples()[one.index]
        for answer, tokens in zip(one.answers, plain[one.index]):
            np.testing.assert_array_equal(answer.tokens, tokens)
            all_tokens = np.concatenate([s.tokens, tokens])
            rope, _ = rope_index(all_tokens, s.grids, model.cfg.image_token_id)
            answered = np.arange(len(all_tokens)) >= len(s.tokens)
            batch = empty_batch(Bucket(96, 1, 192, 16), 1, model.cfg)
            write_row(batch, 0, [Encoded("", all_tokens, answered, rope, s.patches, s.grids)], model.cfg)
            logp = np.asarray(log_probs_of(model, jax.tree.map(jnp.asarray, batch)))
            forced = logp[np.flatnonzero(answered) - 1, tokens]
            assert answer.log_probs.shape == forced.shape
            worst = max(worst, np.abs(forced - answer.log_probs).max())
            beside = logp[np.flatnonzero(answered) - 1][:, others].T
            assert answer.alternatives.shape == beside.shape == (3, len(tokens))
            worst = max(worst, np.abs(beside - answer.alternatives).max())
    print(f"log-probabilities within {worst:.1e}")
    assert len(found) == 4 and worst <= 1e-4
