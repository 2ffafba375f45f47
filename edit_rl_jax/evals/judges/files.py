"""Reads the rows of a benchmark's files one after another: arrow, parquet, JSON; and finds a data set on the hub."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from edit_rl_jax.data import readers

KINDS = (".arrow", ".parquet", ".json", ".jsonl", ".ndjson")
NOT_ROWS = ("dataset_info.json", "dataset_infos.json", "state.json", "dataset_dict.json")  # of Hugging Face's tools


def _files(folder: Path, kinds: Iterable[str]) -> list[Path]:
    """Lists a folder's files of these kinds in order of their names, without what Hugging Face's tools leave there."""
    left = lambda p: ".cache" in p.relative_to(folder).parts or p.name in NOT_ROWS or p.match("cache-*.arrow")
    return sorted(p for p in folder.rglob("*") if p.suffix in kinds and not left(p))


def tables(folder: str | Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, row) of an arrow or parquet file, or of all of a folder in order of their names, a few rows in memory at
    a time.

    Raises FileNotFoundError when there are none.
    """
    import pyarrow as pa
    import pyarrow.parquet

    folder = Path(folder)
    paths = _files(folder, KINDS[:2]) if folder.is_dir() else [folder]
    if not paths:
        raise FileNotFoundError(f"{folder}: no .arrow or .parquet file")
    for path in paths:
        if path.suffix == ".parquet":
            batches: Iterable = pyarrow.parquet.ParquetFile(path).iter_batches(batch_size=16)
        else:
            with pa.memory_map(str(path)) as source:
                head = source.read(6)
            mapped = pa.memory_map(str(path))
            reader = pa.ipc.open_file(mapped) if head == b"ARROW1" else pa.ipc.open_stream(mapped)
            batches = reader if head != b"ARROW1" else map(reader.get_batch, range(reader.num_record_batches))
        number = 0
        for batch in batches:
            for start in range(0, batch.num_rows, 16):
                for row in batch.slice(start, 16).to_pylist():
                    number += 1
                    yield f"{path.name}:{number}", row


def rows(data: Path, wanted: Iterable[tuple[str, ...]] = ()) -> Iterator[tuple[str, Any, Path]]:
    """(where, row or RecordError, folder that its paths start from) of a file, or of all files of a folder in order of
    their names.

    wanted: of a folder with more than the benchmark, parts of paths (from "/"): for each set of them only the files
    that have one of it, if there are any.
    Raises FileNotFoundError when there are none, RecordError for a file that cannot be read as a whole.
    """
    found = _files(data, KINDS) if data.is_dir() else [data]
    for parts in wanted:
        found = [p for p in found if any(x in f"/{p.relative_to(data).as_posix()}" for x in parts)] or found
    if not found:
        raise FileNotFoundError(f"{data}: no {', '.join(KINDS)} file")
    for path in found:
        read = tables(path) if path.suffix in KINDS[:2] else readers.raw(path, path.name)
        for where, row in read:
            yield where, row, path.parent


def dataset_folder(data: str | Path, revision: str | None = None) -> tuple[Path, str | None]:
    """(local folder, revision) of a folder or of a dataset's hub id. A folder's revision is the one given, else that
    which the hub's tools wrote down, else None."""
    path = Path(data)
    if not path.is_dir():
        from huggingface_hub import snapshot_download

        path = Path(snapshot_download(str(data), repo_type="dataset", revision=revision))
        return path, path.name
    if revision is None and path.resolve().parent.name == "snapshots":
        revision = path.resolve().name
    for note in sorted(path.glob(".cache/huggingface/download/**/*.metadata")):
        revision = revision or note.read_text().splitlines()[0]
    return path, revision
