"""EditReward as a judge: edits in, a Gaussian for each dimension out, from one forward pass.

A prompt a dimension, which ends in the reward token; both prompts of an edit share its images, and the edits of one
source and instruction share the source (`vlm.engine.read`). Facts: arXiv 2509.26346.
"""

import dataclasses
import json
import math
from collections.abc import Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from tqdm import tqdm

from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.base import Dimension, Edit, Judgement
from edit_rl_jax.rewards.editreward import prompts as texts
from edit_rl_jax.rewards.editreward import weights
from edit_rl_jax.rewards.editreward.heads import FUSIONS, fuse
from edit_rl_jax.rewards.editreward.model import Reward, of
from edit_rl_jax.rewards.editreward.options import Options
from edit_rl_jax.rewards.editreward.prompts import Prompts
from edit_rl_jax.vlm import loading
from edit_rl_jax.vlm.engine.prompt import Prompt
from edit_rl_jax.vlm.engine.read import Reader
from edit_rl_jax.vlm.family import Architecture
from edit_rl_jax.vlm.image_prompts import ImagePrompts, digest
from edit_rl_jax.vlm.patches import ImageSettings

POSITIONS = ("mrope", "1d")
RELEASED_PIXELS = 448 * 448  # of their images, at least and at most


def read_heads(model: Any, hidden: Float[Array, "B D"]) -> Float[Array, "B H 2"]:
    """Reads every dimension's head at the prompts' last tokens: fp32 (mean, log standard deviation)."""
    every = jnp.broadcast_to(hidden[None, :, None], (model.reward.dimensions, len(hidden), 1, hidden.shape[-1]))
    return jnp.moveaxis(model.gaussians(every)[:, :, 0], 0, 1)


class EditReward:
    """The reward model, loaded and ready; a judge (`rewards.base`).

    Args:
      model: with loaded weights (`model.with_heads`).
      tokenizer: its tokenizer, with the reward token.
      prompts: the texts that it was trained with; their dimensions are its heads', in order.
      images: how images become patches.
      fusion: of the dimensions (see `heads.fuse`); "none": no overall figure.
      positions: "mrope", or "1d" (see `vlm.image_prompts`).
      rows: prompts read side by side, two an edit; on a mesh they divide over its data axes.
      shared: fixes the compiled shape for all calls (see `Reader.read`); default: what suits the call.
      mesh: where the weights are sharded.
      engine: further settings of `vlm.engine.read.Reader`.
    """

    Options = Options
    device_images = True
    asks_base = False  # a base has no heads to ask
    weights: tuple[Path, Path | None] | None = None  # folder and base that it was loaded from

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        prompts: Prompts,
        images: ImageSettings,
        fusion: str = "mean",
        positions: str = "mrope",
        rows: int = 64,
        shared: int = 0,
        mesh: Any = None,
        **engine: Any,
    ):
        if fusion not in FUSIONS or positions not in POSITIONS:
            raise ValueError(f"fusion is one of {FUSIONS}, positions of {POSITIONS}, not {fusion!r}, {positions!r}")
        if len(prompts.dimensions) != model.reward.dimensions:
            raise ValueError(f"{model.reward.dimensions} heads, but prompts for {', '.join(prompts.dimensions)}")
        self.cfg, self.tokenizer, self.prompts, self.images = model.cfg, tokenizer, prompts, images
        self.fusion, self.positions, self.rows, self.shared, self.mesh = fusion, positions, rows, shared, mesh
        self.engine = Reader(model, read_heads, prompts=rows, mesh=mesh, **engine)
        self._make = ImagePrompts(model.cfg, tokenizer, images, positions)

    @classmethod
    def load(
        cls,
        folder: str | Path,
        *,
        base: str | Path | None = None,
        revision: str | None = None,
        prompts: str | Prompts | None = None,
        fusion: str = "",
        positions: str = "",
        dtype: Any = None,
        merge: bool = True,
        mesh: Any = None,
        verify: bool = True,
        **settings: Any,
    ) -> "EditReward":
        """From a model folder with heads, or an adapter folder (its base read from `base`, else from where it says).

        Prompts, fusion, positions and pixel budget are those stored in `edit_rl.json`; released weights have none: they
        are read with what they were trained with, and their prompts must be said. `dtype`: default fp32 on CPU, bf16
        elsewhere; the heads are fp32. `merge` folds the adapter in; `verify`: compare an export's files with their
        SHA-256 first (see `nn.model_files`); `settings`: the constructor's.
        Raises WeightsError, one line that names the file, or FileNotFoundError.
        """
        found = loading.open_model(folder, base, revision=revision, verify=verify)
        stored, how, images = found.metadata, weights.RELEASED, found.images
        if stored:
            how = {"fusion": "mean", "positions": "mrope"} | dict(model_files.section(stored, "heads", found.where))
        else:
            images = dataclasses.replace(images, min_pixels=RELEASED_PIXELS, max_pixels=RELEASED_PIXELS)
        how = {"fusion": fusion or how["fusion"], "positions": positions or how["positions"]}
        try:
            chosen = _prompts(prompts, stored)
            model = weights.load(found, dtype=dtype, merge=merge, mesh=mesh)
            made = cls(model, found.tokenizer, prompts=chosen, images=images, mesh=mesh, **how, **settings)
        except (KeyError, ValueError) as e:
            raise e if isinstance(e, WeightsError) else WeightsError(f"{found.where}: {e.args[0]}") from None
        made.weights = found.folders
        return made

    @classmethod
    def from_folder(
        cls, folder: Path, options: Options, *, base: str | Path | None = None, mesh: Any = None, verify: bool = True
    ) -> "EditReward":
        """Loads a folder as `rewards.judges` asks for it. Raises as `load`."""
        return cls.load(folder, base=base, mesh=mesh, verify=verify, **vars(options))

    architecture = staticmethod(loading.architecture)

    @staticmethod
    def network(cfg: Architecture) -> tuple[Any, Any]:
        """Gives, for plans, the class of the network that scores and what is read of it (see `plan.scoring`)."""
        return partial(of(cfg), reward=Reward(cfg.vocab_size - 1, row=False)), read_heads

    def dimensions(self) -> tuple[str, ...]:
        """Names what is rated, in the order of the heads."""
        return self.prompts.dimensions

    def settings(self) -> dict[str, Any]:
        """Returns what decides the figures. How many are read side by side, and on which devices, is not among them: it
        changes rounding only."""
        found = {
            "weights_sha256": model_files.fingerprint(*self.weights) if self.weights else None,
            "prompts": self.prompts.name,
            "prompts_sha256": self.prompts.sha256,
            "images": dataclasses.asdict(self.images),
            "fusion": self.fusion,
            "positions": self.positions,
        }
        return json.loads(json.dumps(found))

    def score(
        self, edits: Sequence[Edit], *, only: Collection[str] | None = None, progress: bool = True
    ) -> list[Judgement]:
        """Judges edits of one source, in order: mean and standard deviation of each dimension and of all together.

        Images are encoded bytes or [H, W, 3]: uint8 on the host or the device, or float on [0, 1] on the device, where
        they stay. `only`: the prompts of these dimensions; without all of them there is no overall figure. Never raises
        for an edit: what cannot be read is not valid. Raises ValueError for another dimension.
        """
        known = self.dimensions()
        if not set(only or ()) <= set(known):
            raise ValueError(
                f"dimensions are {', '.join(known)}, not {', '.join(sorted(set(only or ()) - set(known)))}"
            )
        asked: dict[bytes, tuple[Any, Prompt]] = {}  # prompts in the order in which they share most
        wanted: list[dict[str, bytes] | str] = []
        groups: dict[bytes, int] = {}
        for i, edit in enumerate(edits):
            try:
                names, group = {}, groups.setdefault(self._shared_by(edit), i)
                for d, parts in self._parts(edit).items():
                    if only is None or d in only:
                        name = names[d] = digest(d, *parts)
                        if name not in asked:
                            asked[name] = ((group, i), self._prompt(parts, f"item {i}"))
                wanted.append(names)
            except ValueError as error:  # RecordError and ImageError are ValueErrors
                wanted.append(str(error))
        read = self._read(dict(sorted(asked.items(), key=lambda a: a[1][0])), progress)
        return [self._judgement(w if isinstance(w, str) else {d: read[name] for d, name in w.items()}) for w in wanted]

    def prompts_of(self, edit: Edit, key: str = "edit") -> dict[str, Prompt]:
        """Makes the prompts of an edit, by dimension. Raises ValueError, naming `key`, for one that cannot be read."""
        return {d: self._prompt(parts, key) for d, parts in self._parts(edit).items()}

    def _parts(self, edit: Edit) -> dict[str, texts.Parts]:
        return self.prompts.build(edit.only_source("EditReward"), edit.edited, edit.instruction)

    def _prompt(self, parts: texts.Parts, key: str) -> Prompt:
        return self._make.make(parts, key, after_last=True)

    def _shared_by(self, edit: Edit) -> bytes:
        """Names what the prompts of an edit have before its edited image."""
        return digest(edit.only_source("EditReward"), self.prompts.before and edit.instruction)

    def _read(self, asked: dict[bytes, tuple[Any, Prompt]], progress: bool) -> dict[bytes, np.ndarray | str]:
        """What the heads [H, 2] say at the end of each prompt, or why nothing."""
        names, out = list(asked), {}
        with tqdm(total=len(asked), desc="scoring", unit="prompt", disable=None if progress else True) as bar:
            for one in self.engine.read([p for _, p in asked.values()], shared=self.shared):
                out[names[one.index]] = one.value if one.problem is None else str(one.problem)
                bar.update()
        return out

    def _judgement(self, found: Mapping[str, np.ndarray | str] | str) -> Judgement:
        faults = [found] if isinstance(found, str) else [f for f in found.values() if isinstance(f, str)]
        if faults:
            return Judgement(problem=faults[0])
        known = self.dimensions()
        gaussians = {d: np.asarray(heads, np.float64)[known.index(d)] for d, heads in found.items()}
        if len(gaussians) == len(known) and self.fusion != "none":
            gaussians["overall"] = fuse(np.stack([gaussians[d] for d in known]), self.fusion, np)
        if not all(np.isfinite(g).all() and g[1] < math.log(1e30) for g in gaussians.values()):
            return Judgement(problem="the heads' figures are not finite")
        figures = {d: Dimension(float(mean), math.exp(spread)) for d, (mean, spread) in gaussians.items()}
        overall = figures.pop("overall", None)
        return Judgement(figures, overall)


def _prompts(said: str | Prompts | None, stored: Mapping[str, Any]) -> Prompts:
    """Those that are said, else those stored. Raises KeyError or ValueError."""
    if said is not None:
        return texts.get(said)
    if stored.get("prompts") is None:
        raise ValueError("no prompts are stored with the model: say which it was trained with (upstream:FOLDER)")
    return texts.from_json(stored["prompts"])
