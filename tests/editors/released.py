"""A tiny OmniGen2 in the released layout, written by transformers and diffusers, and the editor read from it."""

import functools
import json
import tempfile
from pathlib import Path

import diffusers
import tokenizers
import transformers
from flax import nnx

from edit_rl_jax.editors.omnigen2 import weights as omnigen2
from edit_rl_jax.editors.omnigen2.editor import OmniGen2
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from tests.editors import tiny
from tests.parity import tiny as qwen

MLLM = "tied_gqa"
NAME = "text_of_the_language_model"
TEXT = qwen.CONFIGS[MLLM]["text_config"]["hidden_size"]
tiny.CONFIGS[NAME] = tiny._config(48, 2, 1, 1, 1, (8, 8, 8), TEXT, axes_lens=(400, 400, 400))
VAE = VAEConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=16)
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@functools.cache
def tokenizer() -> transformers.PreTrainedTokenizerFast:
    """Bytes and three special tokens, with ChatML as its template."""
    letters = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    model = tokenizers.models.BPE(vocab={c: i for i, c in enumerate((*letters, *SPECIAL))}, merges=[])
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = tokenizers.decoders.ByteLevel()
    backend.add_special_tokens([tokenizers.AddedToken(s, special=True) for s in SPECIAL])
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=backend, pad_token=SPECIAL[0], eos_token=SPECIAL[2])
    made.chat_template, made.padding_side = CHATML, "right"
    return made


@functools.cache
def torch_vae() -> diffusers.AutoencoderKL:
    vae = diffusers.AutoencoderKL(**{k: v for k, v in VAE.to_hf().items() if k != "_class_name"}).eval()
    qwen.randomise(vae, seed=3)
    return vae


@functools.cache
def released() -> Path:
    """The folder."""
    folder = Path(tempfile.mkdtemp(prefix="omnigen2_"))
    qwen.torch_model(MLLM).save_pretrained(folder / "mllm")
    tiny.torch_model(NAME).save_pretrained(folder / "transformer", max_shard_size="100KB")
    torch_vae().save_pretrained(folder / "vae")
    tokenizer().save_pretrained(folder / "processor")
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(omnigen2.SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "OmniGen2Pipeline"}))
    return folder


@functools.cache
def abstract(**options):
    return nnx.eval_shape(lambda: OmniGen2(omnigen2.configs(released()), rngs=nnx.Rngs(0), **options))


@functools.cache
def editor() -> OmniGen2:
    return omnigen2.from_folder(released())
