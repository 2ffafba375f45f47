"""Checkpoints as users have them, written from two tiny models, loaded by `transformers` and by us: the table of both.

    python -m tests.vlm.qwen2_5_vl.checkpoints

A case says that it loads, with transformers' logits, or what our refusal says.
"""

import copy
import functools
import itertools
import json
import re
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors.torch
import torch
import transformers
from flax import nnx

from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.qwen2_5_vl import weights
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from tests.parity import ladder, tiny

EMBED, HEAD = "model.language_model.embed_tokens.weight", "lm_head.weight"
LOADS = "loads"
Tensors = dict[str, torch.Tensor]
Files = dict[str, Tensors]  # tensors by file name
Case = tuple[str, str, Callable[[Tensors, dict], Files | None], str]  # name, model, what is written, what is expected
NAMES = {True: "tied", False: "untied", None: "absent"}


@functools.cache
def _model(name: str) -> tuple[Tensors, dict]:
    model = tiny.torch_model(name)
    return dict(model.state_dict()), json.loads(model.config.to_json_string(use_diff=False))


def _random(like: torch.Tensor, seed: int = 1) -> torch.Tensor:
    return torch.randn(like.shape, generator=torch.Generator().manual_seed(seed)) / like.shape[1] ** 0.5


# -- What is written: each takes (tensors under transformers 5's names, config), changes them, or gives the files ------


def plain(w, cfg):
    pass


def hub_names(w, cfg):
    return {"model.safetensors": {weights.hub_name(k): v for k, v in w.items()}}


def no_prefix(w, cfg):
    """A Qwen2_5_VLModel, which has no head, saved by itself."""
    w.pop(HEAD)
    return {"model.safetensors": {k.removeprefix("model."): v for k, v in w.items()}}


def wrapped(w, cfg):
    return {"model.safetensors": {f"module.{k}": v for k, v in w.items()}}


def dtypes(*kinds):
    def write(w, cfg):
        for i, k in enumerate(sorted(w)):
            w[k] = w[k].to(kinds[i % len(kinds)])

    return write


def head(dtype_of_embedding, dtype, differs=False, keep=(EMBED, HEAD)):
    def write(w, cfg):
        w[EMBED] = w[EMBED].to(dtype_of_embedding)
        w[HEAD] = (_random(w[EMBED]) if differs else w[EMBED]).to(dtype)
        for k in {EMBED, HEAD} - set(keep):
            del w[k]

    return write


def rounded_head(w, cfg):
    """A head in fp32 whose rounding to bf16 is the embedding: not the same numbers."""
    w[HEAD], w[EMBED] = w[HEAD].clone(), w[EMBED].to(torch.bfloat16)


def flags(top, text, files):
    keep = {"embedding": (EMBED,), "head": (HEAD,)}.get(files, (EMBED, HEAD))

    def write(w, cfg):
        for level, flag in ((cfg, top), (cfg["text_config"], text)):
            level.pop("tie_word_embeddings", None)
            if flag is not None:
                level["tie_word_embeddings"] = flag
        head(torch.float32, torch.float32, files == "two", keep)(w, cfg)

    return write


def shards(pattern, metadata=True, beside=None, change=None):
    """Two shards and their index; `change` edits the index."""

    def write(w, cfg):
        files, place = {}, {}
        for i, name in enumerate(sorted(w)):
            file = pattern.format(i % 2 + 1)
            files.setdefault(file, {})[name] = w[name]
            place[name] = file
        index = {"metadata": {"total_size": 1}} if metadata else {"metadata": {}}
        index["weight_map"] = place
        if change:
            change(index)
        files["model.safetensors.index.json"] = index
        return files | ({"model.safetensors": dict(w)} if beside else {})

    return write


def outside(index):
    for k in index["weight_map"]:
        index["weight_map"][k] = "../" + index["weight_map"][k]


def odd_metadata(index):
    index["metadata"] = {"total_size": "many", "total_parameters": None, "format": ["pt"]}


def extra(name, value=None):
    def write(w, cfg):
        w[name] = torch.ones(4) if value is None else value

    return write


def drop(name):
    def write(w, cfg):
        del w[name]

    return write


def config(**changes):
    """Entries of config.json; `text__x` and `vision__x` are of the sections, None takes one away."""

    def write(w, cfg):
        for key, value in changes.items():
            level, _, name = key.rpartition("__")
            where = cfg[f"{level}_config"] if level else cfg
            where.pop(name, None)
            if value is not None:
                where[name] = value

    return write


def flat(w, cfg):
    """The layout of the hub's files: the decoder's entries at the top, rope_scaling."""
    text = cfg.pop("text_config")
    rope = text.pop("rope_parameters")
    text = {k: v for k, v in text.items() if k not in ("model_type", "tie_word_embeddings", "layer_types")}
    scaling = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    cfg.update(text | {"rope_scaling": scaling, "rope_theta": rope["rope_theta"]})
    vision = cfg["vision_config"]
    vision |= {"model_type": "qwen2_5_vl", "in_chans": vision.pop("in_channels"), "spatial_patch_size": 14}
    cfg["torch_dtype"] = "float32"
    cfg.pop("dtype", None)


def rope(scaling, theta=False, other=0.0):
    """rope_scaling as transformers 4 wrote it; `theta`: rope_theta beside it, `other`: rope_parameters that differ."""

    def write(w, cfg):
        text = cfg["text_config"]
        old = text.pop("rope_parameters")
        found = {"mrope_section": old["mrope_section"]} | scaling
        text["rope_scaling"] = {k: v for k, v in found.items() if v is not None}
        if theta:
            text["rope_theta"] = old["rope_theta"]
        if other:
            text["rope_parameters"] = old | {"rope_theta": other}

    return write


SLIDING = {"text__sliding_window": 8, "text__max_window_layers": 0, "text__layer_types": None}
BF16, F16, F32, F64 = torch.bfloat16, torch.float16, torch.float32, torch.float64
T, U = "tied_gqa", "untied_mqa"
CASES: list[Case] = [
    ("names of transformers 5, tied head in the file", T, plain, LOADS),
    ("names of transformers 5, untied", U, plain, LOADS),
    ("names of the hub", U, hub_names, LOADS),
    ("a model without its head, tied", T, no_prefix, LOADS),
    ("a model without its head, untied", U, no_prefix, "missing: lm_head.weight"),
    ("names under module.", U, wrapped, "missing: .*unknown: module"),
    ("all bf16", U, dtypes(BF16), LOADS),
    ("all fp16", U, dtypes(F16), LOADS),
    ("all fp64", U, dtypes(F64), LOADS),
    ("fp16, bf16, fp32, fp64 mixed", U, dtypes(F16, BF16, F32, F64), LOADS),
    ("fp8 weights", U, dtypes(torch.float8_e4m3fn), "has dtype F8_E4M3"),
    ("int8 weights", U, dtypes(torch.int8), "has dtype I8"),
    ("tied, bf16 embedding, the same head in fp32", T, head(BF16, F32), LOADS),
    ("tied, bf16 embedding, the same head in fp64", T, head(BF16, F64), LOADS),
    ("tied, fp16 embedding, the same head in fp32", T, head(F16, F32), LOADS),
    ("tied, fp32 head that rounds to the bf16 embedding", T, rounded_head, LOADS),
    ("tied, the head differs in another dtype", T, head(BF16, F32, differs=True), LOADS),
    ("tied, only a head in bf16", T, head(F32, BF16, keep=(HEAD,)), LOADS),
    ("untied, only a head", U, drop(EMBED), "missing: model.language_model.embed_tokens.weight"),
    ("untied, only an embedding", U, drop(HEAD), "missing: lm_head.weight"),
    ("shards", U, shards("model-0000{}-of-00002.safetensors"), LOADS),
    ("shards in a folder", U, shards("sub/model-0000{}-of-00002.safetensors"), LOADS),
    ("shards in two folders", U, shards("part{}/model.safetensors"), LOADS),
    ("shards of other names", U, shards("weights_{}.safetensors"), LOADS),
    ("shards outside the folder", U, shards("model-{}.safetensors", change=outside), "leads out of the folder"),
    ("index without metadata", U, shards("model-{}.safetensors", metadata=False), LOADS),
    ("index with odd metadata", U, shards("model-{}.safetensors", change=odd_metadata), LOADS),
    ("a single file beside an index", U, shards("model-{}.safetensors", beside=True), LOADS),
    ("rotary buffers", U, extra("model.language_model.rotary_emb.inv_freq"), LOADS),
    ("rotary buffers of layers", U, extra("model.language_model.layers.0.self_attn.rotary_emb.inv_freq"), LOADS),
    ("vision's rotary buffer", U, extra("model.visual.rotary_pos_emb.inv_freq"), LOADS),
    ("a value head", U, extra("v_head.weight"), "unknown: v_head.weight"),
    ("a layer too many", U, config(text__num_hidden_layers=1), "unknown: .*layers.1"),
    ("a layer missing", U, config(text__num_hidden_layers=3), "missing: .*layers.2"),
    ("another vocabulary", U, config(text__vocab_size=301), "misshapen: .*embed_tokens"),
    ("the hub's flat layout", U, flat, LOADS),
    ("the hub's flat layout, tied", T, flat, LOADS),
    ("vision_config.model_type of old files", U, config(vision__model_type="qwen2_5_vl"), LOADS),
    ("in_chans beside in_channels", U, config(vision__in_chans=3, vision__spatial_patch_size=14), LOADS),
    ("no architectures, no dtype", U, config(architectures=None, dtype=None), LOADS),
    ("torch_dtype beside dtype", U, config(torch_dtype="bfloat16", dtype="float32"), LOADS),
    ("rope_scaling, type default", U, rope(scaling={"type": "default"}, theta=True), LOADS),
    ("rope_scaling of both spellings", U, rope(scaling={"type": "mrope", "rope_type": "default"}, theta=True), LOADS),
    ("rope_scaling against rope_parameters", U, rope(scaling={"type": "mrope", "rope_theta": 1e4}, other=3.0), LOADS),
    ("rope_theta in the section wins", U, config(text__rope_theta=3.0), LOADS),
    ("yarn", U, rope(scaling={"type": "yarn", "factor": 4.0}), "yarn"),
    ("mrope_section of another sum", U, rope(scaling={"mrope_section": [2, 2, 2]}), "mrope_section"),
    ("mrope_section missing", U, rope(scaling={"mrope_section": None}), "mrope_section"),
    ("sliding_window off", U, config(text__sliding_window=8, text__use_sliding_window=False), LOADS),
    ("sliding_window on", U, config(**SLIDING, text__use_sliding_window=True), "use_sliding_window"),
    ("attention_bias false, which nobody reads", U, config(text__attention_bias=False), LOADS),
    ("hidden_act gelu", U, config(text__hidden_act="gelu"), "gelu"),
    ("vision hidden_act quick_gelu", U, config(vision__hidden_act="quick_gelu"), "quick_gelu"),
    ("key-value heads null where all are", "heads_equal", config(text__num_key_value_heads=None), "KV heads"),
    ("qwen2_vl", U, config(model_type="qwen2_vl"), "qwen2_vl"),
    ("qwen3_vl", U, config(model_type="qwen3_vl"), "qwen3_vl"),
    ("quantized", U, config(quantization_config={"quant_method": "fp8"}), "quantized weights"),
]  # fmt: skip


def _ties() -> list[Case]:
    """The flag at both levels of config.json, true, false or absent, over all that a file may hold."""
    out = []
    flag, held = (True, False, None), ("same", "two", "embedding", "head")
    for top, text, files in itertools.product(flag, flag, held):
        lost = {"embedding": HEAD, "head": EMBED}.get(files)
        said = LOADS if top or text or lost is None else f"missing: {lost}"
        out.append((f"{NAMES[top]} above {NAMES[text]}, {files}", T, flags(top, text, files), said))
    return out


TIES = _ties()


def write(case: Case, folder: Path) -> None:
    """Writes the case's folder: config.json and its files, by default one."""
    w, cfg = _model(case[1])
    w, cfg = dict(w), copy.deepcopy(cfg)
    files: Any = case[2](w, cfg)
    for name, content in (files or {"model.safetensors": w}).items():
        file = folder / name
        file.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".json"):
            file.write_text(json.dumps(content))
        else:
            tensors = {k: v.clone().contiguous() for k, v in content.items()}
            safetensors.torch.save_file(tensors, file, metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(cfg))


def torch_logits(folder: Path) -> np.ndarray | str:
    """transformers' logits in fp32, or why there are none."""
    cls = transformers.Qwen2_5_VLForConditionalGeneration
    try:
        model, info = cls.from_pretrained(folder, dtype=torch.float32, output_loading_info=True)
        with torch.no_grad():
            logits = model(**tiny.ONE.torch()).logits[0].numpy()
    except Exception as e:
        return f"refuses: {type(e).__name__}"
    lost = info["missing_keys"]
    return f"draws {len(lost)} at random" if lost else logits


def _shapes(cfg):
    return nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), remat="none"))


def abstract(cfg):
    """The state of a model without arrays."""
    return nnx.state(_shapes(cfg))


_logits = jax.jit(lambda model, batch: model.logits(model.hidden(batch)), compiler_options=ladder.FAST)


def our_logits(folder: Path) -> np.ndarray | str:
    """Ours, or the refusal."""
    try:
        cfg = weights.read_config(folder)
        graphdef, state = nnx.split(_shapes(cfg))
        model = nnx.merge(graphdef, weights.load(folder, state))
    except WeightsError as e:
        return str(e)
    return np.asarray(_logits(model, ladder.batch(cfg, [[(tiny.ONE, 0)]])))[0, : len(tiny.ONE.tokens)]


def judge(case: Case, folder: Path) -> tuple[str, str, bool]:
    """(transformers' outcome, ours, whether ours is right) of a case."""
    write(case, folder)
    theirs, mine = torch_logits(folder), our_logits(folder)
    if isinstance(mine, str):
        right = case[3] != LOADS and bool(re.search(case[3], mine)) and str(folder) in mine and "\n" not in mine
        return theirs if isinstance(theirs, str) else "loads", mine.replace(str(folder), "DIR"), right
    if isinstance(theirs, str):
        return theirs, "loads", False
    error = float(np.abs(mine - theirs).max() / max(1.0, np.abs(theirs).max()))
    return "loads", f"loads, logits differ by {error:.1e}", case[3] == LOADS and error < ladder.NETWORK


def main() -> int:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    jax.config.update("jax_default_matmul_precision", "highest")
    wrong = 0
    for case in CASES + TIES:
        with tempfile.TemporaryDirectory() as folder:
            theirs, mine, right = judge(case, Path(folder))
        wrong += not right
        print(f"| {'' if right else 'WRONG '}{case[0]} | {theirs} | {mine[:150]} |", flush=True)
    print(f"{len(CASES + TIES)} checkpoints, {wrong} wrong")
    return wrong


if __name__ == "__main__":
    sys.exit(main())
