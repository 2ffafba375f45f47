"""Records as a TFDS dataset in ArrayRecord files, written and read without TensorFlow.

Images are kept as the byte streams they came in, so a record read back equals the record written.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow_datasets as tfds

from edit_rl_jax.data import principles
from edit_rl_jax.data.errors import RecordError
from edit_rl_jax.data.records import PREFERENCE_DIMENSIONS, EditRecord, PreferenceRecord, Record, VerifierRecord

UNLABELLED = -1  # both scores of an unlabelled dimension


def _image() -> tfds.features.Image:
    return tfds.features.Image(shape=(None, None, 3))


_COMMON = dict.fromkeys(("key", "instruction", "task", "group", "meta"), tfds.features.Text()) | {"source": _image()}


class EditDataset(tfds.core.GeneratorBasedBuilder):
    """Edits with scores: source and edited image, instruction, SC and PQ (0..25), reasoning, group.

    `records` are the records of each split; order is kept. `tfds.builder_from_directory(path)` reads the result too.
    """

    VERSION = tfds.core.Version("1.0.0")
    pkg_dir_path = None  # everything TFDS would look up beside the class is said here
    RECORD: type[Record] = EditRecord
    FEATURES = _COMMON | {
        "edited": _image(),
        **dict.fromkeys(("sc", "pq"), tfds.features.Tensor(shape=(2,), dtype=np.int32)),
        **dict.fromkeys(("sc_reasoning", "pq_reasoning"), tfds.features.Text()),
    }

    def __init__(
        self,
        *,
        records: Mapping[str, Iterable[Record]] | None = None,
        notes: Mapping[str, Any] | None = None,
        **kwargs,
    ):
        self._records, self._notes = records or {}, notes or {}
        self._metadata = tfds.core.MetadataDict()
        super().__init__(**kwargs)

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=type(self).__doc__,
            features=tfds.features.FeaturesDict(self.FEATURES),
            metadata=self._metadata,
            disable_shuffling=True,
        )

    def _split_generators(self, dl_manager):
        del dl_manager
        return {name: self._generate_examples(name, records) for name, records in self._records.items()}

    def _generate_examples(self, split: str, records: Iterable[Record]):
        digest, seen = hashlib.sha256(), set()
        for index, record in enumerate(records):
            if not isinstance(record, self.RECORD):
                raise RecordError(record.key, "another kind of record", f"{self.RECORD.__name__} wanted")
            if record.key in seen:
                raise RecordError(record.key, "duplicate key")
            seen.add(record.key)
            row = _to_row(record)
            for name in sorted(row):
                value = row[name]
                value = value.tobytes() if isinstance(value, np.ndarray) else value
                value = value.encode() if isinstance(value, str) else value
                digest.update(len(value).to_bytes(8, "little") + value)
            yield index, row
        if not seen:
            raise RecordError(f"split '{split}'", "no record")
        hashes = dict(self._metadata.get("data_hash", {}))
        self._metadata.update({**self._notes, "data_hash": hashes | {split: digest.hexdigest()}})


class PreferenceDataset(EditDataset):
    """Preferences: source, two edited images, instruction, what is preferred (1, -1, 0), labels (1..4) by dimension."""

    RECORD = PreferenceRecord
    FEATURES = _COMMON | {
        "first": _image(),
        "second": _image(),
        "prefers": tfds.features.Scalar(dtype=np.int32),
        "scores": tfds.features.Text(),  # JSON: TFDS keeps floats in 32 bits
    }


class VerifierDataset(EditDataset):
    """A verifier's edits: source and edited image, instruction, principles, the reply to learn, verdicts and score."""

    RECORD = VerifierRecord
    FEATURES = _COMMON | {
        "edited": _image(),
        **dict.fromkeys(("principles", "reply", "verdicts", "gold_score"), tfds.features.Text()),  # JSON but the reply
    }


KINDS = (EditDataset, PreferenceDataset, VerifierDataset)


def _to_row(record: Record) -> dict[str, Any]:
    common = {k: getattr(record, k) for k in ("key", "source", "instruction", "task", "group")}
    common["meta"] = json.dumps(record.meta, sort_keys=True)
    if isinstance(record, PreferenceRecord):
        if unknown := set(record.scores) - set(PREFERENCE_DIMENSIONS):
            raise RecordError(record.key, "unknown dimension", ", ".join(sorted(unknown)))
        if np.isnan(list(record.scores.values())).any():
            raise RecordError(record.key, "NaN label")
        return {
            **common,
            "first": record.edited[0],
            "second": record.edited[1],
            "prefers": np.array(record.prefers, np.int32),
            "scores": json.dumps(dict(record.scores), sort_keys=True),
        }
    if isinstance(record, VerifierRecord):
        principles.check_verifier(record)
        return {
            **common,
            "edited": record.edited,
            "principles": json.dumps(principles.to_json(record.principles)),
            "reply": record.reply,
            "verdicts": json.dumps(record.verdicts),
            "gold_score": json.dumps(record.score),
        }
    pair = lambda s: np.array((UNLABELLED, UNLABELLED) if s is None else s, np.int32)
    return {
        **common,
        "edited": record.edited,
        "sc": pair(record.sc),
        "pq": pair(record.pq),
        "sc_reasoning": record.sc_reasoning,
        "pq_reasoning": record.pq_reasoning,
    }


_IMAGES = ("source", "edited", "first", "second")


def _from_row(row: Mapping[str, Any]) -> Record:
    text = {k: v.decode() for k, v in row.items() if isinstance(v, bytes) and k not in _IMAGES}
    common: dict[str, Any] = {"source": row["source"], "meta": json.loads(text.pop("meta")), **text}
    if "first" in row:
        scores = {name: (float(a), float(b)) for name, (a, b) in json.loads(common.pop("scores")).items()}
        common |= {"edited": (row["first"], row["second"]), "prefers": int(row["prefers"]), "scores": scores}
        return PreferenceRecord(**common)
    if "principles" in row:
        stored = {k: json.loads(common.pop(k)) for k in ("principles", "verdicts", "gold_score")}
        asked = principles.from_json(common["key"], stored["principles"])
        verdicts = None if stored["verdicts"] is None else tuple(stored["verdicts"])
        common |= {"edited": row["edited"], "principles": asked, "verdicts": verdicts, "score": stored["gold_score"]}
        return VerifierRecord(**common)
    pair = {k: None if (row[k] == UNLABELLED).all() else (int(row[k][0]), int(row[k][1])) for k in ("sc", "pq")}
    return EditRecord(edited=row["edited"], **common, **pair)


def write_dataset(
    directory: str | os.PathLike,
    records: Mapping[str, Iterable[Record]],
    *,
    notes: Mapping[str, Any] | None = None,
) -> str:
    """Writes the splits as ArrayRecord under `directory`; returns the folder to give to `EditSource`.

    All records are of the first one's kind: edits, preferences, or a verifier's. `notes` (JSON-able: origin, counts of
    skipped rows; read when a split is complete) go to its metadata.json, with the data hash of each split. A failure
    leaves no half-written dataset. Raises RecordError on a duplicate key, a record of another kind, a label that is NaN
    and a split without records, FileExistsError if there is a dataset.
    """
    options: Any = dict(notes=notes, data_dir=os.fspath(directory), file_format="array_record")
    for kind in KINDS:
        if (path := kind(**options).data_path).exists():
            raise FileExistsError(f"{path} exists: delete it or choose another directory")
    split, rest = next(iter(records.items()))
    rest = iter(rest)
    head = list(itertools.islice(rest, 1))  # says which kind is to come
    records = {**records, split: itertools.chain(head, rest)}
    kind = next((k for k in KINDS if head and isinstance(head[0], k.RECORD)), EditDataset)
    builder = kind(records=records, **options)
    config = tfds.download.DownloadConfig(try_download_gcs=False)
    builder.download_and_prepare(download_config=config)
    return os.fspath(builder.data_path)


def only_split(path: str | os.PathLike) -> str:
    """Gives the name of a written dataset's split where it has one, else "". Raises FileNotFoundError without one."""
    splits = list(_read_builder(os.fspath(path)).info.splits)
    return splits[0] if len(splits) == 1 else ""


class EditSource(Sequence):
    """Random access to one split of a written dataset, as its records. Picklable: workers open the files themselves.

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
        skip = {name: tfds.decode.SkipDecoding() for name in _IMAGES if name in builder.info.features}
        self._data = builder.as_data_source(split=self.split, decoders=skip)
        self.notes = dict(builder.info.metadata or {})
        self.data_hash: str = self.notes.get("data_hash", {}).get(self.split, "")

    def __len__(self) -> int:
        return len(self._data)

    def __getitem__(self, index: int) -> Record:
        if not 0 <= index < len(self):  # what reads it has another error, by which a loop does not end
            raise IndexError(f"{self.path} has {len(self)} records in {self.split!r}, no number {index}")
        return _from_row(self._data[int(index)])

    def __getstate__(self):
        return {"path": self.path, "split": self.split}

    def __setstate__(self, state):
        self.__init__(**state)


def split_names(path: str | os.PathLike) -> list[str]:
    """Names the splits of a written dataset, in the order in which they were written. Raises FileNotFoundError."""
    return list(_read_builder(os.fspath(path)).info.splits)


def _read_builder(path: str) -> tfds.core.DatasetBuilder:
    from etils import epath

    root = epath.Path(path)
    for folder in (root, *(root / kind.name / str(kind.VERSION) for kind in KINDS)):
        if (folder / "dataset_info.json").exists():
            return tfds.builder_from_directory(folder)
    raise FileNotFoundError(f"no dataset in {path}: prepare_data.py writes one")
