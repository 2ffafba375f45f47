"""Checkpoints of a run: trainable weights, optimizer state, and what came with the last consumed batch.

Orbax writes asynchronously into a temporary folder that is renamed when complete, so a killed save leaves no
checkpoint. A checksum of every tensor is taken on the devices before the save and compared after a restore, and so is
one of the host's part (step, position in the data, guard): a damaged newest checkpoint is named, set aside and the one
before it is used.
"""

import collections
import contextlib
import itertools
import logging
import os
import time
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath

from edit_rl_jax.nn.flat import checksums, digest
from edit_rl_jax.training import processes

log = logging.getLogger(__name__)
HOST = ("step", "data", "extra", "checksums")  # the host's part; beside it stands its "sha256"


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the step and the tensor or file."""


class SaveError(CheckpointError):
    """A save that failed; what was saved before is as it was, and the next save begins afresh."""


class _Mismatch(CheckpointError):
    """The checkpoint is whole but not of this run: falling back would not help."""


def _named(tree: Any) -> dict[str, Any]:
    """{key path: leaf}: a flat dict survives any change of optax's container types."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def _cause(e: BaseException) -> str:
    """One line of what the storage says, whose end names the cause."""
    text = " ".join(str(e).split()) or type(e).__name__
    return text if len(text) <= 300 else f"{text[:100]} ... {text[-195:]}"


class Checkpoints:
    """The newest `keep` checkpoints under `folder`, local or `gs://`. Every process makes one and calls each method.

    Raises CheckpointError, here and in `steps` and `restore`, for a folder that cannot be used.
    """

    def __init__(self, folder: str | os.PathLike, keep: int = 3):
        self.folder, self._keep = epath.Path(folder), keep
        self._open: ocp.CheckpointManager | None = None
        _ = self._manager

    @property
    def _manager(self) -> ocp.CheckpointManager:
        """Orbax's manager; after a save that failed a new one, which clears what that one left."""
        if self._open is None:
            options = ocp.CheckpointManagerOptions(
                max_to_keep=self._keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
            )
            try:
                if self.folder.exists() and not self.folder.is_dir():
                    raise NotADirectoryError("it is a file, a folder wanted")
                self._open = ocp.CheckpointManager(self.folder.absolute(), options=options)
            except Exception as e:
                raise CheckpointError(f"cannot use {self.folder}: {_cause(e)}") from e
        return self._open

    def steps(self) -> list[int]:
        """Lists the steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, trees: Mapping[str, Any], data: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Starts to save the state after `step` updates and returns once the arrays may be donated.

        trees: the train state (see `on_mesh.State`). data: the iterator state that came with the last consumed batch;
        extra: anything else. Both plain JSON and the same on every process. Raises SaveError where this save, or the
        one before in the background, fails.
        """
        named = _named(dict(trees))
        sums = {k: int(v) for k, v in checksums(named).items()}
        meta = {"step": step, "data": data, "extra": dict(extra or {}), "checksums": sums}
        meta["sha256"] = digest(meta)
        try:
            if step in self._manager.all_steps():
                return
            saved = self._manager.save(
                step,
                args=ocp.args.Composite(state=ocp.args.StandardSave(named), meta=ocp.args.JsonSave(meta)),
                force=True,
            )
        except Exception as e:  # whatever the storage raises
            raise self._failed(e) from e
        if not saved:
            raise SaveError(f"checkpoint {step} was not saved")

    def restore(self, trees: Mapping[str, Any]) -> tuple[int, dict[str, Any], Any, dict[str, Any]] | None:
        """Restores the newest checkpoint that is whole: (step, trees, data, extra), or None where there is none.

        trees: abstract, with the shardings wanted: any mesh. Damaged ones are logged by step and reason and moved to
        `damaged-STEP`. Raises CheckpointError when checkpoints exist and all are damaged, or when the weights' names
        or shapes are not those wanted.
        """
        steps, names = self.steps(), [p.name for p in self.folder.iterdir()]
        damaged = {n: "no folder of a step" for n in names if n.isdecimal() and n not in map(str, steps)}
        for name, reason in damaged.items():
            log.warning("checkpoint %s is damaged (%s)", name, reason)
        for step in reversed(steps):
            try:
                found = self._read(step, trees)
            except _Mismatch:
                raise
            except Exception as e:  # whatever the storage raises on bad bytes
                damaged[str(step)] = _cause(e)
                log.warning("checkpoint %s is damaged (%s); trying the one before it", step, damaged[str(step)])
                continue
            for bad in damaged:  # only now: a storage that fails for a moment must not cost every checkpoint
                self._set_aside(bad)
            return found
        left = [f"step {step}: {reason}" for step, reason in damaged.items()]
        left += [n for n in names if n.startswith("damaged-")]
        if left:
            raise CheckpointError(f"no checkpoint under {self.folder} is whole: " + "; ".join(left))
        return None

    def _read(self, step: int, trees: Mapping[str, Any]):
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        _check_host(meta, step)
        wanted = _named(dict(trees))
        if wrong := meta["checksums"].keys() ^ wanted.keys():
            raise _Mismatch(f"checkpoint {step} of other weights than this config's: {', '.join(sorted(wrong)[:5])}")
        named = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))["state"]
        for name, value in checksums(named).items():
            if int(value) != meta["checksums"][name]:
                raise CheckpointError(f"checksum of {name} differs")
        restored = jax.tree_util.tree_map_with_path(lambda p, _: named[jax.tree_util.keystr(p)], dict(trees))
        return meta["step"], restored, meta["data"], meta["extra"]

    def _set_aside(self, name: str) -> None:
        if jax.process_index() == 0:
            taken = {p.name for p in self.folder.iterdir()}
            free = itertools.chain([f"damaged-{name}"], (f"damaged-{name}-{n}" for n in itertools.count(2)))
            (self.folder / name).rename(self.folder / next(n for n in free if n not in taken))
        processes.wait_for_all(f"set aside {name}")
        self._manager.reload()

    def saving(self) -> bool:
        """Says whether a save is under way in the background."""
        return self._open is not None and self._open.is_saving_in_progress()

    def wait(self) -> None:
        """Returns when everything saved is on storage. Raises SaveError where a background save failed."""
        try:
            if self._open is not None:
                self._open.wait_until_finished()
        except Exception as e:
            raise self._failed(e) from e

    def close(self) -> None:
        """Waits as `wait`, then frees the background threads."""
        self.wait()
        if self._open is not None:
            self._open.close()

    def _failed(self, e: Exception) -> SaveError:
        """The error of a save; lets go of the manager, whose list of steps and temporary folders are now wrong."""
        broken, self._open = self._open, None
        with contextlib.suppress(Exception):
            if broken:
                broken.close()
        return SaveError(f"a checkpoint could not be saved under {self.folder}: {_cause(e)}")


def rehearse(folder: str | os.PathLike, trees: Mapping[str, Any], abstract: Mapping[str, Any]) -> str:
    """Writes a state into `folder` as a run's checkpoints are, reads it back where the devices have room for it twice,
    compares, and removes the folder. Returns what was tried, in words; raises CheckpointError.

    Every process calls it; abstract: as `trees`, with shardings.
    """
    folder = epath.Path(folder)
    began, size = time.monotonic(), sum(x.nbytes for x in jax.tree.leaves(dict(trees)))
    _remove(folder)  # of a run that was killed in it
    processes.wait_for_all("a clean folder")
    try:
        with contextlib.closing(Checkpoints(folder, keep=1)) as checkpoints:
            checkpoints.save(0, trees, None)
            checkpoints.wait()
            written, room = time.monotonic(), not processes.any_says(not _room_for(trees))
            if room and checkpoints.restore(abstract) is None:
                raise CheckpointError(f"the checkpoint that was tried under {folder} is not there")
        processes.wait_for_all("a checkpoint was tried")
    finally:
        _remove(folder)
    read = f"read in {time.monotonic() - written:.1f} s" if room else "not read: the devices have no room for it twice"
    return f"a checkpoint of {size / 2**20:,.0f} MiB was written in {written - began:.1f} s and {read}"


def _remove(folder: epath.Path) -> None:
    """Removes a folder, on the first process, if it can."""
    if jax.process_index() == 0:
        with contextlib.suppress(OSError):
            folder.rmtree()


def _room_for(trees: Mapping[str, Any]) -> bool:
    """Whether this process's devices hold these trees once more; True where a device does not tell."""
    shards = [s for x in jax.tree.leaves(dict(trees)) for s in x.addressable_shards]
    needed = collections.Counter()
    for shard in shards:
        needed[shard.device] += shard.data.nbytes
    told = {device: device.memory_stats() or {} for device in needed}
    return all(m["bytes_limit"] - m["bytes_in_use"] > 1.1 * needed[d] for d, m in told.items() if "bytes_limit" in m)


def _check_host(meta: Any, step: int) -> None:
    """Raises CheckpointError where the host's part of checkpoint `step` is not what `save` wrote there."""
    if not isinstance(meta, dict) or meta.keys() - {"sha256"} != set(HOST):
        raise CheckpointError(f"its host part holds other things than {', '.join(HOST)}")
    if "sha256" not in meta:
        log.warning("checkpoint %s is of an earlier version: its host part has no checksum to compare with", step)
    elif meta["sha256"] != digest({k: meta[k] for k in HOST}):
        raise CheckpointError("checksum of its host part differs")
    if meta["step"] != step:
        raise CheckpointError(f"it says that it is of step {meta['step']}")
