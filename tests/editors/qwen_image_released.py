"""A tiny Qwen-Image-Edit in the released layout, written by transformers and diffusers, and the editor read from it."""

import functools
import json
import tempfile
from pathlib import Path

import diffusers
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edit_rl_jax.editors.qwen_image_edit import weights as files
from edit_rl_jax.editors.qwen_image_edit.editor import QwenImageEdit
from edit_rl_jax.editors.vae.qwen_vae import VAEConfig
from tests.editors import qwen_image
from tests.editors.step1x_released import STATES, mllm, tokenizer
from tests.parity import tiny as qwen

VERSIONS = {"original": (False, False), "2509": (True, False), "2511": (True, True)}  # plus, zero_cond_t
VAE = VAEConfig(
    base_dim=8, z_dim=4, dim_mult=(1, 2), num_res_blocks=1, temperal_downsample=(True,),
    latents_mean=(0.1, -0.2, 0.0, 0.3), latents_std=(1.5, 0.8, 2.0, 1.1),
)  # fmt: skip
FULL_VAE = VAEConfig(base_dim=8)
for version, (_, zero_cond_t) in VERSIONS.items():
    qwen_image.CONFIGS[version] = qwen_image._config(16, 2, 2, 12, (4, 4, 4), STATES, zero_cond_t)


class Processor:
    """transformers' processor of images beside the tokenizer, as Qwen2VLProcessor puts them together."""

    images = Qwen2VLImageProcessorPil(size={"shortest_edge": 3136, "longest_edge": 12_845_056})

    def __call__(self, text, images, **_):
        shown = self.images(images=images if isinstance(images, list) else [images], return_tensors="pt")
        counts = [int(g.prod()) // 4 for g in shown["image_grid_thw"]]
        (one,) = text
        for n in counts:
            one = one.replace("<|image_pad|>", "<|pad|>" * n, 1)
        tokens = tokenizer()(one.replace("<|pad|>", "<|image_pad|>"), return_tensors="pt")
        return transformers.BatchFeature({**tokens, **shown})


@functools.cache
def pipeline(version: str, full: bool = False):
    """By diffusers and transformers. full: in the released depths, so that it has every tensor."""
    plus, zero_cond_t = VERSIONS[version]
    name, vae = (f"full {version}", FULL_VAE) if full else (version, VAE)
    if full:
        qwen_image.CONFIGS[name] = qwen_image._config(64, 60, 2, 12, (4, 4, 4), STATES, zero_cond_t)
    vae = diffusers.AutoencoderKLQwenImage(**{k: v for k, v in vae.to_hf().items() if k != "_class_name"})
    qwen.randomise(vae.eval(), seed=1)
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(**{k: v for k, v in files.SCHEDULER.items() if k[0] != "_"})
    kind = diffusers.QwenImageEditPlusPipeline if plus else diffusers.QwenImageEditPipeline
    made = kind(scheduler, vae, mllm(full), None, None, qwen_image.torch_model(name))
    made.processor = Processor()
    # transformers 5 has positions of images only where it is told the images' tokens, which this diffusers does not do
    seen = lambda ids: {"mm_token_type_ids": (ids == qwen.IMAGE).int()}
    made.text_encoder.register_forward_pre_hook(
        lambda _, args, given: (args, seen(given["input_ids"]) | given), with_kwargs=True
    )
    made.set_progress_bar_config(disable=True)
    return made


@functools.cache
def released(version: str = "original", full: bool = False) -> Path:
    """The folder."""
    folder, theirs = Path(tempfile.mkdtemp(prefix="qwen_image_")), pipeline(version, full)
    for part in ("text_encoder", "transformer", "vae"):
        getattr(theirs, part).save_pretrained(folder / part, max_shard_size="1MB")
    theirs.scheduler.save_pretrained(folder / "scheduler")
    for part in (tokenizer(), theirs.processor.images):
        part.save_pretrained(folder / "processor")
    tokenizer().save_pretrained(folder / "tokenizer")
    index = {"_class_name": type(theirs).__name__, **files.FOLDER.classes}
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


@functools.cache
def editor(version: str = "original") -> QwenImageEdit:
    return files.from_folder(released(version))
