"""Loading and saving weights and adapters of Qwen3-VL: published shapes, both ties, the released adapters' layout."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.torch
import torch
import transformers
from flax import nnx
from peft import LoraConfig, PeftModel, get_peft_model

from edit_rl_jax.nn import peft, weights
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.loading import load_model, lora_of
from edit_rl_jax.vlm.qwen3_vl import family, sizes
from edit_rl_jax.vlm.qwen3_vl.config import Config
from edit_rl_jax.vlm.qwen3_vl.model import Qwen3VL
from tests.parity import ladder, tiny
from tests.parity.towers import error, jit

TOTALS = {
    "2B": (2_127_532_032, 625),
    "4B": (4_437_815_808, 713),
    "8B": (8_767_123_696, 750),
    "32B": (33_357_390_064, 1058),
}
VISUAL = {"2B": (406_957_056, 315), "4B": (415_347_712, 315), "8B": (576_388_336, 351), "32B": (595_266_800, 351)}
LORA = {"2B": 34_865_152, "4B": 66_060_288, "8B": 87_293_952, "32B": 268_435_456}  # rank 32 on the decoder
DEEP = {"2B": 1_376_256, "4B": 1_425_408, "8B": 1_720_320, "32B": 1_818_624}  # and on the deepstack mergers


def abstract(cfg, **options):
    return nnx.state(nnx.eval_shape(lambda: Qwen3VL(cfg, rngs=nnx.Rngs(0), **options)))


@pytest.mark.parametrize("size", sizes.HUB_IDS)
def test_every_name_and_shape_of_the_published_sizes(size):
    """Against transformers on the meta device, and the counts of the files on the hub."""
    config = sizes.config(size)
    cfg = Config.from_hf(config)
    with torch.device("meta"):
        model = transformers.Qwen3VLForConditionalGeneration(transformers.Qwen3VLConfig(**config))
    theirs = {name: tuple(p.shape) for name, p in model.named_parameters()}
    ours, state = {}, abstract(cfg)
    for path, v in zip(*weights.flatten(state)[:2]):
        for name in family.NAMING.sources(path, v.shape):
            assert name not in ours and family.NAMING.written(name) == name
            ours[name] = family.NAMING.file_shape(path, v)
    patches = "model.visual.patch_embed.proj.weight"  # a convolution there, a matrix here
    count = lambda shapes: sum(int(np.prod(s)) for s in shapes.values())
    assert (count(ours), len(ours)) == TOTALS[size]
    visual = {k: s for k, s in ours.items() if k.startswith("model.visual.")}
    assert (count(visual), len(visual)) == VISUAL[size]
    assert ours[patches] == (cfg.vision.hidden_size, 1536) and theirs.pop(patches)[1:] == (3, 2, 16, 16)
    del ours[patches]
    assert ours == theirs
    adapters = lambda **where: sum(
        v.size for p, v in zip(*weights.flatten(abstract(cfg, lora=LoRAConfig(32, **where)))[:2]) if "lora" in p[-1]
    )
    assert (adapters(), adapters(deepstack=True)) == (LORA[size], LORA[size] + DEEP[size])


@pytest.mark.parametrize(
    "name, dtype", [("3_tied_gqa", None), pytest.param("3_untied_mqa", jnp.bfloat16, marks=pytest.mark.slow)]
)
def test_transformers_reads_what_we_save(name, dtype, tmp_path):
    theirs = ladder.reference(name)
    state, cfg = nnx.state(ladder.ours(name)), ladder.architecture(name)
    family.save(state, cfg, tmp_path, dtype=dtype, max_shard_bytes=60_000)
    load = transformers.Qwen3VLForConditionalGeneration.from_pretrained
    again, info = load(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    kind = torch.float32 if dtype is None else torch.bfloat16
    for key, value in again.state_dict().items():
        assert torch.equal(value, theirs.state_dict()[key].to(kind)), key
    assert family.architecture(tmp_path) == cfg
    again = weights.load(tmp_path, abstract(cfg), family.NAMING)
    for path, a, b in zip(*weights.flatten(state)[:2], weights.flatten(again)[1]):
        rounded = a.get_value().astype(dtype or a.dtype).astype(a.dtype)
        np.testing.assert_array_equal(rounded, b.get_value(), err_msg=".".join(path))


def test_files_must_hold_all_and_nothing_else(tmp_path):
    name = "3_tied_gqa"
    tensors = {k: v.clone() for k, v in ladder.reference(name).state_dict().items() if k != "lm_head.weight"}
    cfg = ladder.architecture(name)

    def read(drop=(), **more):
        kept = {k: v for k, v in tensors.items() if k not in drop} | more
        safetensors.torch.save_file(kept, tmp_path / "model.safetensors", metadata={"format": "pt"})
        return weights.load(tmp_path, abstract(cfg), family.NAMING)

    read()
    for missing in (
        "visual.patch_embed.proj.bias",
        "visual.pos_embed.weight",
        "visual.deepstack_merger_list.1.norm.bias",
    ):
        with pytest.raises(WeightsError, match=f"missing: model.{missing}$"):
            read(drop=[f"model.{missing}"])
    q = "model.language_model.layers.0.self_attn.q_proj.bias"
    with pytest.raises(WeightsError, match=f"unknown: {q}$"):
        read(**{q: torch.zeros(64)})
    bias = "model.visual.patch_embed.proj.bias"
    with pytest.raises(WeightsError, match=rf"misshapen: {bias} \(32, 1\), not \(32,\)"):
        read(**{bias: tensors[bias][:, None]})
    head = tensors["model.language_model.embed_tokens.weight"] + 1
    with pytest.raises(WeightsError, match="lm_head.weight differs"):
        read(**{"lm_head.weight": head})
    (tmp_path / "config.json").write_text(json.dumps(cfg.to_hf()))
    assert cfg.tie_word_embeddings and not family.architecture(tmp_path).tie_word_embeddings


def test_peft_computes_our_logits_from_our_adapter(tmp_path):
    name, lora = "3_narrow_heads", LoRAConfig(rank=4, alpha=2.0, deepstack=True)
    graphdef, trainable, frozen = nnx.split(ladder.ours(name, ladder.lora_of(name)), Trainable, Frozen)
    assert ladder.lora_of(name) == lora
    keys = iter(jax.random.split(jax.random.key(0), len(jax.tree.leaves(trainable))))
    trainable = jax.tree.map(lambda x: jax.random.normal(next(keys), x.shape) * x.shape[-2] ** -0.5, trainable)
    adapter = peft.make_adapter(trainable, family.NAMING, 4, 2.0, task_type="CAUSAL_LM")
    peft.save(trainable, adapter, tmp_path)
    base = transformers.Qwen3VLForConditionalGeneration.from_pretrained(
        ladder.folder() / name, attn_implementation="eager"
    )
    theirs = PeftModel.from_pretrained(base, tmp_path).eval()
    with torch.no_grad():
        want = theirs(**tiny.TWO.torch()).logits[0]
        plain = ladder.reference(name)(**tiny.TWO.torch()).logits[0]
    logits = jit(lambda m, b: m.logits(m.hidden(b)))
    got = logits(nnx.merge(graphdef, trainable, frozen), ladder.batch(ladder.architecture(name)))
    start = tiny.CASES["two images, left padding"][0][1]
    assert error(got[1, start : start + len(tiny.TWO.tokens)], want) <= ladder.NETWORK < 0.1 < error(want, plain)


SEVEN = "q_proj k_proj v_proj o_proj gate_proj up_proj down_proj".split()
RELEASED = {  # target_modules as released (peft shortens long lists to suffixes), and as its trainer writes since
    "deepstack": [*SEVEN, *(f"{k}.linear_fc{i}" for k in range(2) for i in (1, 2))],
    "decoder": SEVEN,
}


@pytest.mark.parametrize("which", ["deepstack", pytest.param("decoder", marks=pytest.mark.slow)])
def test_the_released_adapters_layout(which, tmp_path):
    """An adapter of torch's peft on the modules that the released one has: read, merged, the same logits."""
    name = "3_tied_gqa"  # two deepstack mergers
    model = get_peft_model(
        transformers.Qwen3VLForConditionalGeneration.from_pretrained(
            ladder.reference(name) and ladder.folder() / name, attn_implementation="eager"
        ),
        LoraConfig(r=4, lora_alpha=8, target_modules=RELEASED[which], task_type="CAUSAL_LM"),
    ).eval()
    tiny.randomise(model, seed=3, only="lora_")
    model.save_pretrained(tmp_path)
    found = safetensors.torch.load_file(tmp_path / peft.FILE)
    deep = [k for k in found if "deepstack" in k]
    assert len(found) - len(deep) == 4 * 7 * 2 and len(deep) == (8 if which == "deepstack" else 0)
    assert not [k for k in found if "visual" in k and "deepstack" not in k]
    adapter = peft.read_adapter(tmp_path, family.NAMING)
    assert lora_of(adapter, family) == LoRAConfig(4, 8.0, deepstack=which == "deepstack")
    ours = load_model(ladder.architecture(name), ladder.folder() / name, (tmp_path, adapter))
    with torch.no_grad():
        want = model(**tiny.ONE.torch()).logits[0]
    got = jit(lambda m, b: m.logits(m.hidden(b)))(ours, ladder.batch(ours.cfg))[0, : len(tiny.ONE.tokens)]
    assert error(got, want) <= ladder.NETWORK
    if which == "deepstack":  # a config of the decoder alone does not drop what the file has
        config = json.loads((tmp_path / peft.CONFIG).read_text()) | {"target_modules": SEVEN}
        (tmp_path / peft.CONFIG).write_text(json.dumps(config))
        with pytest.raises(WeightsError, match="unknown, or not targeted: .*deepstack_merger_list.0.linear_fc1"):
            peft.read_adapter(tmp_path, family.NAMING)


def test_all_linear_layers_are_not_the_table_of_positions():
    """What peft's "all-linear" means: neither the learned positions nor the convolution nor the head."""
    state = abstract(ladder.reference("3_untied_mqa") and ladder.architecture("3_untied_mqa"))
    found = {
        m
        for m in peft.adaptable(state, family.NAMING)
        if peft._targeted({"target_modules": "all-linear"}, m, family.NAMING, False)
    }
    theirs = {
        n
        for n, m in ladder.reference("3_untied_mqa").named_modules()
        if isinstance(m, torch.nn.Linear) and n != "lm_head"
    }
    assert found == theirs
