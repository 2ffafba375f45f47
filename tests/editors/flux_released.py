"""A tiny FLUX.1-Kontext in the released layout, written by transformers and diffusers, and the editor read from it."""

import functools
import tempfile
from pathlib import Path

import diffusers
import tokenizers
import transformers
from flax import nnx

from edit_rl_jax.editors.flux_kontext import weights as kontext
from edit_rl_jax.editors.flux_kontext.editor import FluxKontext
from edit_rl_jax.editors.vae.flux_vae import VAEConfig
from tests.editors import flux
from tests.editors.released import tokenizer as bytes_tokenizer
from tests.parity.tiny import randomise

NAME, FULL, TEXT, POOLED, VOCABULARY = "whole", "full", 20, 12, 300
VAE = VAEConfig(block_out_channels=(8, 16), norm_num_groups=4, layers_per_block=1, latent_channels=4, sample_size=16)
FULL_VAE = VAEConfig(block_out_channels=(8, 16, 32, 32), norm_num_groups=4)
flux.CONFIGS[NAME] = flux._config(4 * VAE.latent_channels, 2, 2, 2, 12, (4, 4, 4), TEXT, POOLED)


@functools.cache
def tokenizer(start: bool, padding: str, length: int) -> transformers.PreTrainedTokenizerFast:
    """Bytes, with an end token after every text and, if wanted, a start token before."""
    backend = tokenizers.Tokenizer.from_str(bytes_tokenizer().backend_tokenizer.to_str())
    first, second = "<|im_start|>", "<|im_end|>"
    ids = [(t, backend.token_to_id(t)) for t in (first, second)]
    backend.post_processor = tokenizers.processors.TemplateProcessing(
        single=f"{first} $A {second}" if start else f"$A {second}", special_tokens=ids
    )
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token=padding, eos_token=second, model_max_length=length
    )


@functools.cache
def pipeline(full: bool = False) -> diffusers.FluxKontextPipeline:
    """All of it, by diffusers and transformers. full: in the released depths, so that it has every tensor. The end
    token's id is that of the vocabulary's last entry."""
    if full:
        flux.CONFIGS[FULL] = flux._config(4 * FULL_VAE.latent_channels, 19, 38, 2, 12, (4, 4, 4), TEXT, POOLED)
    text, pooled = tokenizer(False, "<|endoftext|>", 512), tokenizer(True, "<|im_end|>", 16)
    end = pooled.eos_token_id
    clip = transformers.CLIPTextConfig(
        vocab_size=VOCABULARY, hidden_size=POOLED, intermediate_size=20, num_attention_heads=2,
        num_hidden_layers=12 if full else 1,
        max_position_embeddings=16, eos_token_id=end, bos_token_id=end - 1, pad_token_id=end,
        attn_implementation="eager"
    )  # fmt: skip
    t5 = transformers.T5Config(
        vocab_size=VOCABULARY, d_model=TEXT, d_kv=4, d_ff=24, num_layers=24 if full else 2, num_heads=2,
        feed_forward_proj="gated-gelu", is_encoder_decoder=False
    )  # fmt: skip
    vae = FULL_VAE if full else VAE
    vae = diffusers.AutoencoderKL(**{k: v for k, v in vae.to_hf().items() if k != "_class_name"})
    parts = {
        "text_encoder": transformers.CLIPTextModel(clip),
        "text_encoder_2": transformers.T5EncoderModel(t5),
        "vae": vae,
        "transformer": flux.torch_model(FULL if full else NAME),
    }
    for seed, (part, model) in enumerate(parts.items()):
        model.eval()
        if part != "transformer":
            randomise(model, seed)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{k: v for k, v in kontext.SCHEDULER.items() if k[0] != "_"})
    made = diffusers.FluxKontextPipeline(scheduler=scheduler, tokenizer=pooled, tokenizer_2=text, **parts)
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def released(full: bool = False) -> Path:
    """The folder."""
    folder = Path(tempfile.mkdtemp(prefix="kontext_"))
    pipeline(full).save_pretrained(folder, max_shard_size="100KB")
    return folder


@functools.cache
def abstract(**options) -> FluxKontext:
    return nnx.eval_shape(lambda: FluxKontext(kontext.configs(released()), rngs=nnx.Rngs(0), **options))


@functools.cache
def editor() -> FluxKontext:
    return kontext.from_folder(released())
