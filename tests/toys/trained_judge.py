"""A judge from outside that is trained: four statistics of pixels and a linear layer, learnt from EditWorld.
This file is its kind of model, its objective, its config and the judge of its folder:

train_rm.py --config tests/toys/trained_judge.py --workdir DIR;  score.py --judge tests.toys.trained_judge:Statistics
"""

import dataclasses
import json
import sys
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.data.example import EditExample
from edit_rl_jax.data.images import decode_image
from edit_rl_jax.editors.rows import EditRows, cover
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import exports, flat, weights
from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.params import Init
from edit_rl_jax.nn.weights import Naming, local_folder
from edit_rl_jax.ranges import knob
from edit_rl_jax.rewards.base import Dimension, Judge, Judgement, option

__all__ = ["Bucket", "local_folder"]
NAMING = Naming(lambda path: ".".join(path))


@dataclasses.dataclass(frozen=True)
class Config:
    side: int = 24


class Model(nnx.Module):
    """u8 [B, H, W, 3] twice -> the score as a share of its scale [B]."""

    def __init__(self, cfg: Config, *, rngs: nnx.Rngs, dtype=jnp.float32):
        self.out = Linear(4, 1, (None, None), rngs=rngs, init=Init(jnp.dtype(dtype), full=True), bias=True)

    def __call__(self, source, edited):
        a, b = (x.astype(jnp.float32) / 255 for x in (source, edited))
        rough = lambda x: jnp.mean(jnp.abs(jnp.diff(x, axis=2)), axis=(1, 2, 3))
        mean = lambda x: jnp.mean(x, axis=(1, 2, 3))
        away = jnp.abs(a - b)
        changed = mean((away > 0.02).astype(jnp.float32))
        found = [10 * mean(away), changed, 20 * (rough(b) - rough(a)), 20 * rough(b)]
        return jax.nn.sigmoid(self.out(jnp.stack(found, axis=-1))[:, 0])


# -- Its kind of model -------------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Judging:
    pairs: int = knob(0, "[0, 0]")  # train_rm.py judges EditScore's models


SECTIONS = {"eval": Judging}
BUCKET = {"text tokens": 0, "references": 1, "height": 1, "width": 1}
card = partial(exports.card, title="A toy judge")


@dataclasses.dataclass(frozen=True)
class Labels:
    """Puts the score, which stands where an editor has its instruction, into the batch."""

    multiple: int = 1
    downscale: int = 1
    guidance: Guidance = Guidance()

    def text_length(self, tokenizer, request, guidance):
        return 0

    def prepare(self, tokenizer, requests, lengths, guidance):
        return {"label": np.array([float(r.instruction) if r else 0.0 for r in requests], np.float32)}


def check(config):
    if config.model.trainable != "full":
        raise ConfigError("config key 'model.trainable': the toy is trained whole")


def model_config(config):
    return Config(json.loads(config.model.config)["side"])


def make(config, cfg, mesh, dtype):
    return partial(Model, cfg, dtype=dtype)


def tokenizer(config, base, cfg):
    return None


def batch_format(config, cfg, tokenizer):
    return EditRows(Labels(), None, [Bucket(*b) for b in config.data.buckets])


def initial_weights(program, base):
    return program.init(jax.random.key(program.config.seed))


def export(program, trainable, folder, *, prompts, facts, revision="", **_):
    with exports.writing(folder, exports.metadata(program.config, prompts)) as part:
        state = flat.unflatten(program.trainable_state, trainable)
        weights.save(state, dataclasses.asdict(program.model_config), part, NAMING)
        (part / "README.md").write_text(card(program.config, prompts, facts, revision))
    return folder


# -- Its objective -----------------------------------------------------------------------------------------------------


class Score:
    """Squared error of EditWorld's scores of how an edit looks, as a share."""

    def to_examples(self, record, seed):
        return [EditExample(str(min(record.pq) / 25), (record.source,), record.edited, record.key, seed % 2**31)]

    def loss(self, model, batch):
        real = (batch["reference_count"] >= 0).astype(jnp.float32)
        rows = real * (model(batch["references"][:, 0], batch["target"]) - batch["label"]) ** 2
        return jnp.sum(rows), jnp.sum(real), {"rows": (rows, real)}


# -- The judge of its folder -------------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Options:
    enough: float = option(0.8, "share that is a success")


class Statistics(Judge):
    Options = Options

    def __init__(self, model: Model, side: int, options: Options):
        self.model, self.side, self.options = model, side, options

    @classmethod
    def from_folder(cls, folder, options, *, base=None, mesh=None, verify=True):
        cfg = Config(json.loads((Path(folder) / "config.json").read_text())["side"])
        graphdef, state = nnx.split(nnx.eval_shape(lambda: Model(cfg, rngs=nnx.Rngs(0))))
        return cls(nnx.merge(graphdef, weights.load(folder, state, NAMING)), cfg.side, options)

    def dimensions(self):
        return ("looks",)

    def score(self, edits, *, only=None, progress=True):
        return [self._one(edit) for edit in edits]

    def _one(self, edit):
        picture = lambda x: cover(decode_image(x) if isinstance(x, bytes) else np.asarray(x), self.side, self.side)[
            None
        ]
        try:
            value = float(self.model(picture(edit.only_source("the toy")), picture(edit.edited))[0])
        except ValueError as error:
            return Judgement(problem=str(error))
        found = Dimension(25 * value, None, 25.0)
        return Judgement({"looks": found}, found, value >= self.options.enough)


def get_config():
    sys.path.insert(0, str(Path(__file__).parents[2]))
    from edit_rl_jax.training import config_keys

    c = config_keys.default("tests.toys.trained_judge", "tests.toys.trained_judge:Score")
    c.update(steps=60, rows=16, compilation_cache="")
    c.model.update(config='{"side": 24}', trainable="full", remat="none")
    c.data.update(train="editworld", size=160, validation_size=32, resolution=24, workers=0)
    c.data.buckets = ((0, 1, 24, 24),)
    c.optim.update(lr=0.2, warmup=1)
    c.checkpoint.every = 60
    c.eval.batches = 2
    c.log.tensorboard = False
    return c
