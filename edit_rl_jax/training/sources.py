"""The data of a run, from `config.data`: sources by name, the training pipeline, the validation batches."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from edit_rl_jax.data import pipeline
from edit_rl_jax.data.images import ImageSettings
from edit_rl_jax.data.records import RecordError
from edit_rl_jax.names import ConfigError, nearest, resolve
from edit_rl_jax.training import interfaces
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

# name -> callable(split, size=, seed=, resolution=) that gives a random-access source
WORLDS = {
    "editworld": "edit_rl_jax.editworld.dataset:EditRecords",
    "editworld_perception": "edit_rl_jax.editworld.perception:Perception",
    "editworld_edits": "edit_rl_jax.editworld.dataset:RightEdits",
}

NO_SPLIT = {
    "train": "Write it anew with scripts/prepare_data.py.",
    "validation": "Write one with scripts/prepare_data.py --validation 0.02, name another dataset in "
    "--config.data.validation, or do without: --config.eval.batches=0.",
}


def source(config: Any, split: str) -> pipeline.Source:
    """Random access to the records (or Examples) of a split, "train" or "validation".

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
    from edit_rl_jax.data.tfds_builder import EditSource

    try:
        return EditSource(name, split)
    except FileNotFoundError as e:
        raise ConfigError(f"no data '{name}'{nearest(name, list(WORLDS))}: {e}") from e
    except ValueError as e:
        raise ConfigError(f"{e}. {NO_SPLIT[split]}") from e


def tokenizer(config: Any, base: Path | None, cfg: Any) -> Any:
    """The tokenizer that `config.model.tokenizer` names, else the base's. ConfigError if the model is another's."""
    return interfaces.model(config).tokenizer(config, base, cfg)


def to_examples(config: Any, prompts: Any) -> Callable[[Any, int], list[Any]]:
    """The objective's `to_examples`, bound to the prompts of the model where the objective has any."""
    objective = interfaces.objective(config)
    return objective.examples_with(prompts) if hasattr(objective, "examples_with") else objective.to_examples


def image_settings(config: Any, cfg: Config) -> ImageSettings:
    """How images become patches: the model's geometry, the config's pixel budget."""
    d, v = config.data, cfg.vision
    return ImageSettings(
        v.patch_size, v.temporal_patch_size, v.spatial_merge_size, min_pixels=d.min_pixels, max_pixels=d.max_pixels
    )


def _pipeline(config: Any, data: pipeline.Source, make: Callable, tokenizer: Any, cfg: Any, **options: Any) -> Any:
    """`pipeline.make_pipeline` with what the config says. Raises ConfigError for buckets or rows that cannot be."""
    options = {"rows": config.rows, "accum": config.accum} | options
    try:
        form = interfaces.model(config).batch_format(config, cfg, tokenizer)
        return pipeline.make_pipeline(data, make, form, **options)
    except RecordError:
        raise
    except ValueError as e:
        raise ConfigError(str(e)) from e


def batches(
    config: Any, data: pipeline.Source, make: Callable, tokenizer: Any, cfg: Any, shard: tuple[int, int] = (0, 1)
) -> Any:
    """The training pipeline: an endless Grain iterator of (arrays [accum, rows / shards, ...], BatchMeta)."""
    d = config.data
    options = dict(workers=d.workers, worker_kind=d.worker_kind, shuffle=d.shuffle, on_bad_record=d.on_bad_record)
    return _pipeline(config, data, make, tokenizer, cfg, shard=shard, seed=config.seed, **options)


def validation_batches(
    config: Any, data: pipeline.Source, make: Callable, tokenizer: Any, cfg: Any, shard: tuple[int, int] = (0, 1)
) -> Iterator[tuple[dict[str, np.ndarray], Any]]:
    """The first `config.eval.batches` batches of the validation records in order: the same every time."""
    options = dict(shard=shard, shuffle=False, epochs=1, on_bad_record="skip")
    stream = _pipeline(config, data, make, tokenizer, cfg, **options)
    try:
        for _, item in zip(range(config.eval.batches), stream):
            yield item
    finally:
        stream.close()


@dataclasses.dataclass(frozen=True)
class _Picked:
    """Some records of a source, read when asked for."""

    source: pipeline.Source
    indices: np.ndarray

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> Any:
        return self.source[int(self.indices[index])]


def fingerprint(config: Any, data: pipeline.Source) -> str:
    """16 hex digits over the data and what determines the order of batches; the same on any mesh and process count."""
    return pipeline.fingerprint(
        data,
        [interfaces.model(config).Bucket(*b) for b in config.data.buckets],
        rows=config.rows,
        accum=config.accum,
        seed=config.seed,
        shuffle=config.data.shuffle,
        objective=config.objective,
    )


def steps_of_epochs(
    config: Any, data: pipeline.Source, make: Callable, tokenizer: Any, cfg: Any, sample: int = 256
) -> int:
    """Optimizer steps of `config.epochs` passes, from how `sample` records (evenly spread) pack into rows.

    A bad record counts as one without rows; where it is an error, training says so. Raises RecordError if all are bad.
    """
    picked = _Picked(data, np.linspace(0, len(data) - 1, min(sample, len(data))).astype(int))
    options = dict(rows=1, accum=1, shuffle=False, epochs=1, on_bad_record="skip")
    stream = _pipeline(config, picked, make, tokenizer, cfg, **options)
    try:
        rows = sum(any(keys for part in meta.keys for keys in part) for _, meta in stream)
    finally:
        stream.close()
    total = config.epochs * len(data) * rows / len(picked)
    return max(1, round(total / (config.rows * config.accum)))
