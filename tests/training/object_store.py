"""An object store in a folder: after `register`, `gs://BUCKET/NAME` of etils' paths is the object ROOT/BUCKET/NAME.

It goes through the backend that etils uses for Google's store; what is written appears whole when it is closed. There
are no locks and no renaming in one step.
"""

import io
import os
from pathlib import Path

import fsspec
from etils.epath import backend
from fsspec.implementations.local import LocalFileSystem


class _Upload(io.BytesIO):
    def __init__(self, path: str):
        super().__init__()
        self._path = path

    def close(self):
        if not self.closed:
            part = f"{self._path}.{os.getpid()}.upload"
            Path(part).write_bytes(self.getvalue())
            os.replace(part, self._path)
        super().close()


def register(root) -> None:
    """Serves `gs://` from the folder `root`, in this process."""

    class Store(LocalFileSystem):
        protocol = ("gs", "gcs")
        cachable = False

        @classmethod
        def _strip_protocol(cls, path):
            name = os.fspath(path)
            return f"{root}/{name.removeprefix('gs://')}" if name.startswith("gs://") else name

        def glob(self, path, **kwargs):
            return [found.removeprefix(f"{root}/") for found in super().glob(path, **kwargs)]

        def _open(self, path, mode="rb", block_size=None, **kwargs):
            return _Upload(path) if "w" in mode else super()._open(path, mode, block_size, **kwargs)

    fsspec.register_implementation("gcs", Store, clobber=True)
    backend.fsspec_backend._get_filesystem.cache_clear()
