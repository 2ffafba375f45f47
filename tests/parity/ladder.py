"""The parity ladder: each rung compares one part of the model with torch on a tiny configuration that went over disk.

A rung returns {what: error}, error = max|a - b| / max(1, max|b|) (gradients: / max|b|), held to the bars of DESIGN.md:
1e-5 for a layer and what is below it, 1e-4 for a network. The bars are never relaxed. Torch's side is computed once
(functools.cache); ours is traced anew at each call, so that `tests/mutations` can put faults into it.
"""

import copy
import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx
from transformers.models.qwen2_5_vl import modeling_qwen2_5_vl as hf
from transformers.vision_utils import get_vision_window_index

from edit_rl_jax.nn import attention as attention_lib
from edit_rl_jax.nn import peft, rotary, weights
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.vlm import family, positions
from edit_rl_jax.vlm.cross_entropy import loss
from edit_rl_jax.vlm.engine.engine import Engine
from edit_rl_jax.vlm.engine.sampler import greedy
from edit_rl_jax.vlm.qwen_config import QwenConfig
from edit_rl_jax.vlm.qwen_model import QwenVL
from tests.parity import tiny, towers
from tests.parity.towers import FAST, error, jit, layer
from tests.vlm.engine import prompts

LAYER, NETWORK = 1e-5, 1e-4
# at alpha/rank above 1 the random adapters sharpen the softmaxes until fp32 noise alone is 1e-4 in the gradients
LORA = LoRAConfig(rank=4, alpha=2.0, vision=True, merger=True)
ANSWER = np.arange(-tiny.ANSWER, 0)


def lora_of(name: str) -> LoRAConfig:
    """Half of the configurations adapt the decoder alone; of Qwen3-VL's the deepstack mergers, too, as released."""
    whole = name.removeprefix("3_") in ("tied_gqa", "untied_mqa", "heads_equal")
    return dataclasses.replace(LORA, vision=whole, merger=whole, deepstack=name in tiny.QWEN3)


def kind(name: str):
    """The family of a configuration."""
    return family.named("qwen3_vl" if name in tiny.QWEN3 else "qwen2_5_vl")


def architecture(name: str) -> QwenConfig:
    return kind(name).architecture(folder() / name)


@functools.cache
def folder() -> Path:
    return Path(tempfile.mkdtemp(prefix="parity"))


@functools.cache
def reference(name: str):
    """The torch model, saved to disk by transformers (in several shards)."""
    model = tiny.torch_model(name)
    model.save_pretrained(folder() / name, max_shard_size="100KB")
    return model


@functools.cache
def ours(name: str, lora: LoRAConfig | None = None) -> QwenVL:
    """Our model with the weights that transformers (and peft) wrote, read by the real loader."""
    reference(name)
    cfg, of = architecture(name), kind(name)
    abstract = nnx.eval_shape(lambda: of.model(cfg, rngs=nnx.Rngs(0), lora=lora))
    graphdef, trainable, frozen = nnx.split(abstract, Trainable, Frozen)
    frozen = weights.load(folder() / name, frozen, of.NAMING)
    if lora is not None:
        peft_reference(name)
        trainable = peft.load(folder() / f"{name}_adapter", trainable, of.NAMING)
    return nnx.merge(graphdef, trainable, frozen)


@functools.cache
def captured(name: str) -> dict:
    """Inputs and outputs of torch's layers on the sample with two images; vision in the processor's patch order."""
    model, s = reference(name), tiny.TWO
    seen: dict = {}
    hook = lambda key: (
        lambda module, args, kwargs, out: seen.__setitem__(
            key, ((args[0] if args else kwargs["hidden_states"])[...], out[0] if isinstance(out, tuple) else out)
        )
    )
    modules = {
        **{("block", i): m for i, m in enumerate(model.model.visual.blocks)},
        **{("layer", i): m for i, m in enumerate(model.model.language_model.layers)},
        "merger": model.model.visual.merger,
        "patch_embed": model.model.visual.patch_embed,
    }
    if name in tiny.QWEN3:
        modules |= {("deep", i): m for i, m in enumerate(model.model.visual.deepstack_merger_list)}
    handles = [m.register_forward_hook(hook(k), with_kwargs=True) for k, m in modules.items()]
    with torch.no_grad():
        model(**s.torch())
    for h in handles:
        h.remove()
    if name in tiny.QWEN3:  # its tower keeps the processor's order
        plain = lambda k: k == "merger" or k[0] in ("block", "deep")
        return {k: (x.numpy(), y.numpy()) if plain(k) else (x, y) for k, (x, y) in seen.items()}
    v = model.config.vision_config
    merged = get_vision_window_index(torch.tensor(s.grids), v.spatial_merge_size, v.window_size, v.patch_size)[0]
    order = torch.argsort((merged[:, None] * 4 + torch.arange(4)).reshape(-1))
    raster = lambda x, o: x.reshape(len(o), -1)[o].numpy()
    for key, (x, y) in seen.items():
        if key == "merger":
            seen[key] = raster(x, order), raster(y, torch.argsort(merged))
        elif key[0] == "block":
            seen[key] = raster(x, order), raster(y, order)
    return seen


def rung_embedding(name: str) -> dict[str, float]:
    model, theirs = ours(name), reference(name)
    tokens = np.arange(0, 280, dtype=np.int32)[None]
    x = model.embed(jnp.asarray(tokens))
    return {"embedding": error(x, theirs.model.language_model.embed_tokens(torch.tensor(tokens)))}


def rung_norm(name: str) -> dict[str, float]:
    """Inputs of size 1, 1e-2 and 1e-3: the last shows the epsilon."""
    model, theirs = ours(name), reference(name)
    decoder, torch_decoder = model.language_model, theirs.model.language_model
    pairs = {
        "text": (decoder.norm, torch_decoder.norm),
        "layer": (layer(decoder.layers, 0).input_layernorm, torch_decoder.layers[0].input_layernorm),
        "vision": (layer(model.visual.blocks, 0).norm1, theirs.model.visual.blocks[0].norm1),
    }
    tower, torch_tower = model.visual, theirs.model.visual
    if name in tiny.QWEN3:
        attn = layer(decoder.layers, 0).self_attn, torch_decoder.layers[0].self_attn
        pairs |= {"merger": (tower.merger.norm, torch_tower.merger.norm)}
        pairs |= {"deepstack": (layer(tower.deepstack_merger_list, 0).norm, torch_tower.deepstack_merger_list[0].norm)}
        pairs |= {k: (getattr(attn[0], k), getattr(attn[1], k)) for k in ("q_norm", "k_norm")}
    else:
        pairs |= {"merger": (tower.merger.ln_q, torch_tower.merger.ln_q)}
    out = {}
    for what, (a, b) in pairs.items():
        for size in (1.0, 1e-2, 1e-3):
            x = np.random.default_rng(0).normal(size=(16, len(b.weight))).astype(np.float32) * size
            out[f"{what} norm at {size}"] = error(a(jnp.asarray(x)), b(torch.tensor(x)))
    return out


def rung_rotary(name: str) -> dict[str, float]:
    """cos and sin tables of text (t, h and w apart) and vision."""
    theirs, cfg = reference(name), architecture(name)
    where = np.random.default_rng(0).integers(0, 100, (2, 3, 40)).astype(np.int32)
    t = cfg.text
    alternate = (True,) if t.interleaved else ()
    text = rotary.mrope_table(jnp.asarray(where), t.head_dim, t.rope_theta, t.mrope_section, *alternate)
    hw = where[:, :2].swapaxes(1, 2)
    vision = rotary.vision_table(jnp.asarray(hw), cfg.vision.head_dim, cfg.vision.rope_theta)
    text_ref = theirs.model.language_model.rotary_emb(torch.zeros(1), torch.tensor(where.swapaxes(0, 1)))
    vision_ref = theirs.model.visual.rotary_pos_emb(torch.zeros(1), torch.tensor(hw.reshape(-1, 2)))
    vision_ref = [x.reshape(2, 40, -1) for x in vision_ref]
    out = {}
    for what, a, b in (("text", text, text_ref), ("vision", vision, vision_ref)):
        for f, mine, torchs in zip(("cos", "sin"), a, b):
            out[f"{what} {f}"] = error(jnp.concatenate([mine, mine], -1), torchs)
    return out


def rung_positions(name: str) -> dict[str, float]:
    """M-RoPE positions (0 or infinite: they are integers), padding on either side included."""
    theirs = reference(name)
    out = {}
    for s in (tiny.ONE, tiny.TWO, tiny.NARROW, tiny.TEXT):
        for before, after in ((0, 0), (5, 0), (0, 5)):
            pad = lambda x, width=(before, after): np.pad(x, width)
            ids, mask = torch.tensor(pad(s.tokens))[None].long(), torch.tensor(pad(np.ones_like(s.tokens)))[None]
            grids = torch.tensor(s.grids) if s.grids else None
            want, delta = theirs.model.get_rope_index(ids, (ids == tiny.IMAGE).int(), grids, attention_mask=mask)
            got, following = positions.rope_index(pad(s.tokens), s.grids, tiny.IMAGE, mask=mask[0].numpy().astype(bool))
            keep = mask[0].bool().numpy()
            same = (got[:, keep] == want[:, 0].numpy()[:, keep]).all()
            same &= following == int(delta) + len(s.tokens)
            out[f"{len(s.grids)} images, padding {before}, {after}"] = 0.0 if same else np.inf
    return out


def rung_attention(name: str) -> dict[str, float]:
    """The attention function against eager torch: grouped heads, causal and not, segments, unattended padding."""
    t = reference(name).config.text_config
    H, kv, d, T = (
        t.num_attention_heads,
        t.num_key_value_heads,
        t.hidden_size // t.num_attention_heads,
        150,
    )  # more than one block of queries
    rng = np.random.default_rng(0)
    q, k, v = (rng.normal(size=(2, T, h, d)).astype(np.float32) for h in (H, kv, kv))
    segments = np.array([[1] * 70 + [2] * 65 + [0] * 15, [0] * 9 + [1] * 141], np.int32)
    module = torch.nn.Module()
    module.num_key_value_groups = H // kv
    out = {}
    for causal in (True, False):
        mask = (segments[:, :, None] == segments[:, None]) & (segments[:, :, None] > 0)
        mask &= np.tri(T, dtype=bool) if causal else True
        bias = torch.tensor(np.where(mask, 0, np.finfo(np.float32).min).astype(np.float32))[:, None]
        swap = lambda x: torch.tensor(x).transpose(1, 2)
        want = hf.eager_attention_forward(module, swap(q), swap(k), swap(v), bias, d**-0.5)[0].numpy()
        want = np.where((segments > 0)[:, :, None, None], want, 0)
        ids = jnp.asarray(segments)
        run = jit(lambda q, k, v: attention_lib.attention(q, k, v, q_segments=ids, kv_segments=ids, causal=causal))  # noqa: B023
        out[f"attention, causal {causal}"] = error(run(q, k, v), want)
    return out


def rung_layers(name: str) -> dict[str, float]:
    """Every decoder layer, vision block and the merger alone, on torch's own inputs to them."""
    model, seen, s = ours(name), captured(name), tiny.TWO
    cfg, out = model.cfg, {}
    where = jnp.asarray(positions.rope_index(s.tokens, s.grids, tiny.IMAGE)[0])[None]
    t = cfg.text
    cos_sin = rotary.mrope_table(where, t.head_dim, t.rope_theta, t.mrope_section, *((True,) if t.interleaved else ()))
    attend = lambda q, k, v, state: (attention_lib.attention(q, k, v, causal=True), state)
    run = jit(lambda module, x: module(x, *cos_sin, attend, None)[0])
    for i in range(cfg.text.num_hidden_layers):
        x, y = (jnp.asarray(a.numpy()) for a in seen["layer", i])
        out[f"decoder layer {i}"] = error(run(layer(model.language_model.layers, i), x), y)

    return out | (towers.whole if name in tiny.QWEN3 else towers.windowed)(model, seen, s)


def batch(cfg: QwenConfig, rows=None) -> dict[str, jax.Array]:
    """Rows of (sample, place of its first token) as one batch of fixed shape, with the answers as targets."""
    rows = list(tiny.CASES.values()) if rows is None else rows
    B, R, P, A = len(rows), tiny.VISION_ROWS, tiny.SLOTS, 3 * tiny.ANSWER
    ints = lambda *shape: np.zeros(shape, np.int32)
    T = tiny.TOKENS
    text = {"tokens": ints(B, T), "segments": ints(B, T), "positions": ints(B, 3, T), "image_index": ints(B, T) - 1}
    blank = cfg.vision_arrays(cfg.vision_rows(R, P).layout())
    seen = {k: np.zeros((B, *v.shape), v.dtype) for k, v in blank.items()}
    seen["patches"] = np.zeros((B, R, P, 1176), np.float32)
    answers = {"answer_index": ints(B, A) - 1, "answer_targets": ints(B, A)}
    answers["answer_weights"] = np.zeros((B, A), np.float32)
    for b, row in enumerate(rows):
        grids = [g for s, _ in row for g in s.grids]
        layout = positions.pack_vision(grids, cfg.vision, R, P)
        for k, v in cfg.vision_arrays(layout).items():
            seen[k][b] = v
        patches = np.concatenate([s.patches for s, _ in row])
        seen["patches"][b] = np.where(layout.source[..., None] < 0, 0, patches[layout.source]) if len(patches) else 0
        merged = iter(layout.merged_index)
        for i, (s, start) in enumerate(row):
            at = slice(start, start + len(s.tokens))
            text["tokens"][b, at], text["segments"][b, at] = s.tokens, i + 1
            text["positions"][b, :, at] = positions.rope_index(s.tokens, s.grids, tiny.IMAGE)[0]
            index = np.concatenate([next(merged) for _ in s.grids]) if s.grids else []
            text["image_index"][b, at][s.tokens == tiny.IMAGE] = index
            a = slice(i * tiny.ANSWER, (i + 1) * tiny.ANSWER)
            answers["answer_index"][b, a] = start + len(s.tokens) + ANSWER - 1
            answers["answer_targets"][b, a], answers["answer_weights"][b, a] = s.tokens[ANSWER], 1
    return {k: jnp.asarray(x) for k, x in (text | seen | answers).items()}


@functools.cache
def torch_logits(name: str, adapted: bool = False) -> dict[int, torch.Tensor]:
    """Logits of every sample alone, by the sample's identity."""
    model = peft_reference(name) if adapted else reference(name)
    with torch.no_grad():
        return {id(s): model(**s.torch()).logits[0] for row in tiny.CASES.values() for s, _ in row}


def rung_network(name: str) -> dict[str, float]:
    """Logits of the packed and padded batch against each sample alone in torch, and against torch's padded batches."""
    model, theirs = ours(name), torch_logits(name)
    logits = jit(lambda model, b: model.logits(model.hidden(b)))(model, batch(model.cfg))
    out, mine = {}, {}
    for got, (case, row) in zip(logits, tiny.CASES.items()):
        for i, (s, start) in enumerate(row):
            mine[id(s)] = got[start : start + len(s.tokens)]
            out[f"{case}, sample {i}"] = error(mine[id(s)], theirs[id(s)])
    for side in ("left", "right"):
        inputs = tiny.padded_torch([tiny.ONE, tiny.TWO], side)
        with torch.no_grad():
            padded = reference(name)(**inputs).logits
        for s, got, mask in zip((tiny.ONE, tiny.TWO), padded, inputs["attention_mask"]):
            out[f"torch padded {side}, {len(s.grids)} images"] = error(mine[id(s)], got[mask.bool()])
    return out


@functools.cache
def peft_reference(name: str):
    """Torch model with a random adapter (A and B both non-zero), saved by peft."""
    from peft import LoraConfig, get_peft_model

    reference(name)
    target = r".*language_model.*_proj"
    if lora_of(name).vision:
        target += r"|.*visual\.blocks.*\.(qkv|proj|\w+_proj|linear_fc\d)|.*visual\.merger\.(mlp\.[02]|linear_fc\d)"
    if lora_of(name).deepstack:
        target += r"|.*deepstack_merger_list\.\d+\.linear_fc\d"
    config = LoraConfig(r=LORA.rank, lora_alpha=LORA.alpha, target_modules=target)
    model = get_peft_model(copy.deepcopy(reference(name)), config).eval()
    tiny.randomise(model, seed=1, only="lora_")
    model.save_pretrained(folder() / f"{name}_adapter")
    return model


@functools.cache
def torch_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    """Mean cross-entropy of all answer tokens and its gradient by the adapter's tensors, in PEFT's naming."""
    model = peft_reference(name)
    total, count = 0.0, 0
    for row in tiny.CASES.values():
        for s, _ in row:
            logits = model(**s.torch()).logits[0, ANSWER - 1]
            targets = torch.tensor(s.tokens[ANSWER]).long()
            total = total + torch.nn.functional.cross_entropy(logits, targets, reduction="sum")
            count += tiny.ANSWER
    value = total / count
    wanted = {n: p for n, p in model.named_parameters() if "lora_" in n}
    grads = torch.autograd.grad(value, list(wanted.values()))
    return value.item(), {n.replace(".default", ""): g.numpy() for n, g in zip(wanted, grads)}


def rung_gradients(name: str) -> dict[str, float]:
    """SFT loss of the batch and the adapter's gradients, each relative to the tensor's maximum."""
    value, theirs = torch_gradients(name)
    model = ours(name, lora_of(name))
    graphdef, trainable, frozen = nnx.split(model, Trainable, Frozen)

    def mean(trainable, frozen, batch):
        total, weight, _ = loss(nnx.merge(graphdef, trainable, frozen), batch)
        return total / weight

    got, grads = jit(jax.value_and_grad(mean))(trainable, frozen, batch(model.cfg))
    out = {"loss": error(got, value)}
    adapter = peft.make_adapter(grads, kind(name).NAMING, LORA.rank, LORA.alpha)
    tensors = peft.tensors(grads, adapter)
    assert tensors.keys() == theirs.keys(), tensors.keys() ^ theirs.keys()
    return out | {n: error(g, theirs[n], least=1e-30) for n, g in tensors.items()}


@functools.cache
def torch_greedy(name: str) -> np.ndarray:
    """64 greedy tokens of two prompts, left-padded together."""
    inputs, model = tiny.padded_torch([tiny.ONE, tiny.TWO], "left"), reference(name)
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=64, min_new_tokens=64, do_sample=False, pad_token_id=0)
    model.model.rope_deltas = None  # kept from one call to the next
    return out[:, inputs["input_ids"].shape[1] :].numpy()


def rung_generation(name: str) -> dict[str, float]:
    """64 greedy tokens: 0 or infinite."""
    model = ours(name)
    samples = [tiny.ONE, tiny.TWO]
    engine = Engine(model, greedy(64), slots=2, unit=96, vision_slots=0, compiler_options=FAST)
    asked = [prompts.of_sample(model.cfg, s, cuts=False, slots=192) for s in samples]
    got = {a.index: a.answers[0].tokens for a in engine.generate(asked)}
    same = [np.array_equal(got[i], theirs) for i, theirs in enumerate(torch_greedy(name))]
    return {f"{len(sample.grids)} images": 0.0 if s else np.inf for sample, s in zip(samples, same)}


RUNGS = {
    "embedding": (rung_embedding, LAYER),
    "norm": (rung_norm, LAYER),
    "rotary": (rung_rotary, LAYER),
    "positions": (rung_positions, LAYER),
    "attention": (rung_attention, LAYER),
    "layers": (rung_layers, LAYER),
    "network": (rung_network, NETWORK),
    "generation": (rung_generation, NETWORK),
    "gradients": (rung_gradients, NETWORK),
}
