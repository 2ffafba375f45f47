"""Scoring edits: this engine against `transformers` generating as the released EditScore code does.

    taskset -c 0 python benchmarks/bench_scoring.py --json scoring.json          (CPU, one thread, half an hour)

One Qwen2.5-VL (--family qwen3_vl: a Qwen3-VL with three levels of deepstack) of random weights (22.5M parameters in the
decoder's layers, a vision tower a tenth of that, Qwen's own tokenizer and vocabulary), fp32, the same weights and the
same prompts (two questions about real photographs) on both sides, 64 new tokens an answer, temperature 0.7, top-k 20,
top-p 0.9.

    avg8_vs_upstream      one edit, 8 passes: 16 generations, one after another, each with its own vision pass
    avg8_vs_generate_n    the same against `generate(num_return_sequences=8)`, twice
    group12_vs_upstream   12 edits of one source, 4 passes: 96 generations, one after another

Our time includes reading, resizing and tokenizing; theirs begins with ready tensors. Sides take turns; every repetition
takes other photographs. `flop_ratio`: matrix products that the two sides need, without padding. `cpu_ratio` compares
processor time instead of the clock's, for a machine that is not quiet. `images` are passes of one image through the
vision tower. `--sample N` times N of their sequential
generations and multiplies.
"""

import os

os.environ.setdefault("XLA_FLAGS", "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import statistics  # noqa: E402
import tempfile  # noqa: E402
import time  # noqa: E402
from datetime import date  # noqa: E402
from pathlib import Path  # noqa: E402

import jax  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

from edit_rl_jax.rewards.editscore.prompts import STANDARD  # noqa: E402
from edit_rl_jax.rewards.editscore.questions import Questions  # noqa: E402
from edit_rl_jax.vlm import family  # noqa: E402
from edit_rl_jax.vlm.engine.engine import Engine  # noqa: E402
from edit_rl_jax.vlm.engine.sampler import TokenSampling  # noqa: E402
from edit_rl_jax.vlm.loading import load_model  # noqa: E402
from edit_rl_jax.vlm.patches import ImageSettings, load_patches  # noqa: E402
from edit_rl_jax.vlm.tokenizer import load_tokenizer  # noqa: E402

NEW = 64
TEXT = dict(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1408)
VISION = dict(hidden_size=160, depth=4, num_heads=4, intermediate_size=432, fullatt_block_indexes=[3])
VISION3 = dict(hidden_size=160, depth=4, num_heads=4, intermediate_size=648, deepstack_visual_indexes=[0, 1, 2])
VOCABULARY = 151936


def torch_model(kind: str) -> transformers.PreTrainedModel:
    """The model of a family with transformers' own initialisation."""
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [8, 12, 12]}
    text = TEXT | {"vocab_size": VOCABULARY, "rope_parameters": rope, "eos_token_id": None, "bos_token_id": None}
    vision = VISION | {"out_hidden_size": TEXT["hidden_size"]}
    torch.manual_seed(0)
    if kind == "qwen3_vl":
        text |= {"head_dim": 64, "rope_parameters": rope | {"mrope_section": [12, 10, 10], "mrope_interleaved": True}}
        vision = VISION3 | {"out_hidden_size": TEXT["hidden_size"]}
        config = transformers.Qwen3VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
        return transformers.Qwen3VLForConditionalGeneration(config).eval()
    config = transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True)
    return transformers.Qwen2_5_VLForConditionalGeneration(config).eval()


class Upstream:
    """transformers as the released code calls it."""

    def __init__(self, model, settings: ImageSettings):
        self.model, self.settings, self.flops, self.images = model, settings, 0.0, 0.0

    def inputs(self, prompt, images) -> dict:
        ids = torch.tensor(prompt.tokens)[None].long()
        parts = [load_patches(image, self.settings) for image in images]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "mm_token_type_ids": (ids == self.model.config.image_token_id).int(),
            "pixel_values": torch.tensor(np.concatenate([p for p, _ in parts])),
            "image_grid_thw": torch.tensor([g for _, g in parts]),
        }

    @torch.no_grad()
    def generate(self, inputs: dict, n: int = 1) -> None:
        how = dict(do_sample=True, temperature=0.7, top_k=20, top_p=0.9, num_return_sequences=n, pad_token_id=0)
        out = self.model.generate(**inputs, max_new_tokens=NEW, min_new_tokens=NEW, **how)
        self.model.model.rope_deltas = None
        assert out.shape == (n, inputs["input_ids"].shape[1] + NEW)
        tokens, patches = inputs["input_ids"].shape[1], [int(g.prod()) for g in inputs["image_grid_thw"]]
        vision = sum(vision_flops(p, self.model.config.model_type) for p in patches)
        self.flops += n * (prefill_flops(tokens, 0) + decode_flops(tokens) + vision)
        self.images += n * len(patches)


def prefill_flops(tokens: int, before: int) -> float:
    """Of `tokens` tokens after `before` others, without the head."""
    D, L, F = TEXT["hidden_size"], TEXT["num_hidden_layers"], TEXT["intermediate_size"]
    kv = D * TEXT["num_key_value_heads"] // TEXT["num_attention_heads"]
    linear = 2 * L * (2 * D * D + 2 * D * kv + 3 * D * F)
    return tokens * (linear + 4 * L * D * (before + tokens / 2))


def decode_flops(before: int, new: int = NEW) -> float:
    """Of an answer, head included."""
    return prefill_flops(new, before) + new * 2 * TEXT["hidden_size"] * VOCABULARY


def vision_flops(patches: int, kind: str) -> float:
    """Of one image."""
    if kind == "qwen3_vl":
        D, L, F, out = VISION3["hidden_size"], VISION3["depth"], VISION3["intermediate_size"], TEXT["hidden_size"]
        block = 2 * L * (4 * D * D + 2 * D * F) + 4 * D * L * patches
        mergers = 1 + len(VISION3["deepstack_visual_indexes"])
        return patches * (block + 2 * 1536 * D + mergers * 2 * (16 * D * D + 4 * D * out) / 4)
    D, L, F, out = VISION["hidden_size"], VISION["depth"], VISION["intermediate_size"], TEXT["hidden_size"]
    attended = (L - 1) * 64 + patches  # windows of 64 patches, and one block over the whole image
    block = 2 * L * (4 * D * D + 3 * D * F) + 4 * D * attended
    return patches * (block + 2 * 1176 * D + 2 * (16 * D * D + 4 * D * out) / 4)


class Ours:
    """The engine, with the questions of EditScore."""

    def __init__(self, model, questions: Questions, passes: int, slots: int):
        sampling = TokenSampling(0.7, 20, 0.9, NEW)  # without stop tokens: every answer has all its tokens
        self.engine = Engine(model, sampling, slots=slots)
        self.questions, self.passes, self.flops, self.images = questions, passes, 0.0, 0
        self.kind = model.cfg.model_type

    def prompts(self, edits):
        made = []
        for i, (source, edited, instruction) in enumerate(edits):
            for q in ("sc", "pq"):
                parts = self.questions.parts(q, source, edited, instruction)
                made.append(self.questions.prompt(q, parts, f"edit {i}", 2 * i + (q == "pq")))
        return made

    def score(self, edits, new: int = NEW) -> None:
        made, images, before = self.prompts(edits), self.engine.counters.images, self.engine.counters.prefill_tokens
        out = list(self.engine.generate(made, answers=self.passes, limits=lambda *_: new))
        assert all(len(a.tokens) == new for o in out for a in o.answers) and len(out) == len(made)
        self.flops += sum(self.passes * decode_flops(len(p.tokens)) for p in made)
        images = self.engine.counters.images - images
        self.images += images
        self.flops += images * vision_flops(4 * made[0].pictures[0][1].tokens, self.kind)
        tokens, mean = self.engine.counters.prefill_tokens - before, statistics.fmean(len(p.tokens) for p in made)
        self.flops += prefill_flops(1, mean / 2) * tokens


def timed(run) -> tuple[float, float]:
    """(seconds of the clock, seconds of the processor) of a run."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    return time.perf_counter() - wall, time.process_time() - cpu


def compare(name: str, repeats: int, theirs, ours, flops) -> dict:
    """Medians and ratios; the sides take turns. `theirs(i)`, `ours(i)` -> (wall, cpu), `flops()` -> both sides'."""
    rows = []
    for i in range(repeats):
        rows.append((*theirs(i), *ours(i)))
        print(name, " ".join(f"{x:.2f}" for x in rows[-1]), flush=True)
    a, a_cpu, b, b_cpu = (statistics.median(c) for c in zip(*rows))
    them, us = flops()
    return {
        "median_ratio": statistics.median(r[0] / r[2] for r in rows),
        "cpu_ratio": statistics.median(r[1] / r[3] for r in rows),
        "flop_ratio": them / us,
        "their_median_s": a,
        "our_median_s": b,
        "their_median_cpu_s": a_cpu,
        "our_median_cpu_s": b_cpu,
        "repeats": repeats,
    }


def main(argv=None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", required=True, metavar="OUT")
    parser.add_argument("--family", choices=("qwen2_5_vl", "qwen3_vl"), default="qwen2_5_vl")
    parser.add_argument("--shared", type=Path, default=Path("../shared"), help="folder with the photographs, tokenizer")
    parser.add_argument("--repeats", type=int, default=5, help="of one edit; of the group, two less")
    parser.add_argument("--sample", type=int, help="time so many of their sequential generations, and multiply")
    parser.add_argument("--only", nargs="*", default=["avg8_vs_upstream", "avg8_vs_generate_n", "group12_vs_upstream"])
    args = parser.parse_args(argv)
    torch.set_num_threads(1)
    photos = args.shared / "data/photo_edits"
    lines = [json.loads(x) for x in (photos / "pairs.jsonl").read_text().splitlines()]
    read = lambda name: (photos / name).read_bytes()
    reference = torch_model(args.family)
    with tempfile.TemporaryDirectory() as folder:
        reference.save_pretrained(folder)
        cfg = family.named(args.family).architecture(folder)
        model = load_model(cfg, folder)
    settings = cfg.images(max_pixels=640 * 480)
    edits = [(read(x["source"]), read(x["edited"]), x["instruction"]) for x in lines]
    edits = [e for e in edits if len({settings.grid(*size_of(x)) for x in e[:2]}) == 1]

    questions = Questions(cfg, load_tokenizer(args.shared / "data/qwen2_5_tokenizer"), STANDARD, settings)
    upstream = Upstream(reference, settings)
    results: dict = {}

    def their_loop(ours, edits, passes):
        """`passes` times both questions of each edit; with --sample the first few, multiplied."""
        prompts = ours.prompts(edits)
        images = [x for s, e, _ in edits for x in ((s, e), (e,))]
        runs = [upstream.inputs(p, i) for p, i in zip(prompts, images)] * passes
        part = runs if args.sample is None else runs[: args.sample]
        before, seen = upstream.flops, upstream.images
        wall, cpu = timed(lambda: [upstream.generate(r) for r in part])
        scale = len(runs) / len(part)
        upstream.flops = before + (upstream.flops - before) * scale
        upstream.images = seen + (upstream.images - seen) * scale
        return wall * scale, cpu * scale

    def run(name, repeats, passes, slots, groups, theirs):
        if name not in args.only:
            return
        ours = Ours(model, questions, passes, slots)
        for group in groups:  # compiles
            ours.score(group, 1)
        ours.engine.update(ours.engine.state)  # forgets the images and prefixes that this has made
        ours.flops = upstream.flops = ours.images = upstream.images = 0.0
        mine = lambda i: timed(lambda: ours.score(groups[i]))
        results[name] = compare(
            name, repeats, lambda i: theirs(ours, groups[i]), mine, lambda: (upstream.flops, ours.flops)
        )
        counters = ours.engine.counters
        images = {"images": ours.images / repeats, "their_images": upstream.images / repeats}
        levels = jax.tree.map(lambda x: list(x.shape[1:]), ours.engine._features)
        results[name] |= images | {"features_of_an_image_token": levels}
        results[name] |= {"occupancy": counters.occupancy, "compilations": ours.engine.compilations}
        print(json.dumps(results[name], indent=1), flush=True)

    def generate_n(ours, group):
        ((source, edited, _),) = group
        both = [upstream.inputs(p, i) for p, i in zip(ours.prompts(group), ((source, edited), (edited,)))]
        return timed(lambda: [upstream.generate(x, 8) for x in both])

    grids = [settings.grid(*size_of(e[0])) for e in edits]
    same = [e for e, grid in zip(edits, grids) if grid == statistics.mode(grids)]  # Qwen2.5-VL: 391 merged tokens
    singles = [[e] for e in same[: args.repeats]]
    outcomes = [e[1] for e in same] + [e[0] for e in same]
    group = lambda i: [
        (same[i][0], x, same[i][2]) for x in (outcomes[i : i + 1] + [o for o in outcomes if o != same[i][0]])[:12]
    ]
    groups = [group(i) for i in range(max(1, args.repeats - 2))]
    run("avg8_vs_upstream", args.repeats, 8, 16, singles, lambda ours, g: their_loop(ours, g, 8))
    run("avg8_vs_generate_n", args.repeats, 8, 16, singles, generate_n)
    run("group12_vs_upstream", max(1, args.repeats - 2), 4, 96, groups, lambda ours, g: their_loop(ours, g, 4))
    about = {"device": platform.processor() or platform.machine(), "date": str(date.today()), "sample": args.sample}
    about |= {"load": os.getloadavg()[0], "versions": {m.__name__: m.__version__ for m in (jax, torch, transformers)}}
    about["prompt_tokens"] = [len(p.tokens) for p in Ours(model, questions, 1, 2).prompts(singles[0])]
    Path(args.json).write_text(json.dumps(results | {"about": about}, indent=1) + "\n")


def size_of(data: bytes) -> tuple[int, int]:
    from edit_rl_jax.data.images import image_size

    return image_size(data)


if __name__ == "__main__":
    main()
