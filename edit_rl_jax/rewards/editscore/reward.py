"""EditScore as a reward: (source, edited, instruction) in, written scores out, by generation.

Each question is one prompt a row; K passes share its prefill. Equal prompts are asked once. An item's random numbers
come from its content, so neither its place nor its company changes them. Facts: arXiv 2509.23909, section 3.
"""

import dataclasses
import hashlib
import json
import math
import statistics
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from tqdm import tqdm

from edit_rl_jax.data.example import Example
from edit_rl_jax.data.images import ImageError, ImageSettings
from edit_rl_jax.data.packing import Bucket, VisionRows, empty_batch, write_row
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.data.tokenizer import Measured, TextEncoder, encode_measured, load_tokenizer, measure_example
from edit_rl_jax.generation.decoder import Generator
from edit_rl_jax.generation.sampler import Sampling, greedy
from edit_rl_jax.qwen2_5_vl import peft, weights
from edit_rl_jax.qwen2_5_vl.config import Config, VisionConfig
from edit_rl_jax.qwen2_5_vl.model import LoRAConfig, Qwen25VL
from edit_rl_jax.rewards.editscore.parsing import Reply, parse
from edit_rl_jax.rewards.editscore.prompts import END, Image, Prompts, Question, get
from edit_rl_jax.sharding import shardings

METADATA = "edit_rl.json"
PURPOSE = {"sc": 0, "pq": 1}
Triple = tuple[Image, Image, str]


@dataclasses.dataclass(frozen=True)
class Judgement:
    """What the judge says of one edit, on 0-25; figures are means over the passes that could be read.

    Attributes:
      valid: whether at least one pass gave all the scores that were asked for; nothing else is a number otherwise.
      sc: (editing success, no over-editing), or None.
      pq: (naturalness, no artifacts), or None.
      overall: mean over passes of sqrt(min SC * min PQ), or None; `overall_std` is their standard deviation (n).
      sc_replies, pq_replies: what was written, a pass each.
      problem: why there is no score: an unreadable image, an empty instruction, or the first reply's fault.
    """

    sc: tuple[float, float] | None = None
    pq: tuple[float, float] | None = None
    overall: float | None = None
    overall_std: float | None = None
    sc_replies: tuple[Reply, ...] = ()
    pq_replies: tuple[Reply, ...] = ()
    problem: str = ""

    @property
    def valid(self) -> bool:
        return not self.problem

    def to_json(self) -> dict[str, Any]:
        """A line of score.py's output."""
        replies = {"sc": self.sc_replies, "pq": self.pq_replies}
        passes = {
            q: [{"scores": r.scores, "reasoning": r.reasoning, "raw": r.raw} for r in rs] for q, rs in replies.items()
        }
        return {
            "valid": self.valid,
            "prompt_following": self.sc and self.sc[0],
            "consistency": self.sc and self.sc[1],
            "naturalness": self.pq and self.pq[0],
            "artifacts": self.pq and self.pq[1],
            "overall": self.overall,
            "overall_std": self.overall_std,
            "problem": self.problem,
            "passes": passes,
        }


def overall(sc: Sequence[int | float], pq: Sequence[int | float]) -> float:
    """sqrt(min SC * min PQ), on the scores' own scale."""
    return math.sqrt(min(sc) * min(pq))


def judge(sc: Sequence[Reply], pq: Sequence[Reply]) -> Judgement:
    """The judgement of K passes; a question that was not asked has no replies."""
    asked = [replies for replies in (sc, pq) if replies]
    passes = [p for p in zip(*asked) if all(r.valid for r in p)]
    if not passes:
        problem = next(r.problem for replies in asked for r in replies if not r.valid)
        return Judgement(sc_replies=tuple(sc), pq_replies=tuple(pq), problem=problem)
    mean = lambda i: tuple(statistics.fmean(p[i].scores[n] for p in passes) for n in (0, 1))
    both = [overall(p[0].scores, p[1].scores) for p in passes] if len(asked) == 2 else []
    return Judgement(
        sc=mean(0) if sc else None,
        pq=mean(-1) if pq else None,
        overall=statistics.fmean(both) if both else None,
        overall_std=statistics.pstdev(both) if both else None,
        sc_replies=tuple(sc),
        pq_replies=tuple(pq),
    )


@dataclasses.dataclass(frozen=True)
class Ask:
    """One distinct prompt: its content's digest, its measured example, the bucket it is computed in."""

    digest: bytes
    question: Question
    measured: Measured
    bucket: Bucket

    @property
    def number(self) -> int:
        """What its random numbers come from."""
        return int.from_bytes(self.digest[:4], "big") >> 1


class EditScore:
    """The reward model, loaded and ready.

    Args:
      model: Qwen25VL with loaded weights.
      tokenizer: its tokenizer.
      prompts: the texts that it was trained with.
      images: how images become patches.
      sampling: default greedy. `passes` (K) answers a question share one prefill.
      rows: prompts a batch; fewer prompts than that run in the next power of two (on a mesh, always in `rows`).
      mesh: where the weights are sharded; `rows` must then divide over its data axes.
    """

    def __init__(
        self,
        model: Qwen25VL,
        tokenizer: Any,
        *,
        prompts: Prompts,
        images: ImageSettings,
        sampling: Sampling | None = None,
        passes: int = 1,
        rows: int = 128,
        seed: int = 0,
        mesh: Any = None,
    ):
        stops = {tokenizer.convert_tokens_to_ids(t) for t in (END, "<|endoftext|>")} - {None}
        sampling = dataclasses.replace(sampling or greedy(512), stop_tokens=tuple(sorted(stops)))
        if passes > 1 and sampling.temperature == 0:
            raise ValueError(f"{passes} greedy passes are all the same: give a temperature")
        self.cfg, self.tokenizer, self.prompts, self.images = model.cfg, tokenizer, prompts, images
        self.passes, self.rows, self.mesh = passes, rows, mesh
        self.generator = Generator(model, sampling, samples=passes, seed=seed, mesh=mesh)
        self._encode = TextEncoder(tokenizer)
        self._buckets: list[Bucket] = []

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        revision: str | None = None,
        prompts: str | Prompts | None = None,
        dtype: Any = None,
        merge: bool = True,
        mesh: Any = None,
        **settings: Any,
    ) -> "EditScore":
        """From a model folder, or an adapter folder (its base read from `base`, else from where the adapter says).

        The prompts and the pixel budget are those stored in `edit_rl.json`, else "standard" and 512 x 512. `dtype`:
        default fp32 on CPU, bf16 elsewhere. `merge` folds the adapter into the weights; `settings`: the constructor's.
        Raises WeightsError or FileNotFoundError.
        """
        folder = weights.local_folder(folder, revision)
        adapter = peft.read_adapter(folder) if (folder / peft.CONFIG).exists() else None
        home = _base_folder(folder, base, adapter) if adapter else folder
        cfg = Config.from_hf(home)
        model = load_model(cfg, home, adapter and (folder, adapter), dtype=dtype, merge=merge, mesh=mesh)
        stored = next((json.loads((f / METADATA).read_text()) for f in (folder, home) if (f / METADATA).exists()), {})
        if prompts is not None:
            texts = get(prompts)
        else:
            texts = Prompts.from_json(stored["prompts"]) if stored.get("prompts") else get("standard")
        budget = stored.get("images", {})
        has = lambda name: folder if (folder / name).exists() else home
        images = ImageSettings()
        if (has("preprocessor_config.json") / "preprocessor_config.json").exists():
            images = ImageSettings.from_hf(has("preprocessor_config.json"), **(budget or {"max_pixels": 512 * 512}))
        tokenizer = load_tokenizer(has("tokenizer.json"))
        return cls(model, tokenizer, prompts=texts, images=images, mesh=mesh, **settings)

    def score(
        self, items: Sequence[Triple], *, questions: Sequence[Question] = ("sc", "pq"), progress: bool = True
    ) -> list[Judgement]:
        """Judges (source, edited, instruction) triples, in order; images are encoded bytes or uint8 [H, W, 3].

        `questions`: ask only for some of the scores. Never raises for an item: what cannot be read is not valid.
        """
        asks: dict[bytes, Ask] = {}
        wanted: list[dict[Question, bytes] | str] = []
        for i, (source, edited, instruction) in enumerate(items):
            try:
                digests = {}
                for q in questions:
                    parts = self.prompts.build(q, instruction, (source, edited) if q == "sc" else (edited,))
                    digests[q] = _digest(q, *parts)
                    if digests[q] not in asks:
                        asks[digests[q]] = self._ask(digests[q], q, Example(parts, "", f"item {i}"))
                wanted.append(digests)
            except ValueError as error:  # RecordError and ImageError are ValueErrors
                wanted.append(str(error))
        replies = self._answers(list(asks.values()), progress)
        out = []
        for digests in wanted:
            found = digests if isinstance(digests, str) else {q: replies[d] for q, d in digests.items()}
            faults = [found] if isinstance(found, str) else [f for f in found.values() if isinstance(f, str)]
            out.append(Judgement(problem=faults[0]) if faults else judge(found.get("sc", ()), found.get("pq", ())))
        return out

    def _ask(self, digest: bytes, question: Question, example: Example) -> Ask:
        measured = measure_example(example, self._encode, self.cfg.image_token_id, self.images)
        return Ask(digest, question, measured, prompt_bucket(len(measured.tokens), measured.grids, self.cfg.vision))

    def _answers(self, asks: list[Ask], progress: bool) -> dict[bytes, tuple[Reply, ...] | str]:
        """Replies by prompt number; a text instead of replies says why there are none."""
        replies: dict[bytes, tuple[Reply, ...] | str] = {}
        with (
            ThreadPoolExecutor(1) as pool,
            tqdm(total=len(asks), desc="scoring", unit="prompt", disable=None if progress else True) as bar,
        ):
            batches = self._batches(asks, replies)
            following = pool.submit(next, batches, None)
            while (batch := following.result()) is not None:
                following = pool.submit(next, batches, None)  # the host prepares one batch ahead
                arrays, part = batch
                out = self.generator(
                    arrays, _padded([a.number for a in part], len(arrays["tokens"])), purpose=PURPOSE[part[0].question]
                )
                tokens, stopped = np.asarray(out.tokens), np.asarray(out.stopped).tolist()
                for r, ask in enumerate(part):
                    replies[ask.digest] = tuple(self._reply(t, s) for t, s in zip(tokens[r], stopped[r]))
                bar.update(len(part))
        return replies

    def _batches(self, asks: list[Ask], replies: dict) -> Iterator[tuple[dict[str, np.ndarray], list[Ask]]]:
        """Batches of one bucket and one question each; an image that fails to decode becomes an entry of `replies`."""
        groups: dict[tuple, list[Ask]] = {}
        for ask in asks:
            groups.setdefault((ask.question, ask.bucket), []).append(ask)
        for (_, bucket), group in groups.items():
            for start in range(0, len(group), self.rows):
                part, good = group[start : start + self.rows], []
                rows = self.rows if self.mesh is not None else _rows(len(part), self.rows)
                arrays = empty_batch(bucket, rows, self.cfg.vision.patch_dim)
                for ask in part:
                    try:
                        encoded = encode_measured(ask.measured, self.cfg, self.images)
                    except (ImageError, RecordError) as error:
                        replies[ask.digest] = str(error)
                        continue
                    write_row(arrays, len(good), [encoded], self.cfg)
                    good.append(ask)
                if good:
                    yield arrays, good

    def _reply(self, tokens: np.ndarray, stopped: bool) -> Reply:
        ids = tokens[tokens >= 0]
        return parse(self.tokenizer.decode(ids[:-1] if stopped else ids))


def load_model(
    cfg: Config,
    folder: str | Path,
    adapter: tuple[Path, peft.Adapter] | None = None,
    *,
    dtype: Any = None,
    merge: bool = True,
    mesh: Any = None,
    attention: str | None = None,
) -> Qwen25VL:
    """Qwen2.5-VL with the weights of a folder and, if given, an adapter (folder, description); for inference."""
    dtype = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    lora = None
    if adapter:
        _, a = adapter
        lora = LoRAConfig(rank=a.rank, alpha=a.alpha, vision=a.vision, merger=a.merger)
    make = lambda lora: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=lora, dtype=dtype, attention=attention, remat="none")
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: make(lora)))
    places = shardings(abstract, mesh) if mesh is not None else None
    state = weights.load(folder, abstract, places)
    if adapter:
        state = peft.load(adapter[0], state, places)
        if merge:
            graphdef, state = nnx.split(nnx.eval_shape(lambda: make(None)))[0], peft.merge(state, adapter[1].scale)
    return nnx.merge(graphdef, state)


def prompt_bucket(tokens: int, grids: Sequence[tuple[int, int, int]], vision: VisionConfig) -> Bucket:
    """The shapes a prompt is computed in: rounded up by an eighth of the next power of two, at least 32 tokens."""
    group, patches = vision.window_tokens, sum(math.prod(g) for g in grids)
    slots = -(-patches // group) * group
    while not VisionRows(Bucket(tokens, 1, slots, 1), vision).place(grids):
        slots += group
    return Bucket(_ladder(tokens, 32), 1, _ladder(slots, group) if slots else group, 1)


def _ladder(n: int, unit: int) -> int:
    step = max(unit, (1 << max(n - 1, 1).bit_length()) // 8 // unit * unit)
    return -(-n // step) * step


def _rows(n: int, most: int) -> int:
    return min(most, 1 << (n - 1).bit_length())


def _padded(numbers: list[int], rows: int) -> np.ndarray:
    return np.array(numbers + [0] * (rows - len(numbers)), np.int32)


def _digest(*content: Any) -> bytes:
    """Names a prompt by its content."""
    digest = hashlib.sha256()
    for piece in content:
        shape = str(piece.shape) if isinstance(piece, np.ndarray) else type(piece).__name__
        data = piece.encode() if isinstance(piece, str) else piece if isinstance(piece, bytes) else piece.tobytes()
        digest.update(f"{shape} {len(data)}:".encode() + data)
    return digest.digest()


def _base_folder(folder: Path, base: str | Path | None, adapter: peft.Adapter) -> Path:
    """Where an adapter's base is: as told, else as the adapter says: from here, from the adapter, or one that the
    package carries (its folder was another on the machine that trained)."""
    said = base or adapter.config.get("base_model_name_or_path")
    if not said:
        raise FileNotFoundError(f"{folder} names no base model: give one")
    packaged = Path(__file__).parents[2] / "assets" / Path(said).name
    for found in () if base or Path(said).is_dir() else (folder / said, packaged):
        if found.is_dir():
            return found
    return weights.local_folder(said, None if base else adapter.config.get("revision"))
