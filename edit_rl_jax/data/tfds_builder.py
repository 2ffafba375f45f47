"""Records as a TFDS dataset in ArrayRecord files, written and read without TensorFlow.

Images are kept as the byte streams they came in, so a record read back equals the record written.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.records import EditRecord

UNLABELLED = -1  # both scores of an unlabelled dimension


class EditDataset(tfds.core.GeneratorBasedBuilder):
    """Edits with scores: source and edited image, instruction, SC and PQ (0..25), reasoning, group.

    `records` are the records of each split; order is kept. `tfds.builder_from_directory(path)` reads the result too.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None  # everything TFDS would look up beside the class is said here

    def __init__(
        self,
        *,
        records: Mapping[str, Iterable[EditRecord]] | None = None,
        notes: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        self._records, self._notes = records or {}, notes or {}
        self._metadata = tfds.core.MetadataDict()
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        image, text = lambda: tfds.features.Image(shape=(None, None, 3)), tfds.features.Text
        pair = lambda: tfds.features.Tensor(shape=(2,), dtype=np.int32)
        features = {
            "key": text(), "source": image(), "edited": image(), "instruction": text(), "task": text(), "sc": pair(),
            "pq": pair(), "sc_reasoning": text(), "pq_reasoning": text(), "group": text(), "meta": text(),
        }  # fmt: skip
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(features),
            metadata=self._metadata,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name, records) for name, records in self._records.items()}

    def _generate_examples(self, split: str, records: Iterable[EditRecord]):
        digest, seen = hashlib.sha256(), set()
        for index, record in enumerate(records):
            if record.key in seen:
                raise RecordError(record.key, "duplicate key")
            seen.add(record.key)
            row = _to_row(record)
            for name in sorted(row):
                value = row[name]
                value = value.encode() if isinstance(value, str) else bytes(value)
                digest.update(len(value).to_bytes(8, "little") + value)
            yield index, row
        if not seen:
            raise RecordError(f"split '{split}'", "no record")
        hashes = dict(self._metadata.get("data_hash", {}))
        self._metadata.update({**self._notes, "data_hash": hashes | {split: digest.hexdigest()}})


def _to_row(record: EditRecord) -> dict[str, Any]:
    pair = lambda s: np.array((UNLABELLED, UNLABELLED) if s is None else s, np.int32)
    return {
        "key": record.key,
        "source": record.source,
        "edited": record.edited,
        "instruction": record.instruction,
        "task": record.task,
        "sc": pair(record.sc),
        "pq": pair(record.pq),
        "sc_reasoning": record.sc_reasoning,
        "pq_reasoning": record.pq_reasoning,
        "group": record.group,
        "meta": json.dumps(record.meta, sort_keys=True),
    }


def _from_row(row: Mapping[str, Any]) -> EditRecord:
    text = {k: v.decode() for k, v in row.items() if isinstance(v, bytes) and k not in ("source", "edited")}
    pair = {k: None if (row[k] == UNLABELLED).all() else (int(row[k][0]), int(row[k][1])) for k in ("sc", "pq")}
    meta = json.loads(text.pop("meta"))
    return EditRecord(source=row["source"], edited=row["edited"], meta=meta, **text, **pair)


def write_dataset(
    directory: str | os.PathLike,
    records: Mapping[str, Iterable[EditRecord]],
    *,
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Writes the splits as ArrayRecord under `directory`; returns the folder to give to `EditSource`.

    `notes` (JSON-able: origin, counts of skipped rows; read when a split is complete) go to its metadata.json, with the
    data hash of each split. A failure leaves no half-written dataset. Raises RecordError on a duplicate key
    and on a split without records, FileExistsError if there is a dataset.
    """
    builder = EditDataset(records=records, notes=notes, data_dir=os.fspath(directory), file_format="array_record")
    if builder.data_path.exists():
        raise FileExistsError(f"{builder.data_path} exists: delete it or choose another directory")
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return os.fspath(builder.data_path)


class EditSource(Sequence):
    """Random access to one split of a written dataset, as EditRecords. Picklable: workers open the files themselves.

    `path`: what `write_dataset` returned, or the directory that it was given. `data_hash` names the content.
    Raises FileNotFoundError without a dataset, ValueError for an unknown split (naming those there are).
    """

    def __init__(self, path: str | os.PathLike, split: str = "train"):
        self.path, self.split = os.fspath(path), split
        self._data: Any = None
        self._open()

    def _open(self) -> None:
        builder = _read_builder(self.path)
        if self.split not in builder.info.splits:
            raise ValueError(f"{self.path} has no split {self.split!r}; it has {', '.join(builder.info.splits)}")
        skip = {"source": tfds.decode.SkipDecoding(), "edited": tfds.decode.SkipDecoding()}
        self._data = builder.as_data_source(split=self.split, decoders=skip)
        self.notes = dict(builder.info.metadata or {})
        self.data_hash: str = self.notes.get("data_hash", {}).get(self.split, "")

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> EditRecord:
        return _from_row(self._data[int(index)])

    def __getstate__(self):
        return {"path": self.path, "split": self.split}

    def __setstate__(self, state):
        self.__init__(**state)


def _read_builder(path: str) -> tfds.core.DatasetBuilder:
    from etils import epath

    root = epath.Path(path)
    if not (root / "dataset_info.json").exists():
        inner = root / EditDataset.name / str(EditDataset.VERSION)
        if not (inner / "dataset_info.json").exists():
            raise FileNotFoundError(f"no dataset in {path}: prepare_data.py writes one")
        root = inner
    return tfds.builder_from_directory(root)
