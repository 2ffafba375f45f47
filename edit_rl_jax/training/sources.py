"""The data of a run: sources by name, and `Input`, which makes the pipeline and the validation batches of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data import pipeline
from edit_rl_jax.data.planning import Exchange, Reads
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.names import ConfigError, nearest, resolve
from edit_rl_jax.nn import model_files
from edit_rl_jax.training import interfaces
from edit_rl_jax.training.interfaces import Objective, Trainable

# name -> callable(split, size=, seed=, resolution=) that gives a random-access source
WORLDS = {
    "editworld": "edit_rl_jax.editworld.dataset:EditRecords",
    "editworld_perception": "edit_rl_jax.editworld.perception:Perception",
    "editworld_preferences": "edit_rl_jax.editworld.preferences:Preferences",
    "editworld_verifier": "edit_rl_jax.editworld.verifier:VerifierRecords",
    "editworld_edits": "edit_rl_jax.editworld.dataset:RightEdits",
}

NO_SPLIT = {
    "train": "Write it anew with scripts/prepare_data.py.",
    "validation": "Write one with scripts/prepare_data.py --validation 0.02, name another dataset in "
    "--config.data.validation, or do without: --config.eval.batches=0.",
}


def source(config: Any, split: str) -> pipeline.Source:
    """Gives random access to the records (or Examples) of a split, "train" or "validation".

    `config.data.train` / `.validation` is a built-in world, a folder that `prepare_data.py` wrote, or
    "my_pkg.mod:function", called with (config, split). Raises ConfigError for a name that is none of these, or for a
    folder without that split.
    """
    d = config.data
    name = (d.validation or d.train) if split == "validation" else d.train
    if name in WORLDS:
        size = d.size if split == "train" else d.validation_size
        world, options = resolve(name, WORLDS), d.options.to_dict()
        try:
            return world(split, size=size, seed=config.seed, resolution=d.resolution, **options)
        except (TypeError, ValueError) as e:
            raise ConfigError(f"config key 'data.options' is {options}: {e}") from e
    if ":" in name and not Path(name).exists() and "://" not in name:
        return resolve(name, WORLDS)(config, split)
    from edit_rl_jax.data.tfds_builder import EditSource, only_split

    try:
        alone = split == "validation" and name != d.train  # a data set of its own may have one split, of any name
        return EditSource(name, (alone and only_split(name)) or split)
    except FileNotFoundError as e:
        raise ConfigError(f"no data '{name}'{nearest(name, list(WORLDS))}: {e}") from e
    except ValueError as e:
        raise ConfigError(f"{e}. {NO_SPLIT[split]}") from e


def prompts(objective: Any, config: Any, base: Path | None) -> Any:
    """Chooses the prompts of an objective that has any, else None: `config.model.prompts`, else those stored with a
    base of the same objective, else the objective's own default. Raises ConfigError for a wrong name."""
    if not hasattr(objective, "choose_prompts"):
        return None
    name = config.model.prompts
    stored = model_files.stored_metadata(base) if base else {}
    found = stored.get("prompts") if stored.get("objective") == config.objective else None
    where = f"{base / model_files.METADATA}" if base and found and not name else "config key 'model.prompts'"
    try:
        return objective.choose_prompts(name, found)
    except (KeyError, ValueError) as e:
        raise ConfigError(f"{where}: {e.args[0]}") from e


@dataclasses.dataclass(frozen=True)
class _Picked:
    """Some records of a source, read when asked for."""

    source: pipeline.Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.indices[index])]


@dataclasses.dataclass(frozen=True)
class Input:
    """What a run reads, with everything that its config names looked up once.

    Attributes:
      kind, objective: see `interfaces`. cfg: the architecture. base: the folder of `model.init_from`, or None.
      tokenizer: of the kind; None where it reads no text. prompts: of the objective, or None.
    """

    config: Any
    kind: Trainable
    objective: Objective
    cfg: Any
    base: Path | None
    tokenizer: Any
    prompts: Any

    @classmethod
    def of(cls, config: Any, tokenizer: Any = None) -> Input:
        """Looks up what a config names; tokenizer: taken instead of the config's. Raises ConfigError."""
        kind, objective = interfaces.model(config), interfaces.objective(config)
        cfg, base = kind.model_config(config), interfaces.base_folder(config)
        tokenizer = tokenizer or kind.tokenizer(config, base, cfg)
        return cls(config, kind, objective, cfg, base, tokenizer, prompts(objective, config, base))

    @property
    def to_examples(self) -> Callable[[Any, int], list[Any]]:
        """The objective's `to_examples`, bound to the prompts where it has any."""
        o = self.objective
        return o.examples_with(self.prompts) if hasattr(o, "examples_with") else o.to_examples

    def _pipeline(self, data: pipeline.Source, **options: Any) -> Any:
        """Makes a pipeline. Raises ConfigError for buckets or rows that cannot be."""
        options = {"rows": self.config.rows, "accum": self.config.accum} | options
        try:
            form = self.kind.batch_format(self.config, self.cfg, self.tokenizer)
            return pipeline.make_pipeline(data, self.to_examples, form, **options)
        except RecordError:
            raise
        except ValueError as e:
            raise ConfigError(str(e)) from e

    def batches(
        self,
        data: pipeline.Source,
        shard: tuple[int, int] = (0, 1),
        exchange: Exchange | None = None,
        reads: Reads | None = None,
    ) -> Any:
        """Makes the training pipeline: an endless Grain iterator of (arrays [accum, rows / shards, ...], BatchMeta).
        exchange, reads: see `make_pipeline`."""
        d = self.config.data
        options = dict(workers=d.workers, worker_kind=d.worker_kind, shuffle=d.shuffle, on_bad_record=d.on_bad_record)
        options |= dict(exchange=exchange, reads=reads)
        return self._pipeline(data, shard=shard, seed=self.config.seed, **options)

    def validation_batches(
        self, data: pipeline.Source, shard: tuple[int, int] = (0, 1), exchange: Exchange | None = None
    ) -> Generator[tuple[dict[str, np.ndarray], Any], None, None]:
        """Yields the first `config.eval.batches` batches of the validation records in order: the same every time."""
        how = dict(shard=shard, exchange=exchange)
        stream = self._pipeline(data, shuffle=False, epochs=1, on_bad_record="skip", **how)
        try:
            for _, item in zip(range(self.config.eval.batches), stream):
                yield item
        finally:
            stream.close()

    def check_validation(
        self, data: pipeline.Source, shard: tuple[int, int] = (0, 1), exchange: Exchange | None = None
    ) -> None:
        """Raises ConfigError where the validation records give no batch: else the last step would find it. Every
        process calls it."""
        batches = self.validation_batches(data, shard, exchange)
        try:
            next(batches, None)
        except RecordError as e:
            raise ConfigError(f"config key 'data.validation': {e}") from e
        finally:
            batches.close()

    def steps_of_epochs(self, data: pipeline.Source, sample: int = 256) -> int:
        """Counts the optimizer steps of `config.epochs` passes by how `sample` records, evenly spread, pack into rows.

        A bad record counts as one without rows; where it is an error, training says so. Raises RecordError if all are.
        """
        c, picked = self.config, _Picked(data, np.linspace(0, len(data) - 1, min(sample, len(data))).astype(int))
        stream = self._pipeline(picked, rows=1, accum=1, shuffle=False, epochs=1, on_bad_record="skip")
        try:
            rows = sum(any(keys for part in meta.keys for keys in part) for _, meta in stream)
        finally:
            stream.close()
        return max(1, round(c.epochs * len(data) * rows / len(picked) / (c.rows * c.accum)))

    def fingerprint(self, data: pipeline.Source) -> str:
        """Gives 16 hex digits over the data and what determines the order of batches; the same on any mesh."""
        c = self.config
        buckets, order = [self.kind.Bucket(*b) for b in c.data.buckets], dict(seed=c.seed, shuffle=c.data.shuffle)
        return pipeline.fingerprint(data, buckets, rows=c.rows, accum=c.accum, objective=c.objective, **order)
