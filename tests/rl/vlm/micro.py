"""A verifier of a few thousand weights that writes scores by chance, and RL of it in seconds: `--config` may name this.

It is trained (SFT, half a minute's worth of steps) to write `<score>D</score>`, D any digit: its replies differ, and
what GCPO teaches it can be seen.
"""

import os
from pathlib import Path

import numpy as np

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import encode_png
from edit_rl_jax.data.records import PreferenceRecord, group_id
from edit_rl_jax.rewards.edit_rrm.prompts import TINY
from edit_rl_jax.rl.vlm.config import default
from tests.training import micro, toy

BUCKET = (220, 1, 96, 80)


def picture(rng, level: int) -> bytes:
    return encode_png(np.clip(rng.normal(level, 12, (56, 56, 3)), 0, 255).astype(np.uint8))


class Pairs:
    """Bright edits are better than dark ones; every fifth pair is a tie."""

    def __init__(self, size: int, seed: int):
        self.size, self.seed, self.data_hash = size, seed, f"{size:08d}-{seed:08d}"

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> PreferenceRecord:
        rng = np.random.default_rng([self.seed, index])
        source, bright, dark = picture(rng, 128), picture(rng, 200), picture(rng, 60)
        first = bool(rng.integers(2))
        edited = (bright, dark) if first else (dark, bright)
        prefers = 0 if index % 5 == 4 else 1 if first else -1
        score = lambda a: (4.0, 1.0) if first else (1.0, 4.0) if a else (2.0, 2.0)
        labels = {d: score(True) for d in ("instruction_following", "visual_quality")} if prefers else {}
        asked = "light" + "er" * int(rng.integers(0, 3))
        return PreferenceRecord(f"p{index}", source, edited, asked, prefers, labels, group=group_id(source, asked))


class Replies(Pairs):
    """Examples for the SFT: a score by chance."""

    def __getitem__(self, index: int) -> Example:
        record, rng = super().__getitem__(index), np.random.default_rng([self.seed, index, 1])
        parts = TINY.build(record.source, record.edited[rng.integers(2)], record.instruction, (), "think")
        return Example(parts, f"<score>{rng.integers(10)}</score><|im_end|>", record.key)


def pairs(config, split):
    return Pairs(40 if split == "train" else 12, int(split == "train"))


def replies(config, split):
    return Replies(512, 7)


def sft():
    """The config of the SFT, for `train_rm.py`."""
    c = micro.config(
        steps=60, rows=8, accum=1, data__train="tests.rl.vlm.micro:replies", data__buckets=(BUCKET,), eval__batches=0,
        model__tokenizer=os.environ["EDIT_RL_TOY"] + "/tokenizer", model__remat="none", optim__lr=1e-2,
        optim__warmup=10, log__every=50, log__tensorboard=False, checkpoint__every=1000,
    )  # fmt: skip
    return c


def get_config():
    """RL of the model in $EDIT_RL_TOY/sft/model."""
    c, folder = default(), Path(os.environ["EDIT_RL_TOY"])
    flat = dict(
        steps=6, rows=2, model__init_from=str(folder / "sft" / "model"), model__remat="none", model__lora__rank=4,
        data__train="tests.rl.vlm.micro:pairs", data__buckets=(BUCKET,), optim__lr=1e-3, optim__schedule="constant",
        optim__warmup=1, checkpoint__every=2, checkpoint__rehearse=False, log__tensorboard=False,
        compilation_cache=str(folder / "cache"),
        eval__every=3, rl__pairs=3, rl__group=4, rl__mode="think", rl__prompts="tiny", rl__max_new_tokens=24,
        rl__slots=8, rl__shared=64, rl__own=64, rl__microbatches=6, rl__eval_pairs=4, rl__report_pairs=2,
    )  # fmt: skip
    with c.unlocked():
        c.update_from_flattened_dict({k.replace("__", "."): v for k, v in flat.items()})
    return c


def prepare(folder: Path) -> None:
    """Trains the verifier, once."""
    from scripts import train_rm

    os.environ["EDIT_RL_TOY"] = str(folder)
    if not (folder / "sft" / "model").exists():
        toy.save_tokenizer(folder / "tokenizer")
        file = folder / "sft.py"
        file.write_text("from tests.rl.vlm.micro import sft as get_config\n")
        assert train_rm.main(["--config", str(file), "--workdir", str(folder / "sft")]) == 0
