"""An editor from outside the package that is nothing like OmniGen2: a kind of model and the files of an editor in one.

Two text encoders with a tokenizer each: words, of a fixed number, whose padding counts, and letters, which become one
pooled vector. Two branches of guidance, both with the reference, by a rule of its own that fades as the image becomes
clear. No sequence: each patch of the result sees the patch of the reference at its place, so that the reference is
brought to the result's size, and there is exactly one.
"""

from __future__ import annotations

import dataclasses
import json
import zlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax import sharding
from edit_rl_jax.editors.base import EditError, tokens
from edit_rl_jax.editors.rows import Editing, EditRows
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import flat, weights
from edit_rl_jax.nn.linear import Embedding, Linear
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.weights import Naming

WORDS, VOCABULARY, LETTERS, PATCH = 16, 64, 26, 4
NAMING = Naming(lambda path: ".".join(path))


@dataclasses.dataclass(frozen=True)
class Fading(Guidance):
    """v = v_negative + (1 + (text - 1) (1 - t)) (v_full - v_negative)."""

    @property
    def branches(self):
        return 1 if self.text <= 1 else 2

    def combine(self, v, t):
        scale = (1 + (self.text - 1) * (1 - t)).reshape(-1, *(1,) * (v.ndim - 2))
        return v[:, 1] + scale * (v[:, 0] - v[:, 1])


class Tokenizers(NamedTuple):
    """The two of them; nothing outside of this file looks inside."""

    vocabulary: int
    letters: str = "abcdefghijklmnopqrstuvwxyz"

    def words(self, text):
        return [1 + zlib.crc32(w.encode()) % (self.vocabulary - 1) for w in text.lower().split()]

    def counts(self, text):
        return [text.lower().count(c) / 8 for c in self.letters]


@dataclasses.dataclass(frozen=True)
class Processor:
    multiple: int = PATCH
    downscale: int = PATCH
    channels: int = 3 * PATCH**2
    steps: int = 4
    guidance: Guidance = Fading(2.0)
    max_side: int = 1024

    def fit(self, images, size, max_pixels, max_side, where):
        if len(images) != 1:
            raise EditError(where, f"{len(images)} references", "one is wanted")
        found = tuple(min(n, max_side) // PATCH * PATCH for n in size or images[0])
        if not min(found):
            raise EditError(where, "image too narrow")
        return (found,), found

    def text_length(self, tokenizer, request, guidance):
        return max(WORDS, *(len(tokenizer.words(t)) for t in _texts(request, guidance)))

    def prepare(self, tokenizer, requests, lengths, guidance):
        B, n = len(requests), guidance.branches
        out = {
            "words": np.zeros((B, n, lengths.text), np.int32),
            "letters": np.zeros((B, n, LETTERS), np.float32),
            "seen": np.zeros((B, n, lengths.noise, 1), bool),
            "real": np.zeros((B, n, lengths.noise, 1), bool),
        }
        for b, r in enumerate(requests):
            for k, text in enumerate(_texts(r, guidance) if r else ()):
                ids, area = tokenizer.words(text), tokens(self, r.size)
                if len(ids) > lengths.text or area > lengths.noise:
                    raise ValueError(f"row {b} does not fit {lengths}")
                out["words"][b, k, : len(ids)] = ids
                out["letters"][b, k] = tokenizer.counts(text)
                out["seen"][b, k, : area * len(r.references)] = True
                out["real"][b, k, :area] = True
        return out


def _texts(request, guidance):
    return [request.instruction or "", request.negative][: guidance.branches]


@dataclasses.dataclass(frozen=True)
class Config:
    width: int = 32
    processor: Processor = Processor()


class Editor(nnx.Module):
    def __init__(self, cfg, *, rngs, dtype=jnp.float32, lora=None):
        init, D, C = Init(jnp.dtype(dtype), full=True), cfg.width, cfg.processor.channels
        linear = lambda i, o: Linear(i, o, (None, None), rngs=rngs, init=init)
        self.words = Embedding(VOCABULARY, D, rngs=rngs, init=init)
        self.letters = linear(LETTERS, D)
        self.noise, self.reference, self.out = linear(C, D), linear(C, D), linear(D, C)
        self.time = linear(4, D)
        self.cfg = cfg

    processor = property(lambda self: self.cfg.processor)

    def condition(self, arrays, references):
        words = jnp.mean(self.words(arrays["words"], jnp.float32), axis=2)  # padding, word 0, counts as the others
        return {
            "pooled": words + self.letters(arrays["letters"]),
            "reference": jnp.where(arrays["seen"], references[:, None], 0),
            "real": arrays["real"],
        }

    def velocity(self, latents, t, condition):
        powers = jnp.stack([jnp.ones_like(t), t, t**2, t**3], axis=-1)
        shared = (condition["pooled"] + self.time(powers))[:, None]
        h = jax.nn.gelu(self.noise(latents) + self.reference(condition["reference"]) + shared)
        return jnp.where(condition["real"], self.out(h) + condition["reference"] - latents, 0)

    def encode(self, pixels, keys=None):
        B, H, W, C = pixels.shape
        x = pixels.reshape(B, H // PATCH, PATCH, W // PATCH, PATCH, C).transpose(0, 1, 3, 5, 2, 4)
        return x.reshape(B, -1, C * PATCH**2)

    def decode(self, latents, height, width):
        h, w = height // PATCH, width // PATCH
        x = latents[:, : h * w].reshape(-1, h, w, 3, PATCH, PATCH).transpose(0, 1, 4, 2, 5, 3)
        return x.reshape(-1, height, width, 3)


# -- A kind of model that is trained -----------------------------------------------------------------------------------


SECTIONS = {"eval": Editing}
BUCKET = {"text tokens": 1, "references": 0, "height": 1, "width": 1}


def check(config):
    if config.model.trainable != "full":
        raise ConfigError("config key 'model.trainable': the toy is trained whole")


def local_folder(name, revision=None):
    return Path(name)


def _config(text):
    return Config(json.loads(text)["width"])


def _stored(folder):
    return _config((Path(folder) / "config.json").read_text())


def model_config(config):
    return _stored(config.model.init_from) if config.model.init_from else _config(config.model.config)


def make(config, cfg, mesh, dtype):
    return partial(Editor, cfg, dtype=dtype)


def tokenizer(config, base, cfg):
    return Tokenizers(VOCABULARY)


def batch_format(config, cfg, tokenizer):
    return EditRows(cfg.processor, tokenizer, [Bucket(*b) for b in config.data.buckets])


def initial_weights(program, base):
    if base is None:
        return program.init(jax.random.key(program.config.seed))
    return flat.flatten(weights.load(base, program.with_shardings("trainable"), NAMING)), {}


def export(program, trainable, folder: Path, **about: Any) -> Path:
    state = flat.unflatten(program.trainable_state, trainable)
    weights.save(state, {"width": program.model_config.width}, folder, NAMING)
    return folder


def card(config, prompts, facts: Mapping[str, Any], revision: str = "") -> str:
    return "# A toy\n"


# -- The files of an editor --------------------------------------------------------------------------------------------


def from_folder(folder, lora=None, alpha=None, mesh=None, dtype=jnp.float32):
    cfg = _stored(folder)
    graphdef, state = nnx.split(nnx.eval_shape(lambda: Editor(cfg, rngs=nnx.Rngs(0))))
    places = None if mesh is None else sharding.shardings(state, mesh)
    return nnx.merge(graphdef, weights.load(folder, state, NAMING, places))


def folder_tokenizer(folder):
    return Tokenizers(VOCABULARY)


def schedule(folder, steps):
    return Schedule(steps, "linear")
