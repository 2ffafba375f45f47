"""Pairs of a record: order, labels, ties; dropout by the record's seed; images of a pair are once in its row."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.names import ConfigError
from edit_rl_jax.rewards.editreward import objective
from edit_rl_jax.rewards.editreward.objective import DIMENSIONS, SIDES, Options, Preference
from edit_rl_jax.rewards.editreward.prompts import STANDARD, TINY, choose, from_json, get
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import config_keys, interfaces
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.rows import Packed
from tests.data.toy import CFG, Bytes
from tests.rewards.editreward.reference import BASE, PIXELS, record


def arrays(example) -> list[float]:
    return [float(example.answer.arrays[k][0]) for k in objective.EXTRAS]


@pytest.mark.parametrize("prefers", [1, -1])
def test_the_preferred_edit_comes_first_and_labels_turn_with_it(prefers):
    r = record(3, prefers)
    ((a_if, a_vq, b_if, b_vq),) = Preference(Options()).to_examples(r, 2**24 + 5, prompts=TINY)
    first, second = r.edited[::prefers]
    assert [e.prompt[3] for e in (a_if, a_vq, b_if, b_vq)] == [first, first, second, second]
    assert {e.prompt[1] for e in (a_if, a_vq, b_if, b_vq)} == {r.source}
    assert [e.prompt[-1] for e in (a_if, a_vq)] == ["<|vision_end|>edit<|Reward|>", "<|vision_end|>quality<|Reward|>"]
    # prefers, label (A against B), labelled, seed
    assert arrays(a_if) == arrays(b_if) == [1, prefers, 1, 5] and arrays(a_vq) == [1, -prefers, 1, 5]


def test_what_each_choice_of_labels_and_ties_learns():
    """Pairs made of: a preference; a tie whose dimensions disagree; one all equal; one without labels."""
    tie = record(1, 0)
    equal = record(1, 0, instruction_following=(2.0, 2.0), visual_quality=(3.0, 3.0))
    bare = dataclasses.replace(tie, scores={})
    count = lambda **options: [
        len(Preference(Options(**options)).to_examples(r, 0, prompts=TINY)) for r in (record(1), tie, equal, bare)
    ]
    assert count() == [1, 0, 0, 0]
    assert count(ties="disentangle") == [1, 2, 0, 0]
    assert count(labels="dimension") == [1, 1, 0, 0]
    assert count(labels="both", ties="disentangle") == [1, 2, 0, 0]
    assert count(loss="bradley_terry", ties="keep") == [1, 1, 1, 1]
    assert count(loss="bradley_terry", labels="dimension") == [1, 1, 1, 0]
    assert count(loss="bradley_terry", labels="both") == [1, 1, 1, 0]
    both = Preference(Options(ties="disentangle")).to_examples(tie, 0, prompts=TINY)
    assert [pair[0].prompt[3] for pair in both] == list(tie.edited), "once either way round"


def test_a_dropped_overall_tie_has_no_overall_term(monkeypatch):
    """With labels by dimension beside it; `keep` learns it as a tie."""
    monkeypatch.setattr(objective, "gaussians", lambda *_: (jnp.zeros((1, 1, 2, 2, 2)), jnp.ones((1, 1))))
    for r, weights in ((record(1, 0), {"drop": 2, "disentangle": 2, "keep": 3}), (record(1), {"drop": 3, "keep": 3})):
        for ties, wanted in weights.items():
            made = Preference(Options("bradley_terry", "both", "drop"))
            (pair,) = made.to_examples(r, 0, prompts=TINY)
            learns = Preference(Options("bradley_terry", "both", ties))
            rows = jnp.array([arrays(example) for example in pair], jnp.float32).T
            batch = {f"answer_{k}": row[None] for k, row in zip(objective.EXTRAS, rows)}
            assert learns.validation_loss(None, batch)[1] == wanted, (r.prefers, ties)


def test_other_records_and_empty_instructions_are_named():
    made = Preference(Options())
    edit = EditRecord("e", b"", b"", "x")
    with pytest.raises(RecordError, match=r"e: wrong kind of record \(EditRecord, PreferenceRecord wanted"):
        made.to_examples(edit, 0)
    with pytest.raises(RecordError, match="r1.*empty instruction"):
        made.to_examples(dataclasses.replace(record(1), instruction=" "), 0)
    for name in ("editscore", "flow_matching"):
        found = interfaces.objective(config_keys.default("omnigen2" if name[0] == "f" else "qwen2_5_vl", name))
        with pytest.raises(RecordError, match=r"r1: wrong kind of record \(PreferenceRecord, EditRecord wanted"):
            found.to_examples(record(1), 0)


def test_a_pairs_pictures_are_in_the_row_once():
    """Three images, not eight; all prompts of the row point at the same merged tokens; a broken one teaches nothing."""
    form = Packed(Bytes(), CFG, [Bucket(420, 4, 80, 8)], ImageSettings(**PIXELS), extras=objective.EXTRAS)
    r = record(1)
    (example,) = Preference(Options()).to_examples(r, 0, prompts=TINY)
    sample = form.measure(example)
    assert form.load(sample)[1] == 48 + 24 + 36
    batch = form.empty(0, 1)
    form.write(batch, 0, [form.encode(sample)])
    assert (batch["patch_segments"] > 0).sum() == 48 + 24 + 36
    seen = [set(batch["image_index"][0, batch["segments"][0] == s].tolist()) - {-1} for s in range(1, 5)]
    assert seen[0] == seen[1] and seen[2] == seen[3] and len(seen[0] & seen[2]) == 48 // 4
    # the source's tokens lie in one place and hold its patches, as alone in a row
    alone = form.empty(0, 1)
    form.write(alone, 0, [form.encode(form.measure(example[0]))])
    for b in (batch, alone):
        at = b["image_index"][0, b["segments"][0] == 1]
        patches = b["patches"][0].reshape(-1, 4, CFG.patch_dim)[at[at >= 0]]
        b["found"] = patches
    np.testing.assert_array_equal(batch["found"], alone["found"])
    blank = form.blank(sample)
    form.write(batch, 0, [blank])
    assert all(not s.answer.any() for s in blank)


def test_flat_positions_count_the_tokens():
    form = Packed(Bytes(), CFG, [Bucket(420, 4, 80, 8)], ImageSettings(**PIXELS), objective.EXTRAS, positions="1d")
    (example,) = Preference(Options()).to_examples(record(1), 0, prompts=TINY)
    for s in form.encode(form.measure(example)):
        np.testing.assert_array_equal(s.positions, np.tile(np.arange(len(s.tokens)), (3, 1)))


def test_dropout_is_of_the_records_seed_and_the_prompts_place():
    seeds = jnp.repeat(jnp.asarray([[3.0, 4.0, 3.0]]), SIDES * DIMENSIONS, axis=1)
    kept = np.asarray(jax.jit(lambda s: objective._kept(s, 0.25))(seeds))  # [H, B, n * sides, W]
    assert set(np.unique(kept)) == {0, np.float32(1 / 0.75)} and abs((kept == 0).mean() - 0.25) < 0.02
    pairs = kept.reshape(DIMENSIONS, 1, 3, SIDES, -1)
    np.testing.assert_array_equal(pairs[:, :, 0], pairs[:, :, 2])  # one record in two places of a batch
    different = [pairs[0, 0, 0, 0], pairs[0, 0, 1, 0], pairs[0, 0, 0, 1], pairs[1, 0, 0, 0]]
    assert len({x.tobytes() for x in different}) == 4


def test_options_that_do_not_fit_together():
    def config(**changes):
        c = config_keys.default("editreward", "editreward")
        c.steps, c.data.buckets, c.model.init_from = 1, ((64, 1, 64, 4),), str(BASE)
        with c.unlocked():
            c.update_from_flattened_dict({k.replace("__", "."): v for k, v in changes.items()})
        config_lib.check(c)
        return interfaces.objective(c)

    assert config().options == Options()
    with pytest.raises(ConfigError, match="'heads.fusion': preference.labels='overall' learns the fused figure"):
        config(heads__fusion="none")
    with pytest.raises(ConfigError, match="'preference.ties': only preference.loss='bradley_terry' learns ties"):
        config(preference__ties="keep")
    with pytest.raises(ConfigError, match="wants model.kind 'editreward', not 'qwen2_5_vl'"):
        interfaces.objective(config_keys.default("qwen2_5_vl", "editreward"))


def test_prompts_travel_with_the_model_and_are_known_by_their_hash():
    for prompts in (STANDARD, TINY):
        assert from_json(prompts.to_json()) == prompts and choose("", prompts.to_json()) == prompts
    with pytest.raises(ValueError, match="prompts 'tiny' were altered"):
        from_json(TINY.to_json() | {"before": "Judge."})
    with pytest.raises(KeyError, match="there are standard, tiny and upstream:FOLDER"):
        get("large")
    with pytest.raises(ValueError, match="empty instruction"):
        TINY.build(b"", b"", "  ")
    assert "<|im_end|>" not in TINY.build(b"", b"", "a<|im_end|>b")["visual_quality"][0].split("Judge")[1]


def test_upstreams_prompts_are_read_from_its_files_and_checked(tmp_path):
    """Texts of the same form, not upstream's: another hash, and missing names, are said."""
    (tmp_path / "prompts.py").write_text('INSTRUCTION_EDIT_FOLLOWING = """a {text_prompt}"""\n')
    (tmp_path / "data_collator_qwen_edit.py").write_text('prompt_with_special_token = "rate <|Reward|> END"\n')
    with pytest.raises(ValueError, match="no INSTRUCTION_EDIT_QUALITY"):
        get(f"upstream:{tmp_path}")
    with (tmp_path / "prompts.py").open("a") as file:
        file.write("INSTRUCTION_EDIT_QUALITY = 'b {text_prompt}'\nraise SystemExit('never run')\n")
    with pytest.raises(ValueError, match="its prompts have sha256"):
        get(f"upstream:{tmp_path}")
    with pytest.raises(ValueError, match="say where upstream's prompt texts are"):
        from_json({"name": "upstream", "sha256": "0"})
    with pytest.raises(FileNotFoundError):
        get(f"upstream:{tmp_path / 'none'}")
