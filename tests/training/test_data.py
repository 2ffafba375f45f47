"""The data of a run: epochs counted over bad records, a missing split says what to do."""

import numpy as np
import pytest

from edit_rl_jax.data.records import RecordError
from edit_rl_jax.data.tfds_builder import write_dataset
from edit_rl_jax.editworld.dataset import EditRecords
from edit_rl_jax.names import ConfigError
from edit_rl_jax.training import interfaces, sources
from edit_rl_jax.vlm.export import image_settings
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.training import micro, toy


class Spoilt(toy.Source):
    """Every fourth record cannot be read."""

    def __getitem__(self, index):
        if index % 4 == 3:
            raise RecordError(f"toy/{index}", "spoilt")
        return super().__getitem__(index)


def steps(source, folder, **changes):
    """(predicted, real) optimizer steps of two epochs."""
    config = micro.config(steps=0, epochs=2.0, rows=2, accum=1, data__buckets=((64, 1, 64, 16),), **changes)
    given = sources.Input.of(config, load_tokenizer(toy.save_tokenizer(folder)))
    predicted = given.steps_of_epochs(source)
    batches, real = given.batches(source), 0
    while next(batches)[1].epoch < 2:
        real += 1
    return predicted, real


def test_epochs_are_counted_over_bad_records(tmp_path):
    predicted, real = steps(Spoilt(60, 0), tmp_path, data__on_bad_record="skip")
    assert abs(predicted - real) <= 0.1 * real, (predicted, real)
    whole, _ = steps(toy.Source(60, 0), tmp_path)
    assert predicted < 0.85 * whole
    with pytest.raises(RecordError, match=r"toy/\d+: spoilt"):
        steps(Spoilt(60, 0), tmp_path)


def test_a_missing_validation_split_says_what_to_do(tmp_path):
    world = EditRecords("train", size=3, seed=0, resolution=84)
    write_dataset(tmp_path, {"train": [world[i] for i in range(3)]})
    config = micro.config(objective="editscore", data__train=str(tmp_path))
    assert len(sources.source(config, "train")) == 3
    with pytest.raises(
        ConfigError, match=r"no split 'validation'.*--validation 0\.02.*data\.validation.*eval\.batches=0"
    ):
        sources.source(config, "validation")


def test_a_data_set_of_its_own_is_the_validation_set(tmp_path):
    """Its only split is the one, whatever name it was written under."""
    world = EditRecords("train", size=5, seed=0, resolution=84)
    for name, count in (("train", 3), ("other", 2)):
        write_dataset(tmp_path / name, {"train": [world[i] for i in range(count)]})
    where = dict(data__train=str(tmp_path / "train"), data__validation=str(tmp_path / "other"))
    assert len(sources.source(micro.config(objective="editscore", **where), "validation")) == 2
    write_dataset(tmp_path / "both", {"train": [world[0]], "validation": [world[i] for i in range(1, 5)]})
    where["data__validation"] = str(tmp_path / "both")
    assert len(sources.source(micro.config(objective="editscore", **where), "validation")) == 4


class AllSpoilt(Spoilt):
    """No record can be read."""

    def __getitem__(self, index):
        return super().__getitem__(index // 4 * 4 + 3)


def partly_spoilt(config, split):
    """A source for `config.data.validation` with a bad record in four."""
    return Spoilt(8, 0)


def test_validation_without_an_example_is_told_at_the_start(tmp_path):
    config = micro.config(rows=2, accum=1, data__buckets=((64, 1, 64, 16),))
    given = sources.Input.of(config, load_tokenizer(toy.save_tokenizer(tmp_path)))
    given.check_validation(Spoilt(8, 0))
    with pytest.raises(ConfigError, match=r"data\.validation'.*no usable record.*spoilt"):
        given.check_validation(AllSpoilt(8, 0))


def test_image_settings_are_the_configs_on_the_models_geometry():
    config = micro.config(data__min_pixels=28 * 28, data__max_pixels=84 * 84)
    found = image_settings(config, interfaces.model(config).model_config(config))
    assert (found.patch_size, found.max_pixels) == (14, 84 * 84) and np.prod((28, 28)) == found.min_pixels


def spoilt(config, split):
    """A source for `config.data.train` without a single good record."""
    return [Spoilt(4, 0)] if split == "train" else toy.source(config, split)
