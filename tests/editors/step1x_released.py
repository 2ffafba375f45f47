"""A tiny Step1X-Edit in the layout of its version for diffusers, written by transformers, diffusers and torch, with a
prompt prefix of its own, and the editor read from it."""

import functools
import hashlib
import json
import tempfile
from pathlib import Path

import diffusers
import safetensors.torch
import tokenizers
import transformers
from flax import nnx

from edit_rl_jax.editors.step1x_edit import prompt
from edit_rl_jax.editors.step1x_edit import weights as files
from edit_rl_jax.editors.step1x_edit.editor import Step1XEdit
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from tests.editors import step1x
from tests.parity import tiny as qwen

NAMES = {"v1.1": "whole", "v1.0": "whole_v1.0"}
MLLM, FULL = "untied_mqa", "full"
VAE = VAEConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=16)
FULL_VAE = VAEConfig(block_out_channels=(8, 16, 32, 32), norm_num_groups=4)
STATES = qwen.CONFIGS[MLLM]["text_config"]["hidden_size"]
for version, name in NAMES.items():
    step1x.CONFIGS[name] = step1x._config(16, 2, 2, 2, 12, (4, 4, 4), 24, STATES, 2, 2, 12, version == "v1.0")
PREFIX = 'Write an "Enhanced prompt" of this one, please, as before, and nothing else at all. '.ljust(172, ".") + "\n:"
SHA256 = hashlib.sha256(PREFIX.encode()).hexdigest()
SPECIAL = {"<|endoftext|>": 256, "<|im_start|>": 257, "<|im_end|>": 258, "<|vision_start|>": qwen.START}
SPECIAL |= {"<|vision_end|>": qwen.END, "<|image_pad|>": qwen.IMAGE, "<|video_pad|>": qwen.VIDEO}


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes, "!" the first as in Qwen's, and its special tokens; what lies between has no meaning."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    names = {i: s for s, i in SPECIAL.items()}
    ids = {(letters[i] if i < 256 else names.get(i, f"<|{i}|>")): i for i in range(max(names) + 1)}
    backend = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=ids, merges=[]))
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(s, special=True) for s in ids if ids[s] >= 256])
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<|endoftext|>", eos_token="<|im_end|>"
    )


@functools.cache
def torch_vae(full: bool = False) -> diffusers.AutoencoderKL:
    vae = FULL_VAE if full else VAE
    vae = diffusers.AutoencoderKL(**{k: v for k, v in vae.to_hf().items() if k != "_class_name"}).eval()
    qwen.randomise(vae, seed=3)
    return vae


@functools.cache
def mllm(full: bool = False) -> transformers.Qwen2_5_VLForConditionalGeneration:
    """full: in the released depths."""
    if full:
        text, vision = qwen._text(STATES, 28, 6, 1, 80), qwen._vision(48, 32, 3, 52, [7, 15, 23, 31], STATES)
        qwen.CONFIGS[FULL] = qwen._config(text, vision, False, 1e4, [2, 1, 1], 1e-5)
    return qwen.torch_model(FULL if full else MLLM)


@functools.cache
def released(version: str = "v1.1", full: bool = False) -> Path:
    """The folder; upstream's source with the prefix lies in it. full: in the released depths, so that it has every
    tensor."""
    folder, name = Path(tempfile.mkdtemp(prefix="step1x_")), NAMES[version]
    if full:
        name = f"full {version}"
        step1x.CONFIGS[name] = step1x._config(64, 19, 38, 2, 12, (4, 4, 4), 24, STATES, 2, 2, 12, version == "v1.0")
    mllm(full).save_pretrained(folder / "text_encoder", max_shard_size="1MB")
    torch_vae(full).save_pretrained(folder / "vae")
    tokenizer().save_pretrained(folder / "processor")
    home = folder / "transformer"
    home.mkdir()
    tensors = step1x.torch_model(name).state_dict()
    safetensors.torch.save_file(tensors, home / f"{files.TRANSFORMER.stem}.safetensors")
    (home / "config.json").write_text(json.dumps(files.Step1XConfig(**step1x.CONFIGS[name]).to_hf()))
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(files.SCHEDULER))
    index = {"_class_name": files.FOLDER.pipeline, **files.FOLDER.classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    (folder / "conditioner.py").write_text(f"import torch\n{prompt.CONSTANT} = {PREFIX!r}\n")
    return folder


@functools.cache
def abstract(version: str = "v1.1", **options) -> Step1XEdit:
    return nnx.eval_shape(lambda: Step1XEdit(files.configs(released(version)), rngs=nnx.Rngs(0), **options))


@functools.cache
def editor(version: str = "v1.1") -> Step1XEdit:
    return files.from_folder(released(version))
