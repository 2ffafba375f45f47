"""The objective `editreward`: which of two edits is preferred, by Gaussian heads. Paper: arXiv 2509.26346.

A sample is a pair: four prompts (two edits by two dimensions) side by side in one row, the preferred edit first; its
three images are encoded once. Each prompt is followed by one token that nobody learns, so that the row's answers stand
for the reward tokens.
"""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.example import Example, Tokens
from edit_rl_jax.data.preferences import disentangled
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, PreferenceRecord, expect
from edit_rl_jax.names import ConfigError
from edit_rl_jax.ranges import knob
from edit_rl_jax.rewards.editreward import losses
from edit_rl_jax.rewards.editreward import prompts as texts
from edit_rl_jax.rewards.editreward.heads import WIDTHS, fuse
from edit_rl_jax.rewards.editreward.prompts import Prompts

EXTRAS = ("prefers", "label", "labelled", "seed")  # of each answer, see `to_examples`
SIDES, DIMENSIONS = 2, len(PREFERENCE_DIMENSIONS)
Metrics = dict[str, tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Options:
    """Says what is learnt from a pair."""

    loss: str = knob("paper", ("paper", "released", "bradley_terry"))  # see `losses`; the last learns ties, not spreads
    labels: str = knob("overall", ("overall", "dimension", "both"))  # of the fused figure, of each dimension, of all
    ties: str = knob("drop", ("drop", "disentangle", "keep"))  # overall ties. disentangle: one whose dimensions
    # disagree is learnt both ways round; keep: as ties, which only bradley_terry learns


class Preference:
    """The objective of a config (see `training.interfaces.Worded`)."""

    SECTIONS = {"preference": Options}

    def __init__(self, options: Options, fusion: str = "mean", dropout: float = 0.0):
        self.options, self.fusion, self.dropout = options, fusion, dropout

    @classmethod
    def configured(cls, config: Any) -> "Preference":
        """Reads `config.preference` and the heads' `config.heads`. Raises ConfigError for what does not fit."""
        if "heads" not in config:
            raise ConfigError(f"objective 'editreward' wants model.kind 'editreward', not '{config.model.kind}'")
        options = Options(**config.preference.to_dict())
        if options.labels != "dimension" and config.heads.fusion == "none":
            raise ConfigError(
                f"config key 'heads.fusion': preference.labels='{options.labels}' learns the fused figure"
            )
        if options.ties == "keep" and options.loss != "bradley_terry":
            raise ConfigError("config key 'preference.ties': only preference.loss='bradley_terry' learns ties")
        return cls(options, config.heads.fusion, config.heads.dropout)

    def choose_prompts(self, name: str, stored: Mapping[str, Any] | None) -> Prompts:
        """Chooses prompts by name, else as stored, else the default ones. Raises KeyError or ValueError."""
        return texts.choose(name, stored)

    def examples_with(self, prompts: str | Prompts) -> Callable[[PreferenceRecord, int], list[tuple[Example, ...]]]:
        """Binds `to_examples` to one set of prompts (picklable)."""
        return partial(self.to_examples, prompts=texts.get(prompts))

    def to_examples(
        self, record: Any, seed: int = 0, *, prompts: str | Prompts = texts.DEFAULT
    ) -> list[tuple[Example, ...]]:
        """Makes the pairs of a PreferenceRecord: none where it has no label that this objective learns.

        Each is (A, first dimension), (A, second), (B, first), (B, second). Arrays of an answer: `prefers` 1, or 0 for a
        tie; `label` 1, 0 or -1, A's against B's in its dimension; `labelled` whether there is one; `seed` of dropout.
        Raises RecordError for another kind of record and for an empty instruction.
        """
        record = expect(record, PreferenceRecord)
        split = self.options.ties == "disentangle" and self.options.labels != "dimension"
        found = disentangled(record) if split else [record]
        try:
            return [self._pair(r, seed, texts.get(prompts)) for r in found if self._learns(r)]
        except ValueError as error:
            raise RecordError(record.key, str(error)) from None

    def _learns(self, record: PreferenceRecord) -> bool:
        ties = self.options.loss == "bradley_terry"
        whole = record.prefers != 0 or (ties and self.options.ties == "keep")
        each = any(a != b or ties for a, b in record.scores.values())
        return (whole and self.options.labels != "dimension") or (each and self.options.labels != "overall")

    def _pair(self, record: PreferenceRecord, seed: int, prompts: Prompts) -> tuple[Example, ...]:
        swap = record.prefers < 0
        edits = record.edited[::-1] if swap else record.edited
        out = []
        for side, edited in zip("ab", edits):
            for d, parts in prompts.build(record.source, edited, record.instruction).items():
                scores = record.scores.get(d)
                label = 0.0 if scores is None else float(np.sign(scores[0] - scores[1])) * (-1 if swap else 1)
                values = (float(record.prefers != 0), label, float(scores is not None), float(seed % 2**24))
                arrays = {k: np.array([v], np.float32) for k, v in zip(EXTRAS, values)}
                out.append(Example(parts, Tokens(np.zeros(1, np.int32), arrays), f"{record.key}/{side}/{d}"))
        return tuple(out)

    def loss(self, model: Any, batch: Mapping[str, Array]) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
        """Sums the losses (nats) of a batch's pairs, with dropout in the heads; also gives the number of labels, and
        metrics: `accuracy` of the fused mean, `DIMENSION_accuracy`, `spread` (mean sigma), and `rows`."""
        return self._loss(model, batch, self.dropout)

    def validation_loss(
        self, model: Any, batch: Mapping[str, Array]
    ) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
        """Sums the losses of a batch as `loss`, without dropout."""
        return self._loss(model, batch, 0.0)

    def _loss(self, model: Any, batch: Mapping[str, Array], dropout: float):
        pairs, real = gaussians(model, batch, dropout)
        used = real.shape[1] * SIDES * DIMENSIONS
        of = lambda name: jnp.asarray(batch[f"answer_{name}"])[:, :used]
        first = lambda name: of(name).reshape(*real.shape, SIDES, DIMENSIONS)[:, :, 0]  # A's, by dimension
        prefers, label, labelled = first("prefers")[..., 0], first("label"), first("labelled")
        a, b = pairs[:, :, 0], pairs[:, :, 1]
        ties = float(self.options.loss == "bradley_terry")
        each = losses.difference(a, b)
        whole = losses.difference(*(fuse(x, "mean" if self.fusion == "none" else self.fusion) for x in (a, b)))
        dropped = float(self.options.ties != "keep")
        one = (1 - ties) * jnp.abs(label) + ties  # a tie teaches what has a probability of ties
        terms = {
            "overall": (whole, 1 - prefers, real * (1 - (1 - prefers) * dropped)),
            "dimension": (each, 1 - jnp.abs(label), real[..., None] * labelled * one),
        }
        parts = []
        for name, ((mean, sigma), tied, weight) in terms.items():
            if self.options.labels in (name, "both"):
                mean = mean * jnp.where(label < 0, -1.0, 1.0) if name == "dimension" else mean
                value = losses.bradley_terry(mean, tied) if ties else getattr(losses, self.options.loss)(mean, sigma)
                parts.append((jnp.where(weight > 0, value * weight, 0.0), weight))
        rows, row_weights = (sum(x.reshape(len(real), -1).sum(1) for x in kind) for kind in zip(*parts))
        metrics = {"accuracy": (whole[0] > 0, real * prefers), "spread": (whole[1], real)}
        for i, name in enumerate(PREFERENCE_DIMENSIONS):
            told = real * labelled[..., i] * jnp.abs(label[..., i])
            metrics[f"{name}_accuracy"] = (each[0][..., i] * label[..., i] > 0, told)
        total = lambda v, w: jax.lax.stop_gradient(jnp.sum(jnp.where(w > 0, v.astype(jnp.float32) * w, 0.0)))
        sums = {k: (total(v, w), jnp.sum(w)) for k, (v, w) in metrics.items()}
        return rows.sum(), row_weights.sum(), sums | {"rows": (jax.lax.stop_gradient(rows), row_weights)}


def gaussians(
    model: Any, batch: Mapping[str, Array], dropout: float = 0.0
) -> tuple[Float[Array, "B n 2 H 2"], Float[Array, "B n"]]:
    """Reads (mean, log standard deviation) of both edits of each pair in each dimension, and which pairs are real.

    The heads see the hidden states of the reward tokens only.
    """
    index = jnp.asarray(batch["answer_index"])
    B, n = len(index), index.shape[1] // (SIDES * DIMENSIONS)
    index = index[:, : n * SIDES * DIMENSIONS]
    hidden = model.hidden(batch)
    picked = jnp.take_along_axis(hidden, jnp.maximum(index, 0)[..., None], axis=1)
    picked = jnp.where((index >= 0)[..., None], picked, 0)  # what stands in padding, even NaN, stays out of the heads
    by_head = jnp.moveaxis(picked.reshape(B, n * SIDES, DIMENSIONS, -1), 2, 0)
    kept = _kept(batch["answer_seed"][:, : n * SIDES * DIMENSIONS], dropout) if dropout else None
    read = model.gaussians(by_head, kept)  # [H, B, n * sides, 2]
    pairs = jnp.moveaxis(read, 0, 2).reshape(B, n, SIDES, DIMENSIONS, 2)
    return pairs, (index >= 0).reshape(B, n, -1)[..., 0].astype(jnp.float32)


def _kept(seeds: Float[Array, "B A"], rate: float) -> Float[Array, "H B n W"]:
    """Factors of dropout, for each prompt by its record's seed and its place in the sample."""
    B, A = seeds.shape
    place = jnp.broadcast_to(jnp.arange(A) % (SIDES * DIMENSIONS), (B, A))
    key = jax.random.fold_in(jax.random.key(0), 17)  # a purpose of its own
    one = lambda seed, place: jax.random.bernoulli(
        jax.random.fold_in(jax.random.fold_in(key, seed), place), 1 - rate, (WIDTHS[0],)
    )
    kept = jax.vmap(jax.vmap(one))(seeds.astype(jnp.int32), place).astype(jnp.float32) / (1 - rate)
    return jnp.moveaxis(kept.reshape(B, A // DIMENSIONS, DIMENSIONS, -1), 2, 0)
