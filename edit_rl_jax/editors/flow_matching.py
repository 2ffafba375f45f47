"""The objective `flow_matching` of editors: predict the velocity between noise and the edited image.

Works on anything that is an `editors.base.Editor`, on batches of `editors.rows.EditRows`.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.records import EditRecord, expect
from edit_rl_jax.editors.base import Editor
from edit_rl_jax.editors.pixels import to_pixels
from edit_rl_jax.editors.rows import OWN
from edit_rl_jax.flow import matching
from edit_rl_jax.flow.keys import Purpose, item_keys
from edit_rl_jax.flow.matching import Times
from edit_rl_jax.names import ConfigError
from edit_rl_jax.ranges import knob


def edit_example(record: Any) -> EditExample:
    """An EditRecord's edit; an EditExample as it is. Raises RecordError for another record."""
    if isinstance(record, EditExample):
        return record
    record = expect(record, EditRecord)
    return EditExample(record.instruction, (record.source,), record.edited, record.key)


@dataclasses.dataclass(frozen=True)
class Drawing:
    """Says how times and latents are drawn."""

    times: str = knob("lognormal", ("lognormal", "uniform"))
    shift: str = knob("linear")  # none | linear | sqrt | a number: see flow.matching.Times
    max_shift: float = knob(1.15, "(0, 10]")  # of linear, at max_tokens
    max_tokens: int = knob(4096, "[257, 1048576]")
    sample_latents: bool = knob(True)  # of the autoencoder's posterior; else its mean
    reference_pixels: int = knob(0, "[0, 1e9]")  # of a reference at most, which then costs less; 0: as the result


@dataclasses.dataclass(frozen=True)
class FlowMatching:
    """times: how t is drawn. drop_text: probability that the instruction is left out; drop_references: given that, that
    each reference is too. sample: latents are drawn from the autoencoder's posterior. changed: added weight of a token
    that differs from the first reference's (by its mean squared difference, at most 1). seed: the run's."""

    times: Times = Times()
    drop_text: float = knob(1e-4, "[0, 1]")
    drop_references: float = knob(0.5, "[0, 1]")
    sample: bool = True
    changed: float = knob(0.0, "[0, 1e6]")
    seed: int = 0

    @classmethod
    def configured(cls, config: Any) -> FlowMatching:
        f = config.flow
        if f.reference_pixels and f.changed:
            raise ConfigError(
                "config key 'flow.changed' compares result and reference: 'flow.reference_pixels' is 0 then"
            )
        if f.shift != "linear" and (f.max_shift, f.max_tokens) != (Drawing.max_shift, Drawing.max_tokens):
            raise ConfigError(f"config keys 'flow.max_shift', 'flow.max_tokens' are of shift linear, not {f.shift!r}")
        try:
            times = Times(f.times, f.shift, f.max_shift, f.max_tokens)
        except ValueError as e:
            raise ConfigError(f"config key 'flow.shift': {e}") from None
        return cls(times, f.drop_text, f.drop_references, f.sample_latents, f.changed, config.seed)

    def to_examples(self, record: Any, seed: int) -> list[EditExample]:
        """The edit; what is dropped and its random numbers depend on `seed` alone."""
        example, rng = edit_example(record), np.random.default_rng(seed)
        if rng.random() < self.drop_text:
            kept = tuple(r for r in example.references if rng.random() >= self.drop_references)
            example = dataclasses.replace(example, instruction=None, references=kept)
        return [dataclasses.replace(example, seed=seed % 2**31)]

    def loss(self, model: Editor, batch: dict[str, Array]):
        """Squared error of the velocity, summed over the numbers of all valid tokens; weight: how many they are."""
        B, R = batch["references"].shape[:2]
        keys = lambda items, passes: item_keys(self.seed, Purpose.TRAINING, 0, items, passes)

        def encode(images: Array, first: int) -> Array:
            """[B, n, H, W, 3] to [B, n, N, C]; first: of the numbers of images that tell their randomness apart."""
            n = images.shape[1]
            passes = jnp.tile(jnp.arange(first, first + n, dtype=jnp.int32), B)
            drawn = keys(jnp.repeat(batch["seed"], n), passes) if self.sample else None
            found = model.encode(to_pixels(images.reshape(-1, *images.shape[2:])), drawn)
            return found.reshape(B, n, *found.shape[1:])

        target, references = batch["target"][:, None], batch["references"]
        if target.shape[2:] == references.shape[2:]:
            latents = encode(jnp.concatenate([target, references], axis=1), 1)
            data, references = latents[:, 0], latents[:, 1:]
        else:  # smaller references
            data = encode(target, 1)[:, 0]
            references = encode(references, 2) if R else jnp.zeros((B, 0, *data.shape[1:]), data.dtype)
        arrays = {k: v for k, v in batch.items() if k not in OWN}
        condition = model.condition(arrays, references.reshape(B, -1, data.shape[-1]))
        count = batch["reference_count"][:, None]
        mask = jnp.broadcast_to(count >= 0, data.shape[:2])
        own = keys(batch["seed"], jnp.zeros_like(batch["seed"]))
        t = self.times.draw(own, jnp.sum(mask, axis=1))
        x, wanted = matching.noised(data, t, own)
        weight = None
        if R and self.changed:
            differs = jnp.minimum(jnp.mean(jnp.square(data - references[:, 0]), axis=-1), 1.0)
            weight = 1 + self.changed * jnp.where(count > 0, differs, 0.0)
        velocity = model.velocity(x, t, jax.tree.map(lambda a: a[:, 0], condition))
        squares, counts = matching.loss(velocity, wanted, mask, weight)
        return jnp.sum(squares), jnp.sum(counts), {"rows": (squares, counts)}


FlowMatching.SECTIONS = {"flow": (Drawing, FlowMatching)}
