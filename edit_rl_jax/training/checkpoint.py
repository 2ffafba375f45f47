"""Checkpoints of a run: trainable weights, optimizer state, and what came with the last consumed batch.

Orbax writes asynchronously into a temporary folder that is renamed when complete, so a killed save leaves no
checkpoint. A checksum of every tensor is taken on the devices before the save and compared after a restore: a damaged
newest checkpoint is named, set aside and the one before it is used.
"""

import logging
import os
from collections.abc import Mapping
from typing import Any

import jax
import orbax.checkpoint as ocp
from etils import epath
from jax.experimental import multihost_utils

from edit_rl_jax.training.state import checksums

log = logging.getLogger(__name__)


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be used; the message names the step and the tensor or file."""


def _named(tree: Any) -> dict[str, Any]:
    """{key path: leaf}: a flat dict survives any change of optax's container types."""
    return {jax.tree_util.keystr(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


class Checkpoints:
    """The newest `keep` checkpoints under `folder`, local or `gs://`. Every process makes one and calls each method."""

    def __init__(self, folder: str | os.PathLike, keep: int = 3):
        self.folder = epath.Path(folder)
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, create=True, cleanup_tmp_directories=True, enable_async_checkpointing=True
        )
        self._manager = ocp.CheckpointManager(self.folder.absolute(), options=options)

    def steps(self) -> list[int]:
        """Steps of complete checkpoints, oldest first."""
        return sorted(self._manager.all_steps())

    def save(self, step: int, trees: Mapping[str, Any], data: Any, extra: Mapping[str, Any] | None = None) -> None:
        """Starts to save the state after `step` updates and returns once the arrays may be donated.

        trees: {"trainable": ..., "opt_state": ...}. data: the iterator state that came with the last consumed batch;
        extra: anything else. Both plain JSON and the same on every process.
        """
        if step in self._manager.all_steps():
            return
        named = _named(dict(trees))
        sums = {k: int(v) for k, v in checksums(named).items()}
        meta = {"step": step, "data": data, "extra": dict(extra or {}), "checksums": sums}
        saved = self._manager.save(
            step, args=ocp.args.Composite(state=ocp.args.StandardSave(named), meta=ocp.args.JsonSave(meta)), force=True
        )
        if not saved:
            raise CheckpointError(f"checkpoint {step} was not saved")

    def restore(self, trees: Mapping[str, Any]) -> tuple[int, dict[str, Any], Any, dict[str, Any]] | None:
        """(step, trees, data, extra) of the newest checkpoint that is whole, or None where there is none.

        trees: abstract, with the shardings wanted: any mesh. Damaged ones are logged by step and reason and moved to
        `damaged-STEP`. Raises CheckpointError when checkpoints exist and all are damaged, or when the weights' names
        or shapes are not those wanted.
        """
        damaged = {}
        for step in reversed(self.steps()):
            try:
                found = self._read(step, trees)
            except _Mismatch:
                raise
            except Exception as e:  # whatever the storage raises on bad bytes
                damaged[step] = " ".join(str(e).split())[:300] or type(e).__name__
                log.warning("checkpoint %s is damaged (%s); trying the one before it", step, damaged[step])
                continue
            for bad in damaged:  # only now: a storage that fails for a moment must not cost every checkpoint
                self._set_aside(bad)
            return found
        left = [f"step {step}: {reason}" for step, reason in damaged.items()]
        left += [p.name for p in self.folder.iterdir() if p.name.startswith("damaged-")]
        if left:
            raise CheckpointError(f"no checkpoint under {self.folder} is whole: " + "; ".join(left))
        return None

    def _read(self, step: int, trees: Mapping[str, Any]):
        meta = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"]
        wanted = _named(dict(trees))
        if wrong := meta["checksums"].keys() ^ wanted.keys():
            raise _Mismatch(f"checkpoint {step} of other weights than this config's: {', '.join(sorted(wrong)[:5])}")
        named = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(wanted)))["state"]
        for name, value in checksums(named).items():
            if int(value) != meta["checksums"][name]:
                raise CheckpointError(f"checksum of {name} differs")
        restored = jax.tree_util.tree_map_with_path(lambda p, _: named[jax.tree_util.keystr(p)], dict(trees))
        return meta["step"], restored, meta["data"], meta["extra"]

    def _set_aside(self, step: int) -> None:
        if jax.process_index() == 0:
            bad = self.folder / str(step)
            bad.rename(self.folder / f"damaged-{step}")
        if jax.process_count() > 1:
            multihost_utils.sync_global_devices(f"set aside {step}")
        self._manager.reload()

    def wait(self) -> None:
        """Returns when everything saved is on storage; raises what a background save raised."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """`wait`, then frees the background threads."""
        self.wait()
        self._manager.close()


class _Mismatch(CheckpointError):
    """The checkpoint is whole but not of this run: falling back would not help."""
