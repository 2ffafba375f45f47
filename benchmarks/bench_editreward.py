"""Scoring pairs of edits with EditReward: this engine against whole forward passes through `transformers`.

    taskset -c 0 python benchmarks/bench_editreward.py --json editreward.json          (CPU, one thread)

One Qwen2.5-VL with random weights and heads (its form as in bench_scoring.py, Qwen's own tokenizer), fp32, the same
weights and the same prompts on both sides; photographs of about 448 x 448 pixels, cut so that no two are the same. A
pair is two edits of one source.

Their side does what the released code does: a forward pass a dimension and edit, both images in each, so the source is
encoded four times a pair; 8 pairs a batch, padded on the right, `sdpa` attention, no vocabulary head; the heads are
applied at the reward tokens only. Both sides begin with files' bytes; theirs reads and resizes both images once an
edit, by our code, and its prompts are tokenized beforehand. Sides take turns. `flop_ratio`: matrix products that the
two sides need, without padding. `cpu_ratio` compares processor time instead of the clock's, for a machine that is not
quiet.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse  # noqa: E402
import io  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import sys  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from datetime import date  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import safetensors.torch  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402
from PIL import Image  # noqa: E402

from edit_rl_jax.data.images import decode_image  # noqa: E402
from edit_rl_jax.rewards.base import Edit  # noqa: E402
from edit_rl_jax.rewards.editreward.judge import RELEASED_PIXELS, EditReward  # noqa: E402
from edit_rl_jax.rewards.editreward.prompts import STANDARD, TOKEN  # noqa: E402
from edit_rl_jax.vlm.patches import ImageSettings, load_patches  # noqa: E402
from edit_rl_jax.vlm.tokenizer import load_tokenizer  # noqa: E402

TEXT = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1408)
VISION = dict(hidden_size=160, depth=4, num_heads=4, intermediate_size=432, fullatt_block_indexes=[3])
BATCH = 8  # pairs


class Upstream:
    """The model in `transformers`, asked as the released code asks it."""

    def __init__(self, vocabulary: int):
        rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
        text = TEXT | {"vocab_size": vocabulary, "rope_parameters": rope, "eos_token_id": None, "bos_token_id": None}
        vision = VISION | {"out_hidden_size": TEXT["hidden_size"]}
        config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
        torch.manual_seed(0)
        self.whole = transformers.Qwen2_5_VLForConditionalGeneration(config).eval()
        layers = lambda: [torch.nn.Linear(TEXT["hidden_size"], 1024), torch.nn.ReLU(), torch.nn.Dropout(0.05)]
        rest = lambda: [torch.nn.Linear(1024, 16), torch.nn.ReLU(), torch.nn.Linear(16, 2)]
        self.heads = torch.nn.ModuleList(torch.nn.Sequential(*layers(), *rest()) for _ in STANDARD.dimensions).eval()

    def save(self, folder: Path, tokenizer, settings) -> None:
        """Writes the released layout, and what this project stores beside it."""
        self.whole.save_pretrained(folder)
        file = folder / "model.safetensors"
        heads = {f"rm_heads.head_{k}": v for k, v in self.heads.state_dict().items()}
        safetensors.torch.save_file(safetensors.torch.load_file(file) | heads, file, metadata={"format": "pt"})
        tokenizer.save_pretrained(folder)
        stored = {"objective": "editreward", "prompts": STANDARD.to_json()}
        stored |= {"images": {"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels}}
        stored |= {"heads": {"fusion": "mean", "positions": "mrope"}}
        (folder / "edit_rl.json").write_text(json.dumps(stored))

    def inputs(self, prompts, patches) -> dict:
        """Tensors of some edits' prompts of one dimension, padded on the right. patches: (source, edited) of each."""
        length = max(len(p) for p in prompts)
        ids = torch.tensor(np.stack([np.pad(p, (0, length - len(p))) for p in prompts])).long()
        real = torch.arange(length)[None] < torch.tensor([len(p) for p in prompts])[:, None]
        return {
            "input_ids": ids,
            "attention_mask": real.long(),
            "mm_token_type_ids": (ids == self.whole.config.image_token_id).int(),
            "pixel_values": torch.tensor(np.concatenate([x for pair in patches for x, _ in pair])),
            "image_grid_thw": torch.tensor([grid for pair in patches for _, grid in pair]),
        }

    @torch.no_grad()
    def read(self, inputs: dict, head: int) -> np.ndarray:
        """(mean, log standard deviation) [n, 2] at the last tokens."""
        hidden = self.whole.model(**inputs, use_cache=False).last_hidden_state
        last = inputs["attention_mask"].sum(1) - 1
        return self.heads[head](hidden[torch.arange(len(last)), last]).numpy()


def text_flops(tokens: int, before: int) -> float:
    """Of `tokens` tokens after `before` others."""
    D, L, F = TEXT["hidden_size"], TEXT["num_hidden_layers"], TEXT["intermediate_size"]
    kv = D * TEXT["num_key_value_heads"] // TEXT["num_attention_heads"]
    linear = 2 * L * (2 * D * D + 2 * D * kv + 3 * D * F)
    return tokens * (linear + 4 * L * D * (before + tokens / 2))


def vision_flops(patches: int) -> float:
    """Of one image."""
    D, L, F, out = VISION["hidden_size"], VISION["depth"], VISION["intermediate_size"], TEXT["hidden_size"]
    attended = (L - 1) * 64 + patches  # windows of 64 patches, and one block over the whole image
    block = 2 * L * (4 * D * D + 3 * D * F) + 4 * D * attended
    return patches * (block + 2 * 1176 * D + 2 * (16 * D * D + 4 * D * out) / 4)


def flops(prompts) -> tuple[float, float]:
    """Both sides' matrix products for these prompts: each by itself, and each image and shared piece once."""
    theirs, pieces, images = 0.0, {}, {}
    for prompt in prompts:
        here = {picture.key: vision_flops(4 * picture.tokens) for _, picture in prompt.pictures}
        theirs += text_flops(len(prompt.tokens), 0) + sum(here.values())
        *shared, last = prompt.pieces()
        pieces |= {p.key: text_flops(p.stop - p.start, p.start) for p in shared}
        pieces |= {last.key: text_flops(last.stop + 1 - last.start, last.start)}
        images |= here
    return theirs, sum(pieces.values()) + sum(images.values())


def pairs_of(photos: Path, n: int) -> list[tuple[bytes, bytes, bytes, str]]:
    """(source, edit, another edit, instruction), cut out of photographs, no two images the same."""
    lines = [json.loads(x) for x in (photos / "pairs.jsonl").read_text().splitlines()]
    rng, out = np.random.default_rng(0), []
    for i in range(n):
        line, other = lines[i % len(lines)], lines[(i + 1 + i // len(lines)) % len(lines)]
        images = [decode_image(photos / f) for f in (line["source"], line["edited"], other["edited"])]
        h, w = (int(min(x.shape[axis] for x in images) * rng.uniform(0.7, 0.95)) for axis in (0, 1))
        top, left = (int(rng.integers(0, min(x.shape[axis] for x in images) - size)) for axis, size in ((0, h), (1, w)))
        cut = [jpeg(x[top : top + h, left : left + w]) for x in images]
        out.append((*cut, line["instruction"]))
    return out


def jpeg(image: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


def timed(run) -> tuple[float, float, object]:
    """(seconds of the clock, seconds of the processor, result) of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    result = run()
    return time.perf_counter() - wall, time.process_time() - cpu, result


def main(argv=None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="OUT")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with the photographs, tokenizer")
    parser.add_argument("--pairs", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    tokenizer = load_tokenizer(args.shared / "data/qwen2_5_tokenizer")
    tokenizer.add_special_tokens({"additional_special_tokens": [TOKEN]}, replace_extra_special_tokens=False)
    upstream = Upstream(len(tokenizer))
    with tempfile.TemporaryDirectory() as folder:
        settings = ImageSettings(min_pixels=RELEASED_PIXELS, max_pixels=RELEASED_PIXELS)
        upstream.save(Path(folder), tokenizer, settings)
        judge = EditReward.load(folder, verify=False)
    pairs = pairs_of(args.shared / "data/photo_edits", args.pairs)
    edits = [Edit(source, edited, text) for source, a, b, text in pairs for edited in (a, b)]
    made = [judge.prompts_of(edit, f"edit {i}") for i, edit in enumerate(edits)]  # [edit][dimension]

    def theirs():
        wall, cpu, figures = 0.0, 0.0, np.zeros((len(edits), len(STANDARD.dimensions), 2))
        for start in range(0, len(edits), 2 * BATCH):
            batch = range(start, min(start + 2 * BATCH, len(edits)))
            load = lambda i: [load_patches(x, settings) for x in (edits[i].sources[0], edits[i].edited)]
            took, cpus, patches = timed(lambda: {i: load(i) for i in batch})  # noqa: B023
            wall, cpu = wall + took, cpu + cpus
            for side in (0, 1):
                rows = [i for i in batch if i % 2 == side]
                for head, name in enumerate(STANDARD.dimensions):
                    inputs = upstream.inputs([made[i][name].tokens for i in rows], [patches[i] for i in rows])
                    took, cpus, figures[rows, head] = timed(lambda: upstream.read(inputs, head))  # noqa: B023
                    wall, cpu = wall + took, cpu + cpus
        return wall, cpu, figures

    def ours():
        judge.engine.update(judge.engine.state)  # forgets images and prefixes
        wall, cpu, judged = timed(lambda: judge.score(edits, progress=False))
        return wall, cpu, np.array([[(d.value, np.log(d.spread)) for d in j.dimensions.values()] for j in judged])

    ours()  # compiles
    compiled, rows = judge.engine.compilations, []
    for i in range(args.repeats):
        (wall, cpu, a), (our_wall, our_cpu, b) = theirs(), ours()
        worst = float(np.abs(a - b).max() / max(1, np.abs(a).max()))
        rows.append((wall, cpu, our_wall, our_cpu))
        print(f"{i}: " + " ".join(f"{x:.2f}" for x in rows[-1]), f"figures within {worst:.1e}", flush=True)
        if worst > 1e-4:
            print("the two sides disagree", file=sys.stderr)
            return 1
    them, us = flops([p for each in made for p in each.values()])
    wall, cpu, our_wall, our_cpu = (statistics.median(c) for c in zip(*rows))
    counters = judge.engine.counters
    result = {
        "ratio_of_medians": wall / our_wall,
        "cpu_ratio": cpu / our_cpu,
        "flop_ratio": them / us,
        "their_median_s": wall,
        "our_median_s": our_wall,
        "their_median_cpu_s": cpu,
        "our_median_cpu_s": our_cpu,
        "pairs": args.pairs,
        "repeats": args.repeats,
        "figures_within": worst,
        "compiled_after_warm_up": judge.engine.compilations - compiled,
        "padding": counters.prefill_padded / counters.prefill_tokens - 1,
        "about": {
            "device": platform.processor() or platform.machine(),
            "date": str(date.today()),
            "load": os.getloadavg()[0],
            "prompt_tokens": sorted({len(p.tokens) for p in made[0].values()}),
            "versions": {m.__name__: m.__version__ for m in (jax, torch, transformers)},
        },
    }
    print(json.dumps(result, indent=1))
    Path(args.json).write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
