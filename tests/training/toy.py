"""A toy objective, source and tokenizer from outside the package, for runs of the training script in seconds.

The source gives one small image of one colour and asks for its name.
"""

import os
import time
from pathlib import Path

import jax
import numpy as np

from edit_rl_jax.data.example import Example
from edit_rl_jax.training import checkpoint

SPECIAL = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
COLOURS = {"red": (200, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 200), "grey": (120, 120, 120)}


class Source:
    """Examples by index: image sizes and texts vary, so that rows pack differently."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed = size, seed
        self.data_hash = f"toy-{size}-{seed}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> Example:
        rng = np.random.default_rng([self.seed, index])
        name = list(COLOURS)[rng.integers(4)]
        shape = (28 * int(rng.integers(2, 4)), 56, 3)
        image = np.clip(rng.normal(COLOURS[name], 10, shape), 0, 255).astype(np.uint8)
        ask = "<|im_start|>user\nwhat colour" + "?" * int(rng.integers(1, 6)) + "<|vision_start|>"
        return Example(
            prompt=(ask, image, "<|vision_end|><|im_end|>\n<|im_start|>assistant\n"),
            answer=name + "<|im_end|>",
            key=f"toy/{index}",
        )


def _hang(*args):
    """Stands in for the reading of a checkpoint from storage that does not answer."""
    time.sleep(1e4)


def source(config, split):
    if (hangs := os.environ.get("EDIT_RL_TEST_HANG")) and jax.process_index() == int(hangs):
        checkpoint.Checkpoints._read = _hang
    return Source(config.data.size if split == "train" else config.data.validation_size, int(split == "train"))


def save_tokenizer(folder: Path) -> Path:
    """Bytes and the special tokens: ids 0-255, then 256-261 in the order of SPECIAL."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(letters)}, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens(list(SPECIAL))
    fast = PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|im_end|>")
    fast.save_pretrained(str(folder))
    return folder
