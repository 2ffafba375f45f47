"""A byte tokenizer, a small config and examples of mixed sizes for the tests of the data pipeline."""

import io

import numpy as np
from PIL import Image

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.records import EditRecord
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, TextConfig, VisionConfig

CFG = Config(
    VisionConfig(depth=2, hidden_size=32, num_heads=2, out_hidden_size=32, window_size=56, fullatt_block_indexes=(1,)),
    TextConfig(
        vocab_size=300, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=1, head_dim=16,
        mrope_section=(2, 3, 3),
    ),
    image_token_id=258, vision_start_token_id=256, vision_end_token_id=257,
)  # fmt: skip
IMAGES = ImageSettings(min_pixels=28 * 28, max_pixels=84 * 84)
BUCKETS = (Bucket(176, 2, 64, 96), Bucket(288, 2, 96, 144))
SPECIAL = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|im_end|>")


class Bytes:
    """One token a byte, and the special tokens from 256 on."""

    def encode(self, text: str, *, add_special_tokens: bool = False) -> list[int]:
        del add_special_tokens
        for i, token in enumerate(SPECIAL):
            text = text.replace(token, chr(0x10FF00 + i))
        return [i for c in text for i in ([256 + ord(c) - 0x10FF00] if ord(c) >= 0x10FF00 else c.encode())]


def image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (height, width, 3), np.uint8)


def encoded(array: np.ndarray, format: str = "PNG") -> bytes:
    out = io.BytesIO()
    Image.fromarray(array).save(out, format)
    return out.getvalue()


def record(index: int, **fields) -> EditRecord:
    """Record `index`: images of its own mixed sizes, as PNG."""
    rng = np.random.default_rng(index)
    sizes = rng.integers(28, 100, (2, 2))
    source, edited = (encoded(image(rng, *map(int, s))) for s in sizes)
    words = "make it " + "so " * int(rng.integers(1, 8))
    made = dict(key=f"r{index}", source=source, edited=edited, instruction=words, sc=(20, 3), pq=(9, 25))
    return EditRecord(**(made | fields))


class Records:
    """Random access to toy records; `bad` maps an index to fields that replace its own."""

    def __init__(self, size: int, bad: dict | None = None):
        self.size, self.bad = size, bad or {}

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> EditRecord:
        return record(index, **self.bad.get(index, {}))


def to_examples(record: EditRecord, seed: int) -> list[Example]:
    """An SC example of two images and a PQ example of one; the seed shows in the answer."""
    answer = f'{{"score": {list(record.sc)}, "seed": {seed % 100:02d}}}{"!" * (len(record.source) % 17)}<|im_end|>'
    ends = ("<|vision_start|>", "<|vision_end|>")
    one = (record.instruction + ends[0], record.source, ends[1] + ends[0], record.edited, ends[1] + "answer:")
    two = ("rate" + ends[0], record.edited, ends[1] + "answer:")
    return [Example(one, answer, f"{record.key}/sc"), Example(two, answer, f"{record.key}/pq")]
