"""The compiled programs of a run: kept on the local disk, and beside a remote workdir, so that a new host has them."""

import logging
import os
from pathlib import Path

import jax
from etils import epath

log = logging.getLogger("train")
FOLDER = "compiled"  # of a remote workdir
HIT, MISS = "/jax/compilation_cache/cache_hits", "/jax/compilation_cache/cache_misses"


class Cache:
    """JAX's compilation cache in a local folder; with a remote workdir in a part of it that is this workdir's, filled
    from there at the start. Where the remote copy cannot be read or written the run goes on without it.

    folder: "" = none. Attributes: hits, misses: programs found and not found in it since its making.
    """

    def __init__(self, folder: str, name: str = "", remote: epath.Path | None = None):
        self.hits = self.misses = 0
        self._here = Path(os.path.expanduser(folder)) / name if folder and remote else None
        self._there, self._copied = remote and remote / FOLDER, set[str]()
        if not folder:
            return
        jax.config.update("jax_compilation_cache_dir", os.fspath(self._here or os.path.expanduser(folder)))
        if "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS" not in os.environ:
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
        jax.monitoring.register_event_listener(self._count)
        if self._here:
            # The paths of XLA's own caches would be a part of a program's name, and home is not everywhere the same.
            jax.config.update("jax_persistent_cache_enable_xla_caches", "none")
            self._copy(self._there, epath.Path(self._here))

    def _count(self, event: str, **_: object) -> None:
        self.hits, self.misses = self.hits + (event == HIT), self.misses + (event == MISS)

    def keep(self) -> None:
        """Copies what was compiled since to the remote workdir; one process calls it."""
        if self._here:
            self._copy(epath.Path(self._here), self._there)

    def _copy(self, source: epath.Path, target: epath.Path) -> None:
        try:
            names = {p.name for p in source.iterdir()} - self._copied if source.exists() else set()
            there = {p.name for p in target.iterdir()} if target.exists() else set()
            for name in sorted(n for n in names - there if n.endswith("-cache")):
                target.mkdir(parents=True, exist_ok=True)
                part = target / f"{name}.{os.getpid()}.part"  # moved when whole: another process may look for it
                (source / name).copy(part, overwrite=True)
                part.rename(target / name)
            self._copied |= names
        except Exception as e:  # storage has errors of its own
            log.warning("compiled programs cannot be copied from %s to %s (%s)", source, target, e)

    def close(self) -> None:
        """Stops counting."""
        try:
            jax.monitoring.unregister_event_listener(self._count)
        except (AssertionError, ValueError):  # it never began
            pass
