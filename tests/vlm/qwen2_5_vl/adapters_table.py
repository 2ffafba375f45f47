"""Adapter folders that the installed `peft` makes on a tiny Qwen2.5-VL, read here: logits as PEFT's, or a true refusal.

    python -m tests.vlm.qwen2_5_vl.adapters_table

prints the table. A row is what PEFT is told, what is changed in the folder afterwards, and what is right.
"""

import copy
import dataclasses
import functools
import json
import shutil
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft as torch_peft
import safetensors.torch
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.vlm.loading import load_model
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from tests.parity import ladder, tiny
from tests.vlm.qwen2_5_vl import peft

EQUAL = "equal"
Q, PROJ = "q_proj", ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
SWIFT = "^(model)(?!.*(lm_head|output|emb|wte|shared)).*"
# ms-swift's and LLaMA-Factory's patterns name layers below the decoder, so that no container matches
SWIFT_OLD = r"^(model)(?!.*(lm_head|output|emb|wte|shared)).*\.(q_proj|down_proj)"
DECODER = r"model\.language_model\..*\.(q_proj|down_proj)"


def rename(*pairs: tuple[str, str]) -> Callable:
    def edit(config, tensors):
        for old, new in pairs:
            tensors = {k.replace(old, new): v for k, v in tensors.items()}
        return config, tensors

    return edit


def entries(*without: str, **new: Any) -> Callable:
    return lambda config, tensors: ({k: v for k, v in config.items() if k not in without} | new, tensors)


def cast(dtype: torch.dtype) -> Callable:
    return lambda config, tensors: (config, {k: v.to(dtype) for k, v in tensors.items()})


def both(*edits: Callable) -> Callable:
    def edit(config, tensors):
        for one in edits:
            config, tensors = one(config, tensors)
        return config, tensors

    return edit


def dropped(part: str) -> Callable:
    return lambda config, tensors: (config, {k: v for k, v in tensors.items() if part not in k})


def minimal(config, tensors):
    return {k: config[k] for k in ("peft_type", "target_modules", "base_model_name_or_path")}, tensors


OLD = rename(("model.model.language_model.", "model.model."), ("model.model.visual.", "model.visual."))


@dataclasses.dataclass(frozen=True)
class Row:
    """options: of LoraConfig. right: EQUAL, or words of the refusal. edit: (config, tensors) -> the folder's.
    before: compare with PEFT before the edit (names or patterns that plain PEFT does not read). save: of
    save_pretrained. base: of tests/parity/tiny. config: in place of a LoraConfig."""

    name: str
    options: dict[str, Any]
    right: str = EQUAL
    edit: Callable | None = None
    before: bool = False
    save: dict[str, Any] = dataclasses.field(default_factory=dict)
    base: str = "heads_equal"
    config: Any = None


def on(*targets: str, **more: Any) -> dict[str, Any]:
    return {"target_modules": list(targets), **more}


def by(pattern: str, **more: Any) -> dict[str, Any]:
    return {"target_modules": pattern, **more}


V04 = dict(  # all that PEFT 0.4 wrote
    auto_mapping=None, bias="none", fan_in_fan_out=False, inference_mode=True, init_lora_weights=True,
    layers_pattern=None, layers_to_transform=None, lora_dropout=0.05, modules_to_save=None, revision=None,
    task_type="CAUSAL_LM",
)  # fmt: skip
SAME = [
    Row("q_proj", on(Q)),
    Row("q_proj, attn.proj", on(Q, "attn.proj")),
    Row("down_proj", on("down_proj")),
    Row("qkv", on("qkv")),
    Row("proj, patch embedding too", on("proj")),
    Row("patch embedding alone", on("patch_embed.proj", Q, use_rslora=True)),
    Row("both merger layers", on("mlp.0", "mlp.2")),
    Row("all seven", on(*PROJ)),
    Row("all-linear", by("all-linear")),
    Row("last vision blocks", by(r".*visual\.blocks\.[23]\..*(qkv|proj)|.*layers\.\d+\.self_attn\.q_proj")),
    Row("LLaMA-Factory", by("^(?!.*(?:visual.patch_embed|visual.blocks|visual.merger)).*(?:q_proj|v_proj)$")),
    Row("ms-swift", by(r"^(model\.language_model(?=\.).*\.(q_proj|o_proj)|model\.visual\.merger(?=\.).*\.(2|0))$")),
    Row("layers_to_transform list", on(Q, "qkv", layers_to_transform=[1, 3])),
    Row("layers_to_transform number", on(Q, "qkv", layers_to_transform=0, layers_pattern="layers")),
    Row("layers_pattern list", on("down_proj", "qkv", layers_to_transform=[2, 3], layers_pattern=["blocks"])),
    Row("whole name beside a layer", on(Q, "model.visual.merger.mlp.0", layers_to_transform=[0])),
    Row("exclude_modules pattern", on("down_proj", exclude_modules=r".*visual.*|.*\.1\..*")),
    Row("rsLoRA", on(Q, "qkv", use_rslora=True)),
    Row("rank_pattern", on(*PROJ, rank_pattern={"q_proj": 7, "mlp.down_proj": 1})),
    Row("alpha_pattern", on(*PROJ, alpha_pattern={"v_proj": 32, "up_proj": 1})),
    Row("rank and alpha, patterns", on(Q, "qkv",
                                       rank_pattern={r"layers\.[01]\.self_attn\.\w+": 5, "blocks.3.attn.qkv": 2},
                                       alpha_pattern={"^model.visual.*": 9, "q_proj": 0.5})),
    Row("ranks in proportion to alphas", on(Q, "o_proj", rank_pattern={Q: 6}, alpha_pattern={Q: 10})),
    Row("first of two patterns", on(Q, alpha_pattern={"self_attn.q_proj": 20, "layers.1.self_attn.q_proj": 2})),
    Row("patterns in the tower alone", on("qkv", "attn.proj", rank_pattern={"blocks.0.attn.qkv": 1})),
    Row("alpha below 0", on(Q, lora_alpha=-4)),
    Row("mica", on(Q, init_lora_weights="mica")),
    Row("no lora_alpha", on(Q), edit=entries("lora_alpha")),
    Row("no r", on(Q, r=8), edit=entries("r")),
    Row("four entries", on(Q, r=8), edit=minimal),
    Row("nulls", on(Q), edit=entries(use_rslora=None, modules_to_save=None, use_dora=None, exclude_modules=None,
                                     layers_to_transform=None, layers_pattern=None, init_lora_weights=None)),
    Row("PEFT 0.4", on(Q), edit=both(minimal, entries(**V04, r=3, lora_alpha=5))),
    Row("fp16", on(Q, "qkv"), edit=cast(torch.float16)),
    Row("another name, in its folder", on(Q), save={"selected_adapters": ["other"]}),
    Row("names with .other", on(Q), edit=rename((".weight", ".other.weight")), before=True),
    Row("names without a prefix", on(Q, "qkv"), edit=rename(("base_model.model.", "")), before=True),
    Row("names with two prefixes", on(Q), edit=rename(("base_model.", "base_model.model.base_model.")), before=True),
    Row("old names", on(Q, "qkv", alpha_pattern={"layers.1.self_attn.q_proj": 9}), edit=OLD, before=True),
    Row("old names, ms-swift", by(DECODER), edit=both(OLD, entries(target_modules=SWIFT_OLD)), before=True),
    Row("new names, ms-swift's old pattern", by(DECODER), edit=entries(target_modules=SWIFT_OLD), before=True),
    Row("old names, tower", by(r"model\.visual\.blocks.*qkv"),
        edit=both(OLD, entries(target_modules=r"visual\.blocks\.\d+\.attn\.qkv")), before=True),
    Row("old names, alphas by whole name", on(Q, alpha_pattern={"model.language_model.layers.1.self_attn.q_proj": 20}),
        edit=both(OLD, entries(alpha_pattern={"model.layers.1.self_attn.q_proj": 20})), before=True),
    Row("old names, new pattern", by(DECODER), edit=OLD, before=True),
    Row("PiSSA, converted", on(Q, init_lora_weights="pissa"), save={"path_initial_model_for_weight_conversion": True}),
    Row("head of an untied base", on("lm_head", Q), save={"save_embedding_layers": False}),
    Row("tied base", on(Q, "attn.proj"), base="tied_gqa"),
]  # fmt: skip
SAME_TOO = [  # in the slow tests, for time
    Row("o_proj, gate_proj", on("o_proj", "gate_proj")),
    Row("second merger layer", on("merger.mlp.2")),
    Row("All-Linear", by("All-Linear", exclude_modules=["qkv"])),
    Row("last decoder layer", by(r".*\.layers\.2\.mlp\.down_proj")),
    Row("LLaMA-Factory, tower", by(r"^(?!.*patch_embed).*(?:qkv|up_proj|attn\.proj)$")),
    Row("layers_pattern of two", on("down_proj", layers_to_transform=[1], layers_pattern=["blocks", "layers"])),
    Row("layers_to_transform empty", on(Q, layers_to_transform=[])),
    Row("exclude_modules list", on(Q, "down_proj", exclude_modules=["layers.0.self_attn.q_proj", "mlp.down_proj"])),
    Row("rank_pattern with rsLoRA", on(Q, "o_proj", rank_pattern={Q: 9}, alpha_pattern={"o_proj": 3}, use_rslora=True)),
    Row("one rank by pattern", on(Q, rank_pattern={Q: 6})),
    Row("patterns that match nothing", on(Q, rank_pattern={"c_attn": 6}, alpha_pattern={"proj": 40})),
    Row("alpha of a fraction", on(Q, lora_alpha=0.3)),
    Row("alpha 0 in one layer", on(Q, "o_proj", alpha_pattern={Q: 0})),
    Row("gaussian", on(Q, init_lora_weights="gaussian")),
    Row("orthogonal", on(Q, r=4, init_lora_weights="orthogonal")),
    Row("eva", on(Q, init_lora_weights="eva")),
    Row("no initialisation", on(Q, init_lora_weights=False)),
    Row("fan_in_fan_out", on(Q, fan_in_fan_out=True)),
    Row("dropout, task, revision", on(Q, lora_dropout=0.5, task_type="CAUSAL_LM", revision="main")),
    Row("25 whole names", on(*[f"model.language_model.layers.{i}.{m}" for i in (0, 2) for m in
                               ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")],
                             *[f"model.visual.blocks.{i}.{m}" for i in range(4) for m in
                               ("attn.qkv", "attn.proj", "mlp.gate_proj", "mlp.down_proj")])),
    Row("entries of tomorrow, at rest", on(Q), edit=entries(use_xlora=False, xlora_config=None, paths=[], kinds={})),
    Row("entries of ms-swift", on(Q), edit=entries(lora_dtype=None, lorap_lr_ratio=16.0, lorap_emb_lr=1e-6)),
    Row("bf16", on(Q, "qkv"), edit=cast(torch.bfloat16)),
    Row("names with .default", on(Q), edit=rename((".weight", ".default.weight")), before=True),
    Row("old names, whole decoder", by(r"model\.language_model\.layers.*_proj"),
        edit=both(OLD, entries(target_modules=SWIFT)), before=True),
    Row("old names, LLaMA-Factory", by(DECODER),
        edit=both(OLD, entries(target_modules="^(?!.*visual).*(?:q_proj|down_proj).*")), before=True),
]  # fmt: skip
REFUSED = [
    Row("DoRA", on(Q, use_dora=True), "use_dora=True"),
    Row("biases", on(Q, bias="all"), "bias='all'"),
    Row("biases beside LoRA", on(Q, bias="lora_only"), "bias='lora_only'"),
    Row("bias of LoRA", on(Q, lora_bias=True), "lora_bias=True"),
    Row("modules_to_save", on(Q, modules_to_save=["lm_head"]), "modules_to_save=['lm_head']"),
    Row("tokens", on(Q, trainable_token_indices=[1, 2]), "trainable_token_indices"),
    Row("parameters", on(Q, target_parameters=["mlp.gate_proj.weight"]), "target_parameters"),
    Row("layers repeated", on(Q), "layer_replication=", edit=entries(layer_replication=[[0, 2], [1, 3]])),
    Row("aLoRA", on(Q, task_type="CAUSAL_LM", alora_invocation_tokens=[5, 6]), "alora_invocation_tokens=[5, 6]"),
    Row("PiSSA", on(Q, init_lora_weights="pissa"), "init_lora_weights='pissa' (it changed the base's weights"),
    Row("PiSSA, fast", on(Q, init_lora_weights="pissa_niter_4"), "init_lora_weights='pissa_niter_4' (it changed"),
    Row("OLoRA", on(Q, init_lora_weights="olora"), "init_lora_weights='olora' (it changed the base's weights"),
    Row("LoftQ", on(Q), "init_lora_weights='loftq' (it changed", edit=entries(init_lora_weights="loftq")),
    Row("CorDA", on(Q), "init_lora_weights='corda' (it changed", edit=entries(init_lora_weights="corda")),
    Row("LoRA-GA", on(Q), "init_lora_weights='lora_ga' (it changed", edit=entries(init_lora_weights="lora_ga")),
    Row("no such initialisation", on(Q), "init_lora_weights='zen' (unknown", edit=entries(init_lora_weights="zen")),
    Row("KaSA", on(Q, kasa_config=torch_peft.tuners.lora.config.KasaConfig()), "kasa_config="),
    Row("QA-LoRA", on(Q), "use_qalora=True", edit=entries(use_qalora=True)),
    Row("Megatron", on(Q), "megatron_config=", edit=entries(megatron_config={"a": 1})),
    Row("Arrow", on(Q), "arrow_config=", edit=entries(arrow_config={"top_k": 2})),
    Row("an option of tomorrow", on(Q), "use_zlora=True", edit=entries(use_zlora=True)),
    Row("embedding", on(Q, "embed_tokens"), "it adapts embeddings, which are no linear layers"),
    Row("head saved whole", on(Q, "lm_head"), "it holds whole weights"),
    Row("head of a tied base", on(Q, "lm_head"), "the head of this base is its embedding",
        save={"save_embedding_layers": False}, base="tied_gqa"),
    Row("LoHa", {}, "peft_type 'LOHA': only LORA", config=torch_peft.LoHaConfig(target_modules=[Q])),
    Row("LoKr", {}, "peft_type 'LOKR': only LORA", config=torch_peft.LoKrConfig(target_modules=[Q])),
    Row("IA3", {}, "peft_type 'IA3': only LORA",
        config=torch_peft.IA3Config(target_modules=[Q], feedforward_modules=[])),
    Row("VeRA", {}, "peft_type 'VERA': only LORA", config=torch_peft.VeraConfig(target_modules=[Q])),
    Row("OFT", {}, "peft_type 'OFT': only LORA", config=torch_peft.OFTConfig(target_modules=[Q], oft_block_size=4)),
    Row("AdaLoRA", on(Q), "peft_type 'ADALORA': only LORA", edit=entries(peft_type="ADALORA")),
    Row("no peft_type", on(Q), "peft_type None: only LORA", edit=entries("peft_type")),
    Row("r null", on(Q), "r is None, not a positive", edit=entries(r=None)),
    Row("r of text", on(Q), "r is '3', not a positive", edit=entries(r="3")),
    Row("r 0", on(Q), "r is 0, not a positive", edit=entries(r=0)),
    Row("r of another rank", on(Q), "misshapen: ", edit=entries(r=4)),
    Row("alpha null", on(Q), "lora_alpha is None, not a number", edit=entries(lora_alpha=None)),
    Row("alpha of text", on(Q), "lora_alpha is '16', not a number", edit=entries(lora_alpha="16")),
    Row("use_rslora of text", on(Q), "use_rslora is 'false', not true or false", edit=entries(use_rslora="false")),
    Row("rank_pattern list", on(Q), "rank_pattern is [1], not", edit=entries(rank_pattern=[1])),
    Row("alpha_pattern of text", on(Q), "alpha_pattern is {'q_proj': '8'}, not", edit=entries(alpha_pattern={Q: "8"})),
    Row("no targets", on(Q), "target_modules is None, not", edit=entries("target_modules")),
    Row("targets empty", on(Q), "target_modules is [], not", edit=entries(target_modules=[])),
    Row("targets of numbers", on(Q), "target_modules is [1], not", edit=entries(target_modules=[1])),
    Row("no regular expression", on(Q), "target_modules: '*q' is not a regular", edit=entries(target_modules="*q")),
    Row("pattern with layers", by(f".*{Q}"), "layers_to_transform goes with", edit=entries(layers_to_transform=[1])),
    Row("layers of text", on(Q), "layers_to_transform is ['1'], not", edit=entries(layers_to_transform=["1"])),
    Row("fewer targets", on(Q, "v_proj"), "unknown, or not targeted: ", edit=entries(target_modules=[Q])),
    Row("more targets", on(Q), "missing: model.language_model.layers.0.self_attn.v_proj",
        edit=entries(target_modules=[Q, "v_proj"])),
    Row("targets in the tower without tensors", on(Q), "missing: model.visual.blocks.0.attn.qkv",
        edit=entries(target_modules=[Q, "qkv"])),
    Row("a layer lost", on(Q), "missing: model.language_model.layers.1", edit=dropped("layers.1.")),
    Row("a factor lost", on(Q), "missing: model.language_model.layers.1.self_attn.q_proj.lora_b",
        edit=dropped("layers.1.self_attn.q_proj.lora_B")),
    Row("a layer too many", on(Q), "unknown, or not targeted: ", edit=rename(("layers.2.", "layers.7."))),
    Row("no tensors", on(Q), "no LoRA tensors", edit=dropped("lora")),
    Row("layers not targeted", on(Q), "unknown, or not targeted: ", edit=entries(layers_to_transform=[0, 1])),
]  # fmt: skip
ROWS = SAME + SAME_TOO + REFUSED


_SAVED: dict[str, Path] = {}


def saved(row: Row) -> Path:
    """The folder that PEFT writes, once for rows that differ in their edits only; its `logits.pt` are those of the
    model that it came from."""
    key = repr((row.options, row.save, row.base, row.config))
    if key not in _SAVED:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # PEFT's
            _SAVED[key] = _save(row)
    return _SAVED[key]


def _save(row: Row) -> Path:
    folder = Path(tempfile.mkdtemp(prefix="peft", dir=ladder.folder()))
    config = row.config or LoraConfig(**{"r": 3, "lora_alpha": 5, **row.options})
    name = (row.save.get("selected_adapters") or ["default"])[0]
    model = get_peft_model(copy.deepcopy(ladder.reference(row.base)), config, adapter_name=name).eval()
    save = dict(row.save)
    if save.get("path_initial_model_for_weight_conversion"):
        model.peft_config["default"].init_lora_weights = True
        model.save_pretrained(folder / "initial")
        model.peft_config["default"].init_lora_weights = "pissa"
        save["path_initial_model_for_weight_conversion"] = str(folder / "initial")
    tiny.randomise(model, seed=1, only="lora_")
    trained = logits(model)
    model.save_pretrained(folder, **save)
    folder = folder if name == "default" else folder / name
    torch.save(trained, folder / "logits.pt")
    return folder


def make(row: Row, folder: Path) -> torch.Tensor | None:
    """Writes the row's adapter folder; PEFT's logits of tiny.ONE where they should be equal."""
    shutil.copytree(saved(row), folder)
    trained = torch.load(folder / "logits.pt")
    if row.edit:
        config, tensors = (
            json.loads((folder / peft.CONFIG).read_text()),
            safetensors.torch.load_file(folder / peft.FILE),
        )
        config, tensors = row.edit(config, tensors)
        (folder / peft.CONFIG).write_text(json.dumps(config))
        safetensors.torch.save_file(tensors, folder / peft.FILE)
    same = not (
        row.edit or row.save or "alpha_pattern" in row.options
    )  # PEFT sorts patterns, of which the first counts
    if row.right != EQUAL or row.before or same:
        return trained
    return logits(PeftModel.from_pretrained(copy.deepcopy(ladder.reference(row.base)), folder).eval())


@torch.no_grad()
def logits(model) -> torch.Tensor:
    return model(**tiny.ONE.torch()).logits[0]


@functools.cache
def base(name: str) -> tuple[Config, dict, torch.Tensor]:
    """Our configuration of a base, the batch that holds tiny.ONE, and torch's logits without an adapter."""
    cfg = Config.from_hf(ladder.folder() / name)
    return cfg, ladder.batch(cfg, [[(tiny.ONE, 0)]]), logits(ladder.reference(name))


forward = ladder.jit(lambda model, batch: model.logits(model.hidden(batch))[0])


def ours(name: str, folder: Path, merge: bool = True):
    """Logits of tiny.ONE of a base with an adapter folder, as `EditScore.load` reads it."""
    cfg, batch, _ = base(name)
    model = load_model(cfg, ladder.folder() / name, (folder, peft.read_adapter(folder)), merge=merge)
    return forward(model, batch)[: len(tiny.ONE.tokens)]


def run(row: Row, merge: bool = True) -> tuple[float, float] | str:
    """(error, what the adapter changes), or the refusal."""
    folder = Path(tempfile.mkdtemp(prefix="adapter", dir=ladder.folder())) / "a"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's
        want = make(row, folder)
    try:
        got = ours(row.base, folder, merge)
    except WeightsError as e:
        return str(e).replace(str(folder), "FOLDER")
    return ladder.error(got, want), ladder.error(want, base(row.base)[2])


def main() -> None:
    failed = 0
    print("| adapter | right | found |\n|---|---|---|")
    for row in ROWS:
        found = run(row)
        if isinstance(found, str):
            right, text = row.right != EQUAL and row.right in found, found[:160]
        else:
            right = row.right == EQUAL and found[0] <= ladder.NETWORK
            text = f"equal to {found[0]:.1e}; the adapter changes {found[1]:.2f}"
        failed += not right
        print(f"| {row.name} | {row.right} | {'' if right else 'WRONG: '}{text} |".replace("\n", " "), flush=True)
    print(f"\n{len(ROWS)} adapters: {len(SAME + SAME_TOO)} loaded and {len(REFUSED)} refused; wrong: {failed}")


if __name__ == "__main__":
    main()
