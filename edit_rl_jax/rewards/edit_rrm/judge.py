"""The verifier as a judge: an edit and its principles in, written verdicts and a final score out, by generation.

Equal prompts are asked once, an image is encoded once, and the K passes, and the edits of one source, instruction and
set of principles, share their prefill (`vlm.engine`). An item's random numbers come from its content. Paper: arXiv
2604.27505.
"""

import dataclasses
import hashlib
import json
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data import principles as sets
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.principles import Principles
from edit_rl_jax.data.records import CATEGORIES, Principle
from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards import writing
from edit_rl_jax.rewards.base import Edit, Judgement
from edit_rl_jax.rewards.edit_rrm import aggregate
from edit_rl_jax.rewards.edit_rrm import prompts as texts
from edit_rl_jax.rewards.edit_rrm.aggregate import DIMENSIONS, Pass
from edit_rl_jax.rewards.edit_rrm.constrained import Forms
from edit_rl_jax.rewards.edit_rrm.expected import digits, probabilities
from edit_rl_jax.rewards.edit_rrm.options import Options
from edit_rl_jax.rewards.edit_rrm.prompts import MODES, Prompts
from edit_rl_jax.rewards.edit_rrm.replies import KINDS, WEIGHTS, Reply, parse
from edit_rl_jax.vlm import loading
from edit_rl_jax.vlm.engine.engine import Answer, Engine
from edit_rl_jax.vlm.engine.prompt import Prompt, Shape
from edit_rl_jax.vlm.engine.sampler import TokenSampling
from edit_rl_jax.vlm.image_prompts import ImagePrompts, digest
from edit_rl_jax.vlm.patches import ImageSettings

log = logging.getLogger(__name__)

_INSTRUCTIONS = ("make it red", "Zoom", "7 more", "(none)", "“Wow”", "一 added", ".", "\tx")  # that begin differently


class EditRRM:
    """The verifier, loaded and ready; a judge (`rewards.base`).

    The principles of an edit are those of its `extras["principles"]` (`data.principles.from_json`), else those of
    `sets` (by its `extras["principles_id"]`, else the id of its source's bytes and instruction), where there are no
    sets the generic ones of the prompts, with a warning; the detail `principles_from` says which: "edit", "file" or
    "generic".

    Args:
      model: with loaded weights (`vlm.family.Decoder`).
      tokenizer: its tokenizer.
      prompts: the texts that it was trained with.
      images: how images become patches.
      mode: what a reply holds, of `prompts.MODES`. "think" has the dimension "score" alone, and no principles.
      reward: the overall figure, of `replies.KINDS`; weights: of its "categories".
      sets: principles by `data.principles.principles_id`; sets_sha256: of the file that they are from.
      expected: verdicts are probabilities (see `expected`); the final score stays what was written.
      constrained: only a valid reply can be written (see `constrained`).
      sampling: default greedy. `passes` (K) replies share one prefill.
      rows: replies written side by side (fewer in a small call; on a mesh always all of them).
      retries: how often a sampled reply that cannot be read is written anew, with other random numbers.
      shape: fixes the compiled shape for all calls (`engine.Shape`), with room for forms where replies are constrained;
        default: what suits the call.
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
        mode: str = "think_verify",
        reward: str = "score",
        category_weights: Mapping[str, float] = WEIGHTS,
        sets: Mapping[str, Principles] | None = None,
        sets_sha256: str = "",
        expected: bool = False,
        constrained: bool = False,
        sampling: TokenSampling | None = None,
        passes: int = 1,
        rows: int = 32,
        retries: int = 2,
        seed: int = 0,
        shape: Shape | None = None,
        mesh: Any = None,
        **engine: Any,
    ):
        sampling = writing.ended(sampling, tokenizer)
        if mode not in MODES or reward not in KINDS:
            raise ValueError(f"mode is one of {MODES}, reward of {KINDS}, not {mode!r}, {reward!r}")
        if mode == "think" and (reward != "score" or expected):
            raise ValueError("replies in mode think have no verdicts: their reward is the score")
        if passes > 1 and sampling.temperature == 0:
            raise ValueError(f"{passes} greedy passes are all the same: give a temperature")
        self.cfg, self.tokenizer, self.prompts, self.images = model.cfg, tokenizer, prompts, images
        self.mode, self.reward, self.category_weights = mode, reward, dict(category_weights)
        self.sets, self.sets_sha256, self.expected = dict(sets or {}), sets_sha256, expected
        self._digits, self._warned = digits(tokenizer) if expected else (), False
        self.passes, self.rows, self.mesh, self.shape, self.seed = passes, rows, mesh, shape, seed
        self.retries = retries if sampling.temperature > 0 else 0  # a greedy reply stays what it is
        self.sampling, self.forms = sampling, Forms(tokenizer, model.cfg.vocab_size, mode) if constrained else None
        engine |= {"automaton": self.forms.automaton} if self.forms else {}
        self.engine = Engine(model, sampling, slots=rows, seed=seed, mesh=mesh, **engine)
        self._make = ImagePrompts(model.cfg, tokenizer, images)
        begin = lambda i: str(prompts.build(b"", b"", i, [Principle(i, CATEGORIES[0])], mode)[0])
        self._stem = self._make.stem([begin(i) for i in _INSTRUCTIONS])

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
    ) -> "EditRRM":
        """From a model folder, or an adapter folder (its base read from `base`, else from where the adapter says).

        The prompts and the pixel budget are those stored in `edit_rl.json`, else "standard" and 512 x 512. `dtype`:
        default fp32 on CPU, bf16 elsewhere. `merge` folds the adapter into the weights; `verify`: compare an export's
        files with their SHA-256 first (see `nn.model_files`); `settings`: the constructor's.
        Raises WeightsError, one line that names the file, or FileNotFoundError.
        """
        found = loading.open_model(folder, base, revision=revision, verify=verify)
        try:
            chosen = texts.get(prompts) if prompts else texts.choose(stored=found.metadata.get("prompts"))
        except (KeyError, ValueError) as e:
            raise WeightsError(f"{found.where}: {e.args[0]}") from None
        model = found.load(dtype=dtype, merge=merge, mesh=mesh)
        made = cls(model, found.tokenizer, prompts=chosen, images=found.images, mesh=mesh, **settings)
        made.weights = found.folders
        return made

    @classmethod
    def from_folder(
        cls, folder: Path, options: Options, *, base: str | Path | None = None, mesh: Any = None, verify: bool = True
    ) -> "EditRRM":
        """Loads a folder as `rewards.judges` asks for it. Raises as `load`, and for a malformed file of sets as
        `data.principles.read`."""
        same = ("prompts", "mode", "reward", "expected", "constrained", "passes", "retries", "rows", "seed")
        given = {name: getattr(options, name) for name in same} | {"sampling": options.sampling}
        if file := options.principles:
            digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()
            given |= {"sets": sets.read(file), "sets_sha256": digest}
        return cls.load(folder, base=base, mesh=mesh, verify=verify, category_weights=options.weights, **given)

    architecture = staticmethod(loading.architecture)

    def dimensions(self) -> tuple[str, ...]:
        """Names the final score and, where there are verdicts, their mean and the means of the categories."""
        return DIMENSIONS[:1] if self.mode == "think" else DIMENSIONS

    def settings(self) -> dict[str, Any]:
        """Returns what decides the answers. How many are written side by side, and on which devices, is not among
        them: it changes rounding only."""
        found = {
            "weights_sha256": model_files.fingerprint(*self.weights) if self.weights else None,
            "prompts": self.prompts.name,
            "prompts_sha256": self.prompts.sha256,
            "images": dataclasses.asdict(self.images),
            "mode": self.mode,
            "reward": self.reward,
            "category_weights": self.category_weights,
            "principles_sha256": self.sets_sha256,
            "expected": "of both digits" if self.expected else False,  # True was by the written digit alone
            "sampling": dataclasses.asdict(self.sampling) | {"stop_tokens": ()},
            "passes": self.passes,
            "seed": self.seed,
            "retries": self.retries,
        }
        if self.forms:
            found["constrained"] = True
        return json.loads(json.dumps(found))

    def principles_of(self, edit: Edit) -> tuple[Principles, str]:
        """Finds the principles of an edit, and where they are from. Raises RecordError (a ValueError) for malformed
        ones, and for an edit without any where there are sets."""
        if (stored := edit.extras.get("principles")) is not None:
            return sets.from_json("principles of the edit", stored), "edit"
        source = edit.only_source("EditRRM")
        name = edit.extras.get("principles_id")
        if not name and isinstance(source, bytes) and self.sets:
            name = sets.principles_id(source, edit.instruction)
        if isinstance(name, str) and name in self.sets:
            return self.sets[name], "file"
        if self.sets or self.sets_sha256:
            raise RecordError(
                "principles", "no principles", "the file of sets has none for this source and instruction"
            )
        return self.prompts.generic_principles, "generic"

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges edits of one source, in order.

        Images are encoded bytes or [H, W, 3]: uint8 on the host or the device, or float on [0, 1] on the device, where
        they stay. One reply tells all dimensions, whatever `only` names. Never raises for an edit: what cannot be read
        is not valid. Raises ValueError for another dimension.
        """
        if unknown := set(only or ()) - set(self.dimensions()):
            raise ValueError(f"dimensions are {', '.join(self.dimensions())}, not {', '.join(sorted(unknown))}")
        asked: dict[bytes, tuple[Any, Prompt, Principles]] = {}  # the first in the order in which prompts share most
        wanted: list[tuple[bytes, Principles, str] | str] = []
        groups: dict[bytes, int] = {}
        for i, edit in enumerate(edits):
            try:
                principles, where = ((), "") if self.mode == "think" else self.principles_of(edit)
                source = edit.only_source("EditRRM")
                parts = self.prompts.build(source, edit.edited, edit.instruction, principles, self.mode)
                shared = digest(source, edit.instruction, *(p.question for p in principles))
                name, group = digest(*parts), groups.setdefault(shared, i)
                if name not in asked:
                    number = int.from_bytes(name[:4], "big") >> 1
                    prompt = self._make.make(parts, f"item {i}", heads=[self._stem], item=number)
                    asked[name] = ((group, i), self._formed(prompt, principles), principles)
                wanted.append((name, principles, where))
            except ValueError as error:  # RecordError and ImageError are ValueErrors
                wanted.append(str(error))
        if (generic := sum(w[2] == "generic" for w in wanted if not isinstance(w, str))) and not self._warned:
            log.warning("%d of %d edits have no principles of their own: generic ones stand in", generic, len(edits))
            self._warned = True
        found = self._answers(dict(sorted(asked.items(), key=lambda a: a[1][0])), progress)
        return [self._judgement(w, found) for w in wanted]

    def _formed(self, prompt: Prompt, principles: Principles) -> Prompt:
        """The prompt with the form of its replies, where they are constrained. Raises ValueError where none fits."""
        if self.forms is None:
            return prompt
        form = self.forms.of(tuple(principles))
        if (needed := self.forms.needed(form)) > self.sampling.max_new_tokens:
            said = f"of {self.sampling.max_new_tokens} (max_new_tokens)"
            raise ValueError(f"a reply without reasoning takes {needed} tokens {said}")
        return dataclasses.replace(prompt, form=form)

    def _judgement(self, wanted: tuple[bytes, Principles, str] | str, found: Mapping[bytes, Any]) -> Judgement:
        problem = wanted if isinstance(wanted, str) else found[wanted[0]]
        if isinstance(wanted, str) or isinstance(problem, str):
            return Judgement(problem=problem)
        name, principles, where = wanted
        how = {"principles_from": where} if where else {}
        return aggregate.judge(found[name], principles, self.reward, self.category_weights, **how)

    @property
    def first_passes(self) -> Callable[[Judgement, int], Judgement]:
        """Makes of a judgement that of the first k passes; as it is where it has none."""
        return lambda judged, count: aggregate.first(judged, count, self.reward, self.category_weights)

    def _answers(self, asked: dict[bytes, tuple[Any, Prompt, Principles]], progress: bool) -> dict[bytes, Any]:
        """Passes by prompt; a text instead says why there are none."""
        each, prompts = list(asked.values()), {name: prompt for name, (_, prompt, _) in asked.items()}
        accept = lambda index, tokens, stopped: self._read(tokens, stopped, each[index][2])[0].valid
        read = lambda name, answer: self._pass(answer, asked[name][2])
        told = tuple(token for side in zip(*self._digits) for token in side)  # all noes, then all yeses
        options = dict(accept=accept, retries=self.retries, shape=self.shape, alternatives=told)
        return writing.answers(self.engine, prompts, read, progress, answers=self.passes, **options)

    def _read(self, tokens: np.ndarray, stopped: bool, principles: Principles) -> tuple[Reply, int]:
        """A reply, and the token with which begins what is read of it: after the reasoning where that is known."""
        start, n = self.forms.begins(tokens) if self.forms else 0, len(tokens) - stopped
        reply = parse(self.tokenizer.decode(tokens[start:n]), principles, self.mode)
        if start:
            reply = dataclasses.replace(reply, reasoning=self.tokenizer.decode(tokens[:start]).strip())
        return reply, start

    def _pass(self, one: Answer, principles: Principles) -> Pass:
        reply, start = self._read(one.tokens, one.stopped, principles)
        if not reply.valid or not self.expected:
            return Pass(reply, None, reply.problem)
        assert one.alternatives is not None
        within = slice(start, len(one.tokens) - one.stopped)
        log_probs = one.alternatives[:, within].reshape(2, len(self._digits), -1)
        told = (self._digits, one.tokens[within], log_probs)
        return Pass(reply, *probabilities(reply, principles, self.mode, self.tokenizer, *told))
