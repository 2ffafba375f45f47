"""Random tiny Qwen2.5-VLs and Qwen3-VLs in torch, and samples for them: the reference side of the parity ladder.

Weights are N(0, 1/fan_in), biases and norm gains random: with transformers' own initialisation (0.02, zeros, ones) a
wrong GELU, a wrong epsilon or a dropped bias would pass.
"""

import copy
import dataclasses

import numpy as np
import torch
import transformers

torch.set_num_threads(1)  # tiny operators: a thread pool costs more than it brings, above all on busy cores

IMAGE, VIDEO, START, END, VOCAB, ANSWER = 290, 291, 292, 293, 300, 8


def _config(text: dict, vision: dict, tied: bool, theta: float, section: list[int], eps: float) -> dict:
    text = {
        "vocab_size": VOCAB,
        "rms_norm_eps": eps,
        "max_position_embeddings": 4096,
        "rope_parameters": {"rope_type": "default", "rope_theta": theta, "mrope_section": section},
        "bos_token_id": None,
        "eos_token_id": None,
        **text,
    }
    names = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
    tokens = dict(zip(names, (IMAGE, VIDEO, START, END)))
    return {"text_config": text, "vision_config": vision, "tie_word_embeddings": tied, **tokens}


def _text(hidden, layers, heads, kv, ffn):
    names = "hidden_size num_hidden_layers num_attention_heads num_key_value_heads intermediate_size".split()
    return dict(zip(names, (hidden, layers, heads, kv, ffn)))


def _vision(hidden, depth, heads, ffn, full, out, window=112):
    names = "hidden_size depth num_heads intermediate_size fullatt_block_indexes out_hidden_size window_size".split()
    return dict(zip(names, (hidden, depth, heads, ffn, full, out, window)))


CONFIGS = {
    "tied_gqa": _config(_text(64, 2, 4, 2, 96), _vision(32, 3, 2, 40, [1], 64), True, 1e6, [2, 3, 3], 1e-6),
    "untied_mqa": _config(_text(48, 2, 6, 1, 80), _vision(48, 2, 3, 52, [0], 48), False, 1e4, [2, 1, 1], 1e-5),
    "heads_equal": _config(_text(64, 3, 2, 2, 64), _vision(40, 4, 1, 60, [1, 3], 64), False, 1e6, [4, 6, 6], 1e-6),
    "small_windows": _config(_text(48, 2, 3, 3, 72), _vision(32, 2, 1, 36, [1], 48, 56), True, 5e5, [4, 2, 2], 1e-5),
    "all_windowed": _config(_text(64, 1, 8, 4, 100), _vision(64, 1, 4, 68, [], 64), False, 1e6, [1, 2, 1], 1e-6),
    "all_full": _config(_text(96, 2, 6, 3, 64), _vision(24, 2, 2, 44, [0, 1], 96), True, 1e5, [2, 4, 2], 1e-5),
}


def _qwen3(text: dict, vision: dict, head_dim: int, tied: bool, theta: float, section: list[int], eps: float) -> dict:
    """Patches of 14 x 14 pixels as the samples have them; the golden configurations have others."""
    config = _config({"head_dim": head_dim, **text}, vision | {"patch_size": 14}, tied, theta, section, eps)
    config["text_config"]["rope_parameters"]["mrope_interleaved"] = True
    config["text_config"]["tie_word_embeddings"] = tied
    return config


def _deep(hidden, depth, heads, ffn, taps, out, side):
    names = "hidden_size depth num_heads intermediate_size deepstack_visual_indexes out_hidden_size".split()
    return dict(zip(names, (hidden, depth, heads, ffn, taps, out))) | {"num_position_embeddings": side**2}


# heads wider, narrower and as wide as hidden / heads; taps at the ends, in a row, apart; one level to as many as layers
QWEN3 = {
    "3_tied_gqa": (_text(48, 4, 4, 2, 80), _deep(32, 4, 2, 56, [0, 2], 48, 6), 16, True, 5e6, [4, 2, 2], 1e-6),
    "3_untied_mqa": (_text(64, 2, 6, 1, 96), _deep(48, 3, 3, 52, [0, 2], 64, 48), 8, False, 1e4, [2, 1, 1], 1e-5),
    "3_heads_equal": (_text(64, 3, 2, 2, 64), _deep(40, 5, 1, 60, [1, 2, 4], 64, 9), 32, False, 5e6, [6, 5, 5], 1e-6),
    "3_one_level": (_text(48, 1, 3, 3, 72), _deep(32, 2, 1, 36, [1], 48, 20), 32, True, 5e5, [8, 4, 4], 1e-5),
    "3_levels": (_text(64, 5, 8, 4, 100), _deep(64, 4, 4, 68, [0, 1, 2, 3], 64, 7), 8, False, 1e6, [1, 2, 1], 1e-6),
    "3_narrow_heads": (_text(96, 2, 6, 3, 64), _deep(24, 6, 2, 44, [5], 96, 48), 16, True, 1e5, [2, 3, 3], 1e-5),
}
QWEN3 = {name: _qwen3(*sizes) for name, sizes in QWEN3.items()}
CONFIGS |= QWEN3


def torch_model(name: str, seed: int = 0) -> torch.nn.Module:
    """The fp32 torch model of a tiny configuration with eager attention."""
    kind = "Qwen3VL" if name in QWEN3 else "Qwen2_5_VL"
    config = getattr(transformers, f"{kind}Config")(**copy.deepcopy(CONFIGS[name]), attn_implementation="eager")
    model = getattr(transformers, f"{kind}ForConditionalGeneration")(config).eval()
    randomise(model, seed)
    return model


@torch.no_grad()
def randomise(model: torch.nn.Module, seed: int, only: str = "") -> None:
    """N(0, 1/fan_in) matrices, N(0, 1/4) biases, norm gains 1 + N(0, 0.3^2), where the name holds `only`."""
    generator = torch.Generator().manual_seed(seed)
    for name, p in ((n, p) for n, p in model.named_parameters() if only in n):
        noise = torch.randn(p.shape, generator=generator)
        if p.ndim > 1:
            p.copy_(noise / np.sqrt(p[0].numel()))
        else:
            p.copy_(0.5 * noise if name.endswith("bias") else 1 + 0.3 * noise)


@dataclasses.dataclass(frozen=True)
class Sample:
    """tokens [T] with image pads; grids of its images; patches [n, 1176] in HF's processor order; the last
    `ANSWER` tokens are the answer."""

    tokens: np.ndarray
    grids: tuple[tuple[int, int, int], ...]
    patches: np.ndarray

    def torch(self) -> dict:
        """Inputs of the torch model, batch of one."""
        ids = torch.tensor(self.tokens)[None].long()
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "mm_token_type_ids": (ids == IMAGE).int()}
        if self.grids:
            inputs |= {"pixel_values": torch.tensor(self.patches), "image_grid_thw": torch.tensor(self.grids)}
        return inputs


def sample(seed: int, grids=(), text: int = 10) -> Sample:
    """Random text around images: `text` tokens first, 3 after each image, then the answer."""
    rng = np.random.default_rng(seed)
    words = lambda n: rng.integers(3, 280, n).tolist()
    tokens = words(text)
    for t, h, w in grids:
        tokens += [START] + [IMAGE] * (t * h * w // 4) + [END] + words(3)
    tokens += words(ANSWER)
    patches = rng.normal(size=(sum(t * h * w for t, h, w in grids), 1176)).astype(np.float32)
    return Sample(np.array(tokens, np.int32), tuple(grids), patches)


# non-square grids whose sides are odd in windows (4 merged patches a side): 5 x 7, 2 x 3, 1 x 9, 3 x 5 merged patches
ONE, TWO = sample(1, [(1, 6, 10)]), sample(2, [(1, 10, 14), (1, 4, 6)], text=5)
TEXT, NARROW, SMALL = sample(3, text=30), sample(4, [(1, 2, 18)], text=3), sample(5, [(1, 4, 6)], text=7)
CASES = {
    "one image": [(ONE, 0)],
    "two images, left padding": [(TWO, 9)],
    "text only, left padding": [(TEXT, 20)],
    "packed": [(SMALL, 0), (TEXT, 27), (NARROW, 65)],
}
"""Rows of the ladder's batch: (sample, first token's place)."""
TOKENS, VISION_ROWS, SLOTS = 96, 2, 192


def padded_torch(samples: list[Sample], side: str) -> dict:
    """One padded torch batch of several samples."""
    length = max(len(s.tokens) for s in samples)
    pad = lambda s, x: np.pad(x, (length - len(s.tokens), 0) if side == "left" else (0, length - len(s.tokens)))
    ids = torch.tensor(np.stack([pad(s, s.tokens) for s in samples])).long()
    mask = torch.tensor(np.stack([pad(s, np.ones_like(s.tokens)) for s in samples])).long()
    inputs = {"input_ids": ids, "attention_mask": mask, "mm_token_type_ids": (ids == IMAGE).int()}
    inputs["pixel_values"] = torch.tensor(np.concatenate([s.patches for s in samples]))
    inputs["image_grid_thw"] = torch.tensor([g for s in samples for g in s.grids])
    return inputs
