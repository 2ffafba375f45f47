"""LoRA files of the editors with an MMDiT network come from diffusers and PEFT, and go back there."""

import copy
import dataclasses
import functools
import json
import re
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import diffusers
import numpy as np
import peft
import pytest
import safetensors.torch
import torch
from flax import nnx

from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.flux_kontext import weights as flux_files
from edit_rl_jax.editors.mmdit.blocks import TARGETS
from edit_rl_jax.editors.qwen_image_edit import weights as qwen_files
from edit_rl_jax.editors.step1x_edit import weights as step1x_files
from edit_rl_jax.nn import peft as adapters
from edit_rl_jax.nn import weights
from edit_rl_jax.nn.params import LoRAConfig, Trainable
from edit_rl_jax.nn.safetensors_io import WeightsError
from tests.editors import flux, flux_released, qwen_image, qwen_image_released, step1x, step1x_released
from tests.parity.ladder import NETWORK, error, jit
from tests.parity.tiny import randomise

SLOW = pytest.mark.slow


@dataclasses.dataclass(frozen=True)
class Kind:
    """files: of the editor; released: its tiny folder, whose transformer is `torch.CONFIGS[name]`; some: of its modules
    those that "mixed" adapts, as one expression, with ranks and alphas that differ."""

    files: ModuleType
    torch: ModuleType
    released: Callable[[], Path]
    name: str
    some: str
    pipeline: Any = diffusers.FluxKontextPipeline  # Step1X's pipeline is in no diffusers


KINDS = {
    "flux_kontext": Kind(
        flux_files, flux, flux_released.released, flux_released.NAME,
        r"proj_out|x_embedder|.*_blocks\.1\.attn\.(to_q|to_v)|.*\.proj_mlp|.*\.ff_context\.net\.2|.*norm1\.linear",
    ),
    "qwen_image_edit": Kind(
        qwen_files, qwen_image, lambda: qwen_image_released.released("2511"), "2511",
        r"proj_out|txt_in|.*_blocks\.1\.attn\.(to_q|to_add_out|to_out\.0)|.*\.(img_mlp\.net\.2|txt_mod\.1)",
        diffusers.QwenImageEditPlusPipeline,
    ),
    "step1x_edit": Kind(
        step1x_files, step1x, step1x_released.released, step1x_released.NAMES["v1.1"],
        r"proj_out|time_embed\.in_layer|.*_blocks\.1\.attn\.(to_q|to_v)|connector\.(.*self_attn_qkv|global_proj_out)|.*mlp\.0",
    ),
}  # fmt: skip
CASES = {
    "all": {"r": 3, "lora_alpha": 6},
    "attention": {"r": 3, "lora_alpha": 6},
    "mixed": {
        "r": 3, "lora_alpha": 6, "rank_pattern": {"proj_out": 2, r".*_blocks\.1\.attn\.to_q": 5},
        "alpha_pattern": {"proj_out": 7, r".*_blocks\.1\.attn\.to_[vq]": 2.5},
    },
}  # fmt: skip
EVERY = [(k, c) for k in KINDS for c in CASES]


def config(kind: Kind, case: str) -> peft.LoraConfig:
    model = kind.torch.torch_model(kind.name)
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    target = {"all": linear, "attention": [n for n in linear if "_blocks." in n and ".attn." in n], "mixed": kind.some}
    return peft.LoraConfig(target_modules=target[case], **CASES[case])


@functools.cache
def adapted(name: str, case: str) -> tuple[Path, list[np.ndarray]]:
    """An adapter as diffusers' pipeline ("pipeline"), its model ("model") and PEFT ("peft") write it, and the
    velocities of the adapted network."""
    kind, folder = KINDS[name], Path(tempfile.mkdtemp(prefix="lora_"))
    whole = peft.get_peft_model(copy.deepcopy(kind.torch.torch_model(kind.name)), config(kind, case)).eval()
    randomise(whole, seed=1, only="lora_")  # A and B
    model, tensors = whole.base_model.model, peft.get_peft_model_state_dict(whole)
    whole.save_pretrained(folder / "peft")
    tensors = {k.removeprefix("base_model.model."): v for k, v in tensors.items()}
    metadata = whole.peft_config["default"].to_dict()
    kind.pipeline.save_lora_weights(folder / "pipeline", tensors, transformer_lora_adapter_metadata=metadata)
    if hasattr(model, "save_lora_adapter"):
        model.save_lora_adapter(folder / "model")
    return folder, kind.torch.velocities(model, kind.name)


@functools.cache
def abstract(name: str, rank: int, targets: str):
    """The Trainable part of the transformer's state."""
    files, folder = KINDS[name].files, KINDS[name].released()
    make = lambda: files.FOLDER.editor(
        files.configs(folder), rngs=nnx.Rngs(0), lora=LoRAConfig(rank=rank), targets=targets
    )
    return nnx.state(nnx.eval_shape(make), Trainable)["transformer"]


def read(name: str, path: Path):
    """(the adapter's description, its leaves)."""
    files = KINDS[name].files
    found = files.read_lora(path)
    state = abstract(name, found.rank, files.targets(found.layers))
    return found, lora_files.load(path, state, found)


def far(found: list[np.ndarray], wanted: list[np.ndarray]) -> float:
    return max(error(x[: len(y)], y) for x, y in zip(found, wanted, strict=True))


@pytest.mark.parametrize("name, case", EVERY)
def test_adapters_of_diffusers_and_peft_are_read_and_written_back(name, case, tmp_path):
    """Each form gives the same numbers; what is written of them gives the same velocities there."""
    kind, (folder, want) = KINDS[name], adapted(name, case)
    found, state = read(name, folder / "peft")
    assert (found.rank, found.alpha) == ((5, 5) if case == "mixed" else (3, 6))
    assert found.uniform == (case != "mixed")
    assert kind.files.targets(found.layers) == (case if case != "mixed" else "all")
    forms = [p for p in folder.iterdir() if p.name != "peft"]
    assert len(forms) == 1 + (name != "step1x_edit")
    for form in (*forms, folder / "peft" / adapters.FILE) if case != "mixed" else forms:
        given = {"alpha": 6.0} if form.is_file() else {}  # PEFT's tensors without their config
        other = kind.files.read_lora(form, **given)
        assert (other.rank, other.alpha, other.layers) == (found.rank, found.alpha, found.layers)
        for x, y in zip(*(weights.flatten(s)[1] for s in (lora_files.load(form, state, other), state)), strict=True):
            np.testing.assert_array_equal(x.get_value(), y.get_value())
    kind.files.save_lora(state, found.rank, found.alpha, tmp_path)
    plain = kind.torch.torch_model(kind.name)
    backs = [peft.PeftModel.from_pretrained(copy.deepcopy(plain), str(tmp_path)).eval().base_model.model]
    if hasattr(plain, "load_lora_adapter"):
        backs.append(copy.deepcopy(plain))
        backs[1].load_lora_adapter(str(tmp_path), weight_name=lora_files.FILE, prefix="transformer")
    for model in backs:
        assert far(kind.torch.velocities(model, kind.name), want) < 1e-5
    assert far(kind.torch.torch_velocity(kind.name), want) > 0.01  # the adapter matters


velocity = jit(lambda model, *args: model.velocity(*args))
IN_SUITE = (("qwen_image_edit", "mixed"), ("flux_kontext", "all"), ("step1x_edit", "all"))


@pytest.mark.parametrize(
    "name, case", [pytest.param(*c, marks=[pytest.mark.slow] * (c not in IN_SUITE)) for c in EVERY]
)
def test_an_adapted_editor_has_the_velocities_of_diffusers_and_peft(name, case):
    """From PEFT's folder, and merged into the base."""
    kind, (folder, want) = KINDS[name], adapted(name, case)
    inputs, model = kind.torch.inputs(kind.name).jax(), kind.files.from_folder(kind.released(), lora=folder / "peft")
    assert far(velocity(model, *inputs), want) < NETWORK
    if case == "mixed":
        graphdef, state = nnx.split(kind.files.from_folder(kind.released()))
        found = kind.files.read_lora(folder / "peft")
        state["transformer"] = adapters.merge(nnx.state(model.transformer), found.scale)
        assert far(velocity(nnx.merge(graphdef, state), *inputs), want) < NETWORK


@pytest.mark.parametrize("name", KINDS)
def test_the_modules_of_an_adapter_say_its_targets(name):
    files = KINDS[name].files
    for targets in TARGETS:
        assert files.targets(adapters.modules(abstract(name, 3, targets), files.TRANSFORMER)) == targets


BLOCK = "transformer.transformer_blocks.1"
FAULTS = {
    "of_a_text_encoder": ({"text_encoder.q.lora_A.weight": (3, 4)}, r"text_encoder\.q\.lora_A"),
    "unknown_module": ({f"{BLOCK}.attn.to_p.lora_A.weight": (3, 24)}, r"to_p\.lora_A"),
    "no_such_layer": ({"transformer.transformer_blocks.9.attn.to_q.lora_A.weight": (3, 24)}, r"blocks\.9\.attn"),
    "of_another_trainer": ({f"{BLOCK}.attn.to_q.alpha": ()}, r"to_q\.alpha"),
    "its_names": ({"lora_unet_transformer_blocks_1_attn_to_q.lora_down.weight": (3, 24)}, "lora_unet"),
    "dora": ({f"{BLOCK}.attn.to_q.lora_magnitude_vector": (24,)}, "DoRA"),
    "bias": ({f"{BLOCK}.attn.to_q.lora_B.bias": (24,)}, "trained biases"),
    "doubled": ({f"{BLOCK.split('.', 1)[1]}.attn.to_q.lora_A.weight": (3, 24)}, "doubled"),
    "one_half": ({f"{BLOCK}.attn.to_q.lora_B.weight": None}, r"missing: .*to_q\.lora_b"),
    "misshapen": ({f"{BLOCK}.attn.to_q.lora_B.weight": (25, 3)}, "misshapen: .*to_q"),
    "another_rank": ({"r": 4}, "misshapen"),
    "option": ({"use_dora": True}, "use_dora"),
    "no_alpha": ({"lora_alpha": None}, r"does not say its alpha \(rank 3\)"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_left_over_and_wrong_entries_of_files_are_named(fault, tmp_path):
    """Of Qwen-Image-Edit; the reader is one for all."""
    folder, _ = adapted("qwen_image_edit", "all")
    source, (changes, named) = folder / "pipeline" / lora_files.FILE, FAULTS[fault]
    tensors = safetensors.torch.load_file(source)
    with safetensors.safe_open(source, "pt") as f:
        stored = json.loads(f.metadata()[lora_files.METADATA])
    for key, value in changes.items():
        if isinstance(value, tuple):
            tensors[key] = torch.zeros(value)
        elif "lora_" in key and key != "lora_alpha":
            del tensors[key]
        else:
            stored[f"transformer.{key}"] = value
    file = tmp_path / "changed.safetensors"
    safetensors.torch.save_file(tensors, file, metadata={lora_files.METADATA: json.dumps(stored)})
    with pytest.raises(WeightsError, match=named) as e:
        read("qwen_image_edit", file)
    assert re.search(re.escape(str(file)), str(e.value))


def test_a_file_without_metadata_needs_its_alpha(tmp_path):
    """One of several ranks is refused: which alpha is whose, nothing says."""
    bare = {case: tmp_path / f"{case}.safetensors" for case in ("all", "mixed")}
    for case, file in bare.items():
        source = adapted("qwen_image_edit", case)[0] / "pipeline"
        safetensors.torch.save_file(safetensors.torch.load_file(source / lora_files.FILE), file)
        named = r"does not say its alpha \(rank 3\)" if case == "all" else r"ranks \[2, 3, 5\] differ"
        with pytest.raises(WeightsError, match=named):
            qwen_files.read_lora(file)
    with pytest.raises(WeightsError, match=r"differ in rank or alpha, so alpha 6\.0 is not theirs"):
        qwen_files.read_lora(source, alpha=6.0)
    known = qwen_files.read_lora(adapted("qwen_image_edit", "all")[0] / "pipeline")
    assert qwen_files.read_lora(bare["all"], alpha=6.0).layers == known.layers
