"""EditReward built anew in torch on `transformers`: the network, its checkpoint in the released layout, the pair loss.

Two whole forward passes an image, one a dimension, as the released code makes them; nothing is shared with ours.
"""

import copy
import functools
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import PIL.Image
import safetensors.torch
import torch
import transformers
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

import edit_rl_jax
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import PreferenceRecord
from edit_rl_jax.rewards.editreward.prompts import TINY, TOKEN
from tests.parity import tiny

BASE = Path(edit_rl_jax.__file__).parent / "assets" / "tiny_vl"
PIXELS = dict(min_pixels=28 * 28, max_pixels=84 * 112)
CONFIGS = {
    "untied": dict(hidden=48, layers=2, heads=6, kv=1, ffn=72, section=[1, 1, 2], tied=False, eps=1e-5),
    "tied": dict(hidden=64, layers=2, heads=4, kv=2, ffn=96, section=[2, 3, 3], tied=True, eps=1e-6),
}


@functools.cache
def tokenizer():
    """The packaged tokenizer with the reward token."""
    found = transformers.AutoTokenizer.from_pretrained(BASE)
    found.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
    return found


class Network(torch.nn.Module):
    """Base and heads under the names of the released checkpoint."""

    def __init__(self, base, width: int, seed: int):
        super().__init__()
        self.base = base
        nn = torch.nn
        head = lambda: nn.Sequential(
            nn.Linear(width, 1024), nn.ReLU(), nn.Dropout(0.05), nn.Linear(1024, 16), nn.ReLU(), nn.Linear(16, 2)
        )
        self.rm_heads = nn.ModuleDict({f"head_{i}": head() for i in range(2)})
        tiny.randomise(self.rm_heads, seed + 7)
        self.eval()

    def forward(self, inputs: dict, dimension: int, flat: bool) -> torch.Tensor:
        """(mean, log sigma) of one prompt."""
        ids = inputs["input_ids"]
        more = {"position_ids": torch.arange(ids.shape[1])[None, None].expand(3, 1, -1)} if flat else {}
        hidden = self.base.model(**inputs, **more).last_hidden_state
        at = (ids[0] == tokenizer().convert_tokens_to_ids(TOKEN)).nonzero()[0, 0]
        return self.rm_heads[f"head_{dimension}"](hidden[0, at])


@functools.cache
def network(name: str, seed: int = 0) -> Network:
    c = CONFIGS[name]
    config = json.loads((BASE / "config.json").read_text())
    config["tie_word_embeddings"] = c["tied"]
    config["text_config"] |= {
        "hidden_size": c["hidden"], "num_hidden_layers": c["layers"], "num_attention_heads": c["heads"],
        "num_key_value_heads": c["kv"], "intermediate_size": c["ffn"], "rms_norm_eps": c["eps"],
        "rope_parameters": {"rope_theta": 1e4, "rope_type": "default", "mrope_section": c["section"]},
    }  # fmt: skip
    config["vision_config"] |= {
        "depth": 2, "hidden_size": 32, "num_heads": 2, "intermediate_size": 40, "out_hidden_size": c["hidden"],
        "fullatt_block_indexes": [1],
    }  # fmt: skip
    made = transformers.Qwen2_5_VLConfig(**copy.deepcopy(config), attn_implementation="eager")
    base = transformers.Qwen2_5_VLForConditionalGeneration(made).eval()
    base.resize_token_embeddings(len(tokenizer()))  # no multiple: as the released code does
    tiny.randomise(base, seed)
    return Network(base, c["hidden"], seed)


@functools.cache
def folder(name: str) -> Path:
    """Its checkpoint in the released layout: one file, heads beside the base."""
    to, model = Path(tempfile.mkdtemp(prefix="editreward")), network(name)
    model.base.save_pretrained(to)
    tensors = safetensors.torch.load_file(to / "model.safetensors")
    tensors |= {f"rm_heads.{k}": v.contiguous() for k, v in model.rm_heads.state_dict().items()}
    safetensors.torch.save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    tokenizer().save_pretrained(to)
    return to


def record(seed: int, prefers: int = 1, sizes=((84, 112), (56, 84), (84, 84)), **more) -> PreferenceRecord:
    """A pair of noise pictures: what is compared is arithmetic."""
    rng = np.random.default_rng(seed)
    source, a, b = (encode_png(rng.integers(0, 256, (*s, 3), np.uint8)) for s in sizes)
    scores = {"instruction_following": (3.0, 1.0), "visual_quality": (2.0, 4.0)} | more
    return PreferenceRecord(f"r{seed}", source, (a, b), f"make it {seed} times as blue", prefers, scores)


def inputs(parts) -> dict:
    """A prompt's parts as the processor and the tokenizer of `transformers` make them."""
    images = [PIL.Image.open(io.BytesIO(p)) for p in parts if isinstance(p, bytes)]
    processor = Qwen2VLImageProcessorPil(patch_size=14, merge_size=2, temporal_patch_size=2, **PIXELS)
    made = processor(images=images, return_tensors="pt")
    counts = iter((made["image_grid_thw"].prod(1) // 4).tolist())
    text = "".join(p if isinstance(p, str) else "<|image_pad|>" * next(counts) for p in parts)
    ids = torch.tensor(tokenizer().encode(text, add_special_tokens=False))[None]
    kinds = (ids == tokenizer().convert_tokens_to_ids("<|image_pad|>")).int()
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": kinds, **made}


def gaussians(model: Network, records, flat: bool) -> torch.Tensor:
    """[pairs, sides, dimensions, 2], sides in the order of the record."""
    one = lambda r, side: torch.stack(
        [
            model(inputs(parts), d, flat)
            for d, parts in enumerate(TINY.build(r.source, r.edited[side], r.instruction).values())
        ]
    )
    return torch.stack([torch.stack([one(r, side) for side in (0, 1)]) for r in records])


def fused(x: torch.Tensor, how: str) -> torch.Tensor:
    """[..., dimensions, 2] -> [..., 2]."""
    mean, s = x[..., 0], x[..., 1]
    if how == "sum":
        return torch.stack([mean.sum(-1), torch.log(torch.sqrt((torch.exp(s) ** 2).sum(-1)))], -1)
    over = {"mean": lambda t: t.mean(-1), "min": lambda t: t.min(-1).values}[how]
    return torch.stack([over(mean), over(s)], -1)


def pair_loss(kind: str, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Each pair's loss by a fine sum over eps, [n]; a, b [n, 2]."""
    eps = torch.linspace(-12, 12, 24001, dtype=torch.float64)
    density = torch.exp(-eps * eps / 2)
    density = density / density.sum()
    a, b = a.double(), b.double()
    sigma = torch.sqrt(torch.exp(2 * a[:, 1]) + torch.exp(2 * b[:, 1]))
    z = (a[:, 0] - b[:, 0])[:, None] + sigma[:, None] * eps
    if kind == "released":
        return -(torch.nn.functional.logsigmoid(z) * density).sum(1)
    return -torch.log((torch.sigmoid(z) * density).sum(1))
