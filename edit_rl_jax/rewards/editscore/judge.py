"""EditScore as a judge: edits in, written scores out, by generation.

Equal prompts are asked once, an image is encoded once, the K passes and the edits of one source share their prefill
(`vlm.engine`). An item's random numbers come from its content, so neither its place nor its company changes
them. Facts: arXiv 2509.23909, section 3.
"""

import dataclasses
import json
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards import writing
from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.editscore.aggregate import DIMENSIONS, judge, questions_of, replies
from edit_rl_jax.rewards.editscore.constrained import reply_automaton
from edit_rl_jax.rewards.editscore.expected import Expected, ScoreTree, judge_expected
from edit_rl_jax.rewards.editscore.named_prompts import from_json, get
from edit_rl_jax.rewards.editscore.options import Options
from edit_rl_jax.rewards.editscore.parsing import Reply, parse
from edit_rl_jax.rewards.editscore.prompts import Prompts, Question
from edit_rl_jax.rewards.editscore.questions import Questions, digest
from edit_rl_jax.vlm import loading
from edit_rl_jax.vlm.engine.engine import Answer, Engine
from edit_rl_jax.vlm.engine.prompt import Prompt, Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.patches import ImageSettings


def stored_prompts(stored: dict[str, Any], where: str) -> Prompts:
    """The texts in the content of a folder's `edit_rl.json`, else "standard". Raises WeightsError naming `where`."""
    try:
        return get("standard") if stored.get("prompts") is None else from_json(stored["prompts"])
    except ValueError as e:
        raise WeightsError(f"{where}: {e}") from None


class EditScore:
    """The reward model, loaded and ready; a judge (`rewards.base`).

    Args:
      model: with loaded weights (`vlm.family.Decoder`).
      tokenizer: its tokenizer.
      prompts: the texts that it was trained with.
      images: how images become patches.
      sampling: default greedy. `passes` (K) answers a question share one prefill.
      rows: answers written side by side (fewer in a small call: 2, 8, 32, ...; on a mesh always all of them).
      retries: how often a sampled answer that cannot be read is written anew, with other random numbers.
      expected: "" scores as they are written; "reasoned": their expectation after the reasoning that was written;
        "empty": their expectation without one, from a single pass and no decoding (see `expected`).
      constrained: only a valid reply can be written (see `constrained`).
      reduction: of the passes, "average_last" or "average_first" (see `aggregate`).
      shape: fixes the compiled shape for all calls (`engine.Shape`); default: what suits the call.
      mesh: where the weights are sharded; `rows` must then divide over its data axes.
      engine: further settings of `vlm.engine.engine.Engine`.
    """

    Options = Options
    device_images = True
    weights: tuple[Path, Path | None] | None = None  # folder and base that it was loaded from

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompts: Prompts,
        images: ImageSettings,
        sampling: TokenSampling | None = None,
        passes: int = 1,
        rows: int = 128,
        retries: int = 2,
        expected: str = "",
        constrained: bool = False,
        reduction: str = "average_last",
        seed: int = 0,
        shape: Shape | None = None,
        mesh: Any = None,
        **engine: Any,
    ):
        sampling = writing.ended(sampling, tokenizer)
        if expected not in ("", "reasoned", "empty"):
            raise ValueError(f"expected is '', 'reasoned' or 'empty', not {expected!r}")
        if passes > 1 and (sampling.temperature == 0 or expected == "empty"):
            raise ValueError(f"{passes} greedy passes are all the same: give a temperature")
        if expected and reduction != "average_last":
            raise ValueError(f"expected scores are averaged last, not by reduction {reduction!r}")
        self.cfg, self.tokenizer, self.prompts, self.images = model.cfg, tokenizer, prompts, images
        self.passes, self.rows, self.mesh, self.reduction, self.shape = passes, rows, mesh, reduction, shape
        self.retries = retries if sampling.temperature > 0 else 0  # a greedy answer stays what it is
        self.sampling, self.seed, self.constrained = sampling, seed, constrained
        self.expected, self.scores = expected, ScoreTree(tokenizer) if expected else None
        engine["tree"] = self.scores and self.scores.tree
        engine["automaton"] = reply_automaton(tokenizer, model.cfg.vocab_size) if constrained else None
        self.engine = Engine(model, sampling, slots=rows, seed=seed, mesh=mesh, **engine)
        opening = self.scores.opening if expected == "empty" else ()
        self.questions = Questions(model.cfg, tokenizer, prompts, images, opening)

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
        verify: bool = True,
        **settings: Any,
    ) -> "EditScore":
        """From a model folder, or an adapter folder (its base read from `base`, else from where the adapter says).

        The prompts and the pixel budget are those stored in `edit_rl.json`, else "standard" and 512 x 512. `dtype`:
        default fp32 on CPU, bf16 elsewhere. `merge` folds the adapter into the weights; `verify`: compare an export's
        files with their SHA-256 first (see `nn.model_files`); `settings`: the constructor's.
        Raises WeightsError, one line that names the file, or FileNotFoundError.
        """
        found = loading.open_model(folder, base, revision=revision, verify=verify)
        try:
            texts = stored_prompts(found.metadata, found.where) if prompts is None else get(prompts)
        except KeyError as e:
            raise WeightsError(f"{found.where}: {e.args[0]}") from None
        model = found.load(dtype=dtype, merge=merge, mesh=mesh)
        made = cls(model, found.tokenizer, prompts=texts, images=found.images, mesh=mesh, **settings)
        made.weights = found.folders
        return made

    @classmethod
    def from_folder(
        cls, folder: Path, options: Options, *, base: str | Path | None = None, mesh: Any = None, verify: bool = True
    ) -> "EditScore":
        """Loads a folder as `rewards.judges` asks for it. Raises as `load`."""
        drawn = ("prompts", "passes", "reduction", "expected", "constrained", "retries", "rows", "seed")
        given = {name: getattr(options, name) for name in drawn} | {"sampling": options.sampling}
        return cls.load(folder, base=base, mesh=mesh, verify=verify, **given)

    architecture = staticmethod(loading.architecture)

    def dimensions(self) -> tuple[str, ...]:
        """Names the scores of SC and of PQ."""
        return DIMENSIONS

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers. How many are written side by side, and on which devices, is not among
        them: it changes rounding only."""
        found = {
            "weights_sha256": model_files.fingerprint(*self.weights) if self.weights else None,
            "prompts": self.prompts.name,
            "prompts_sha256": self.prompts.sha256,
            "images": dataclasses.asdict(self.images),
            "sampling": dataclasses.asdict(self.sampling) | {"stop_tokens": ()},
            "passes": self.passes,
            "seed": self.seed,
            "expected": self.expected,
            "constrained": self.constrained,
            "retries": self.retries,
            "reduction": self.reduction,
        }
        return json.loads(json.dumps(found))

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges edits of one source, in order.

        Images are encoded bytes or [H, W, 3]: uint8 on the host or the device, or float on [0, 1] on the device, where
        they stay. `only`: of the two questions those that ask for these dimensions. Never raises for an edit:
        what cannot be read is not valid. Raises ValueError for another dimension.
        """
        questions = questions_of(only)
        asked: dict[bytes, tuple[Any, Prompt]] = {}  # prompts in the order in which they share most
        wanted: list[dict[Question, bytes] | str] = []
        groups: dict[bytes, int] = {}
        for i, edit in enumerate(edits):
            try:
                digests, edited, instruction = {}, edit.edited, edit.instruction
                source = edit.only_source("EditScore")
                group = groups.setdefault(digest(source, instruction), i)
                for q in questions:
                    parts = self.questions.parts(q, source, edited, instruction)
                    name = digests[q] = digest(q, *parts)
                    if name not in asked:
                        number = int.from_bytes(name[:4], "big") >> 1
                        asked[name] = ((group, i), self.questions.prompt(q, parts, f"item {i}", number))
                wanted.append(digests)
            except ValueError as error:  # RecordError and ImageError are ValueErrors
                wanted.append(str(error))
        answers = self._answers(dict(sorted(asked.items(), key=lambda a: a[1][0])), progress)
        out = []
        for digests in wanted:
            found = digests if isinstance(digests, str) else {q: answers[d] for q, d in digests.items()}
            faults = [found] if isinstance(found, str) else [f for f in found.values() if isinstance(f, str)]
            out.append(Judgement(problem=faults[0]) if faults else self._judgement(found))
        return out

    def _judgement(self, found: dict[Question, tuple[Any, ...]]) -> Judgement:
        sc, pq = found.get("sc", ()), found.get("pq", ())
        return judge_expected(sc, pq) if self.expected else judge(sc, pq, self.reduction, self.prompts.profile)

    @property
    def first_passes(self) -> Callable[[Judgement, int], Judgement] | None:
        """Makes of a judgement that of the first k passes; as it is where it has none. Not for expected scores."""

        def first(judged: Judgement, count: int) -> Judgement:
            sc, pq = replies(judged, count)
            return self._judgement({"sc": sc, "pq": pq}) if sc or pq else judged

        return None if self.expected else first

    def _answers(self, asked: dict[bytes, tuple[Any, Prompt]], progress: bool) -> dict[bytes, tuple[Any, ...] | str]:
        """Replies (`Expected` in that mode) by prompt; a text instead of replies says why there are none."""
        accept = lambda _, tokens, stopped: self._reply(tokens, stopped).valid
        options = dict(answers=self.passes, accept=accept, retries=self.retries, shape=self.shape)
        if self.expected:
            options["branch_at"] = self.scores.opens_at if self.expected == "reasoned" else lambda tokens: -1
        if self.expected == "empty":
            options |= {"limits": lambda index, number: 1}
        prompts = {name: prompt for name, (_, prompt) in asked.items()}
        return writing.answers(self.engine, prompts, lambda _, one: self._read(one), progress, **options)

    def _read(self, one: Answer) -> Reply | Expected:
        if self.expected == "empty":
            return self.scores.expected(Reply(None, "", self.tokenizer.decode(self.scores.opening)), one.branch)
        reply = self._reply(one.tokens, one.stopped)
        return self.scores.expected(reply, one.branch) if self.expected else reply

    def _reply(self, tokens: np.ndarray, stopped: bool) -> Reply:
        return parse(self.tokenizer.decode(tokens[:-1] if stopped else tokens))
