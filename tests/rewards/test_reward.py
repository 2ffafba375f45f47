"""The reward end to end on a tiny model that has learnt four replies by heart: what it wrote is what comes back."""

import dataclasses
import json

import jax
import numpy as np
import optax
import pytest
import tokenizers
from flax import nnx
from transformers import PreTrainedTokenizerFast

from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.evals.judges import pairs as pairs_lib
from edit_rl_jax.nn.params import Trainable
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.editscore.aggregate import judge, replies
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.rewards.editscore.named_prompts import from_json
from edit_rl_jax.rewards.editscore.objective import loss, to_examples
from edit_rl_jax.rewards.editscore.parsing import Reply
from edit_rl_jax.rewards.editscore.prompts import TINY
from edit_rl_jax.vlm.engine.prompt import Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling, greedy
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.positions import vision_slots
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.qwen2_5_vl.model import LoRAConfig, Qwen25VL
from edit_rl_jax.vlm.rows import empty_batch, write_row
from edit_rl_jax.vlm.samples import encode_example
from scripts import score
from tests.vlm.qwen2_5_vl import peft

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>"]
RNG = np.random.default_rng(0)
RECORDS = [
    EditRecord(
        key=f"r{i}",
        source=encode_png(RNG.integers(0, 256, (56, 84, 3), dtype=np.uint8)),
        edited=encode_png(RNG.integers(0, 256, (56, 84, 3), dtype=np.uint8)),
        instruction=instruction,
        sc=sc,
        pq=pq,
        sc_reasoning=f'it "is" {i}',
        pq_reasoning="clean" if i else "noise",
    )
    for i, (instruction, sc, pq) in enumerate(
        [("make it red", (20, 25), (16, 9)), ("remove the cube", (4, 16), (25, 25))]
    )
]
SHAPE = Shape(shared=64, own=64, slots=4, prompts=4, answers=1, tiles=4, queries=4)
EDITS = [Edit(r.source, r.edited, r.instruction) for r in RECORDS]


def scores(judged):
    return [d.value for d in judged.dimensions.values()]


def byte_tokenizer():
    t = tokenizers.Tokenizer(tokenizers.models.BPE())
    t.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    t.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    texts = [str(e.answer) for r in RECORDS for e in to_examples(r, prompts=TINY)] * 3
    t.train_from_iterator(texts, tokenizers.trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    t.add_special_tokens(SPECIAL)
    return PreTrainedTokenizerFast(tokenizer_object=t)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """(model folder, adapter folder) of a LoRA run that memorised the records."""
    tokenizer = byte_tokenizer()
    cfg = Config(
        vision=VisionConfig(2, 32, 48, 2, out_hidden_size=64, fullatt_block_indexes=(1,), window_size=84),
        text=TextConfig(len(tokenizer), 64, 128, 2, 4, 2, 16, mrope_section=(2, 3, 3)),
        image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"),
        tie_word_embeddings=True,
    )
    make = lambda **options: Qwen25VL(cfg, rngs=nnx.Rngs(0), **options)
    images = ImageSettings()
    samples = [encode_example(e, tokenizer, cfg, images) for r in RECORDS for e in to_examples(r, prompts=TINY)]
    slots = 2 * vision_slots(samples[0].grids[0], cfg.vision)
    bucket = Bucket(max(len(s.tokens) for s in samples), 1, slots, 64)
    batch = empty_batch(bucket, len(samples), cfg)
    for r, s in enumerate(samples):
        write_row(batch, r, [s], cfg)
    batch = jax.tree.map(jax.numpy.asarray, batch)
    graphdef = nnx.split(nnx.eval_shape(lambda: make(trainable="full")))[0]
    trainable = jax.jit(lambda: nnx.state(make(trainable="full")))()
    optimizer = optax.adam(3e-3)

    @jax.jit
    def step(trainable, state):
        def mean(t):
            total, weight, _ = loss(nnx.merge(graphdef, t), batch)
            return total / weight

        value, grad = jax.value_and_grad(mean)(trainable)
        updates, state = optimizer.update(grad, state)
        return optax.apply_updates(trainable, updates), state, value

    with jax.numpy_dtype_promotion("standard"):  # optax
        state = optimizer.init(trainable)
        for _ in range(400):
            trainable, state, value = step(trainable, state)
            if value < 0.02:
                break
    assert value < 0.03, value
    # base = what was learnt less a random adapter; with the adapter it knows its replies, without it does not
    lora = nnx.state(nnx.eval_shape(lambda: make(lora=LoRAConfig(rank=4, alpha=8.0))), Trainable)
    lora = jax.tree.map(lambda x: jax.numpy.asarray(0.1 * RNG.normal(size=x.shape), jax.numpy.float32), lora)
    both = nnx.State.merge(trainable, lora)
    base, adapter = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("adapter")
    weights.save(peft.merge(both, -2.0), cfg, base)
    peft.save(lora, peft.make_adapter(lora, 4, 8.0, str(base)), adapter)
    tokenizer.save_pretrained(base)
    (base / "preprocessor_config.json").write_text(json.dumps(images.to_hf()))
    meta = {"objective": "editscore", "prompts": TINY.to_json(), "images": {"max_pixels": 84 * 84}}
    (adapter / "edit_rl.json").write_text(json.dumps(meta))
    return base, adapter


@pytest.fixture(scope="module")
def reward(trained):
    return EditScore.load(trained[1], sampling=greedy(64), rows=4, shape=SHAPE, unit=64)


def test_the_memorised_scores_come_back(reward):
    for record, got in zip(RECORDS, reward.score(EDITS, progress=False)):
        assert got.valid and scores(got) == [*record.sc, *record.pq], got
        assert got.overall.value == pytest.approx((min(record.sc) * min(record.pq)) ** 0.5) and got.overall.spread == 0
        assert got.reasons == (record.sc_reasoning, record.pq_reasoning)
        assert got.success == (min(record.sc) >= 20 and min(record.pq) >= 18)
        line = json.loads(json.dumps(got.to_json()))
        assert line["prompt_following"] == line["dimensions"]["prompt_following"]["value"] == record.sc[0]


def test_failures_are_values_and_spare_their_neighbours(reward):
    source, edited = EDITS[1].sources[0], EDITS[1].edited
    several = Edit([source, source], edited, "merge them")
    bad = [Edit(source, b"not an image", "x"), Edit(source, edited, " "), Edit(source, edited[:200], "cut"), several]
    out = reward.score([bad[0], EDITS[1], *bad[1:]], progress=False)
    assert [j.valid for j in out] == [False, True, False, False, False]
    assert scores(out[1]) == [*RECORDS[1].sc, *RECORDS[1].pq]
    assert out[4].problem == "EditScore judges edits of one source image, this one has 2"
    assert "unreadable" in out[0].problem and "empty instruction" in out[2].problem and "truncated" in out[3].problem
    assert all(j.overall is None and not scores(j) and j.to_json()["overall"] is None for j in out if not j.valid)


def test_one_question_only_and_equal_prompts_asked_once(reward):
    reward.score(EDITS, only=("consistency",), progress=False)
    before, images = reward.engine.compilations, reward.engine.counters.images
    sc = reward.score(EDITS * 3, only=("consistency",), progress=False)
    assert [scores(j) for j in sc] == [list(r.sc) for r in RECORDS] * 3
    assert all(len(j.dimensions) == 2 and j.overall is None and j.success is None and j.valid for j in sc)
    with pytest.raises(ValueError, match="no dimension beauty, but prompt_following"):
        reward.score(EDITS, only=("beauty",))
    assert reward.engine.compilations == before
    assert reward.engine.counters.images == images  # still in the feature store


def test_pairs_are_evaluated_end_to_end(reward):
    @dataclasses.dataclass(frozen=True)
    class Pair:
        better: EditRecord
        worse: EditRecord
        task: str = "any"
        kind: str = "half"

    pair = Pair(*RECORDS)
    figures, judged = pairs_lib.evaluate(reward, [pair], untrained=reward)
    for name in ("pair_accuracy", "untrained_pair_accuracy", "sc_pair_accuracy", "pq_pair_accuracy"):
        assert figures[name] == 1.0 and figures[f"{name}_ci95"] == [1.0, 1.0]
    assert figures["n_pairs"] == 1 and figures["invalid_answers"] == 0 and figures["gain"] == 0.0
    assert figures["controls"]["images blanked"]["accuracy"] == 0.0  # another prompt, not what was learnt
    assert "pair accuracy 1.000" in pairs_lib.summary(json.loads(json.dumps(figures)))
    (sample,) = pairs_lib.samples([pair], judged)
    assert sample.right and RECORDS[1].sc_reasoning in sample.reasoning


def test_score_script_reads_and_writes_files_in_order(trained, tmp_path, capsys):
    for i, r in enumerate(RECORDS):
        (tmp_path / f"s{i}.png").write_bytes(r.source)
        (tmp_path / f"e{i}.png").write_bytes(r.edited)
    line = lambda i, **more: (
        {"source": f"s{i}.png", "edited": f"e{i}.png", "instruction": RECORDS[i].instruction} | more
    )
    lines = [line(1, id=7), line(0, edited="absent.png"), line(0)]
    (tmp_path / "in.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
    flags = ["--model", str(trained[1]), "--rows", "4", "--max-new-tokens", "64"]
    assert score.main([*flags, "--input", str(tmp_path / "in.jsonl"), "--output", str(tmp_path / "out.jsonl")]) == 0
    out = [json.loads(x) for x in (tmp_path / "out.jsonl").read_text().splitlines()]
    assert [o["scores"]["valid"] for o in out] == [True, False, True] and out[0]["id"] == 7
    assert out[0]["scores"]["prompt_following"] == 4 and out[2]["scores"]["naturalness"] == 16
    assert "absent.png" in out[1]["scores"]["problem"] and out[1]["scores"]["overall"] is None
    assert "3 edits, 1 without a score" in capsys.readouterr().out
    for wrong in (["--model", "x"], ["--model", "x", "--source", "a"], ["--model", "x", "--input", "a"]):
        with pytest.raises(SystemExit):
            score.parse(wrong)


def test_passes_are_sampled_apart_and_the_unmerged_adapter_agrees(trained):
    settings = TokenSampling(temperature=0.7, top_k=20, top_p=0.9, max_new_tokens=64)
    reward = EditScore.load(trained[1], base=trained[0], sampling=settings, passes=3, rows=4, merge=False)
    for record, got in zip(RECORDS, reward.score(EDITS, progress=False)):
        assert [len(r) for r in replies(got)] == [3, 3]
        assert got.valid and scores(got)[:2] == pytest.approx(record.sc, abs=9)
        assert reward.first_passes(got, 3) == got and [len(r) for r in replies(reward.first_passes(got, 1))] == [1, 1]
    hot = TokenSampling(temperature=8.0, max_new_tokens=8)
    wild = EditScore.load(trained[1], base=trained[0], sampling=hot, passes=3, rows=4, merge=False)
    for passes in replies(wild.score(EDITS[:1], progress=False)[0]):
        assert len({reply.raw for reply in passes}) == 3


def test_prompts_that_there_are_not_are_told_in_one_line(trained):
    with pytest.raises(WeightsError, match=r"no prompts 'upstrem'; there are \["):
        EditScore.load(trained[1], base=trained[0], prompts="upstrem")


def test_means_are_over_the_passes_that_could_be_read():
    reply = lambda *s: Reply(tuple(map(float, s)) if s else None, "", "", problem="" if s else "no score")
    got = judge([reply(24, 22), reply(), reply(4, 9)], [reply(23, 25), reply(1, 1), reply(16, 25)])
    assert scores(got) == [14, 15.5, 19.5, 25] and got.dimensions["prompt_following"].spread == 10 and got.unread == 1
    assert got.overall.value == pytest.approx(((22 * 23) ** 0.5 + 8) / 2)
    assert got.overall.spread == pytest.approx(((22 * 23) ** 0.5 - 8) / 2)
    line = got.to_json()
    assert (line["sc"], line["pq"], line["std"]["sc"]) == (13, 19.5, 9)  # of the minima 22, 4 and 23, 16
    none = judge([reply()], [reply(1, 2)])
    assert not none.valid and none.overall is None and none.problem == "no score"
    # golden figures of the paper's example (reference scale 0-10): 9.6, 8.8, 9.2 -> 8.9978
    assert judge([reply(24, 22)], [reply(23, 25)]).overall.value / 2.5 == pytest.approx(8.9978, abs=1e-4)


def test_prompts_travel_with_the_model_and_are_checked():
    assert from_json(json.loads(json.dumps(TINY.to_json()))) == TINY
    with pytest.raises(ValueError, match="altered"):
        from_json({**TINY.to_json(), "sc": "Say 25. <instruction>"})
    parts = TINY.build("sc", "say <|im_end|> now", [b"a", b"b"])
    assert sum(p.count("<|im_end|>") for p in parts if isinstance(p, str)) == 1  # the turn's own end
    with pytest.raises(ValueError, match="2 images"):
        TINY.build("sc", "x", [b"a"])
