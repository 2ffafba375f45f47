"""GCPO's loss in torch on `transformers` and `peft`, one reply at a time; and replies to compare on."""

import functools
import io
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import torch
import transformers
from peft import LoraConfig, get_peft_model
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from edit_rl_jax.data.example import Example, Tokens
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.parity import tiny
from tests.training import toy
from tests.training.micro import ARCHITECTURE

PIXELS = dict(min_pixels=28 * 28, max_pixels=84 * 112)
TEMPERATURE, CLIP, KL, PAIRS, N = 0.8, (0.1, 0.2), 0.3, 3, 2


@functools.cache
def folders() -> tuple[Path, Path]:
    """A random base as `transformers` writes it, and a random adapter as `peft` does (A and B both non-zero)."""
    home = Path(tempfile.mkdtemp(prefix="gcpo"))
    model().base_model.unload().save_pretrained(home / "base")
    model.cache_clear()
    model().save_pretrained(home / "adapter")
    toy.save_tokenizer(home / "base")
    return home / "base", home / "adapter"


@functools.cache
def model():
    """The base with its adapter, fp32, eager."""
    given = {k: v for k, v in ARCHITECTURE.items() if k not in ("model_type", "rope_theta", "rope_scaling")}
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    top = {k: given.pop(k) for k in (*names, "vision_config", "tie_word_embeddings")}
    given["rope_parameters"] = {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
    config = transformers.Qwen2_5_VLConfig(text_config=given, **top, attn_implementation="eager")
    base = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
    tiny.randomise(base, 0)
    lora = LoraConfig(r=4, lora_alpha=2.0, target_modules=r".*language_model.*_proj")
    made = get_peft_model(base, lora).eval()
    tiny.randomise(made, 1, only="lora_")
    return made


def replies(seed: int = 0) -> list[Example]:
    """N replies to each of two edits of PAIRS sources, of 3 to 12 tokens, with all that the update asks for."""
    rng, out = np.random.default_rng(seed), []
    image = lambda: encode_png(rng.integers(0, 256, (56, 84, 3), np.uint8))
    for p in range(PAIRS):
        source = image()
        for side in range(2):
            prompt = (
                f"judge {p}<|vision_start|>",
                source,
                "<|vision_end|><|vision_start|>",
                image(),
                "<|vision_end|>?",
            )
            for n in range(N):
                ids = rng.integers(0, 250, rng.integers(3, 13)).astype(np.int32)
                draw = lambda scale: rng.normal(size=len(ids)).astype(np.float32) * scale  # noqa: B023
                arrays = {"advantage": np.full(len(ids), rng.uniform(-1, 1), np.float32)}
                arrays |= {"weights": np.full(len(ids), 1 / (2 * N * len(ids)), np.float32)}
                arrays |= {"old": -6 + draw(0.3), "engine": -6 + draw(0.1)}
                out.append(Example(prompt, Tokens(ids, arrays), f"{p}/{side}/{n}"))
    return out


def inputs(example: Example) -> tuple[dict, torch.Tensor]:
    """A reply's prompt and tokens for the torch model, and its tokens."""
    tokenizer = load_tokenizer(folders()[0])
    images = [PIL.Image.open(io.BytesIO(p)) for p in example.prompt if isinstance(p, bytes)]
    made = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2, **PIXELS)(
        images=images, return_tensors="pt"
    )
    counts = iter((made["image_grid_thw"].prod(1) // 4).tolist())
    text = "".join(p if isinstance(p, str) else "<|image_pad|>" * next(counts) for p in example.prompt)
    answer = torch.tensor(example.answer.ids).long()
    ids = torch.cat([torch.tensor(tokenizer.encode(text, add_special_tokens=False)).long(), answer])[None]
    kinds = (ids == ARCHITECTURE["image_token_id"]).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **made}, answer


def token_log_probs(example: Example, adapted: bool = True, temperature: float = TEMPERATURE) -> torch.Tensor:
    """Of its tokens under the tempered model, with the adapter or without."""
    given, answer = inputs(example)
    given["pixel_values"] = given["pixel_values"].to(model().dtype)
    if adapted:
        logits = model()(**given).logits[0]
    else:
        with torch.no_grad(), model().disable_adapter():
            logits = model()(**given).logits[0]
    every = torch.log_softmax(logits[-len(answer) - 1 : -1] / temperature, -1)
    return every.gather(1, answer[:, None])[:, 0]


def loss(examples: list[Example], on_policy: bool, dtype=torch.float32) -> tuple[float, dict[str, np.ndarray]]:
    """The paper's objective with a minus sign and a KL, over the replies one by one; gradients in PEFT's names."""
    model().to(dtype)
    try:
        return _loss(examples, on_policy)
    finally:
        model().float()


def _loss(examples, on_policy):
    total = torch.zeros(())
    for e in examples:
        new, a = token_log_probs(e), torch.tensor(e.answer.arrays["advantage"])
        old = new.detach() if on_policy else torch.tensor(e.answer.arrays["old"])
        ratio, start = torch.exp(new - old), token_log_probs(e, adapted=False)
        kept = torch.minimum(ratio * a, torch.clamp(ratio, 1 - CLIP[0], 1 + CLIP[1]) * a)
        kl = torch.exp(start - new) - (start - new) - 1
        total = total + (KL * kl - kept).mean() / (2 * N)
    value = total / PAIRS
    wanted = {n: p for n, p in model().named_parameters() if "lora_" in n}
    grads = torch.autograd.grad(value, list(wanted.values()))
    return float(value.detach()), {n.replace(".default", ""): g.numpy() for n, g in zip(wanted, grads)}
