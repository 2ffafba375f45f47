"""Where figures go: `metrics.jsonl` (one object a step, each step once), TensorBoard, optionally W&B, and the
terminal."""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from etils import epath
from tqdm import tqdm

from edit_rl_jax.training.config import ConfigError


def read(path: str | os.PathLike) -> list[dict[str, Any]]:
    """The objects of a `metrics.jsonl`; a last line that a kill cut short is left out."""
    out = []
    for line in epath.Path(path).read_text().splitlines() if epath.Path(path).exists() else ():
        try:
            out.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return out


def run_id(workdir: Path | epath.Path, name: str) -> str:
    """Id of a run among all of a W&B project: the same for a resumption, another for another folder or config."""
    where = str(workdir) if "://" in str(workdir) else str(Path(workdir).resolve())
    return f"{workdir.name}-{hashlib.sha256(f'{where} {name}'.encode()).hexdigest()[:12]}"


class Writer:
    """Writes a run's figures under `folder` (local), after cutting `metrics.jsonl` back to `step` (0 = a new run).

    mirror: remote workdir to copy the small files to at each `mirror_now`, or None. Its metrics go before local ones,
    which another machine's continuation may have overtaken: mirror *before* a checkpoint is saved.
    """

    def __init__(self, folder: Path, step: int, *, config: Any, mirror: epath.Path | None = None):
        self.folder, self.mirror = folder, mirror
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "metrics.jsonl"
        if mirror is not None and (mirror / path.name).exists():
            path.write_text((mirror / path.name).read_text())
        kept = [m for m in read(path) if m["step"] <= step]
        cut = path.with_suffix(".cut")  # replaced in one move: a kill here leaves the old file or the new one
        cut.write_text("".join(json.dumps(m) + "\n" for m in kept))
        cut.replace(path)
        self._file = open(path, "a")
        self._tensorboard = self._wandb = None
        if config.log.tensorboard:
            from tensorboardX import SummaryWriter

            self._tensorboard = SummaryWriter(str(folder / "events"), purge_step=step + 1 if step else None)
        if config.log.wandb:
            try:
                import wandb
            except ImportError as e:
                raise ConfigError("config key 'log.wandb' needs the extra: pip install 'edit-rl-jax[wandb]'") from e
            name, identity = config.name or folder.name, run_id(mirror or folder, config.name)
            self._wandb = wandb.init(project="edit_rl_jax", name=name, dir=str(folder), resume="allow", id=identity)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Appends {"step": step, **values}; steps come in order. Floats that are not finite are written as null."""
        clean = {k: None if isinstance(v, float) and v - v != 0 else v for k, v in values.items()}
        self._file.write(json.dumps({"step": step} | clean) + "\n")
        self._file.flush()
        numbers = {k: v for k, v in values.items() if isinstance(v, (int, float))}
        if self._tensorboard:
            for key, value in numbers.items():
                self._tensorboard.add_scalar(key, value, step)
        if self._wandb:
            self._wandb.log(numbers, step=step)

    def mirror_now(self) -> None:
        """Copies metrics, config, reports and events to the remote workdir; nothing to do for a local one."""
        if self._tensorboard:
            self._tensorboard.flush()
        for path in self.folder.rglob("*") if self.mirror is not None else ():
            if path.is_file():
                target = self.mirror / path.relative_to(self.folder).as_posix()
                target.parent.mkdir(parents=True, exist_ok=True)
                epath.Path(path).copy(target, overwrite=True)

    def close(self) -> None:
        self.mirror_now()
        self._file.close()
        if self._tensorboard:
            self._tensorboard.close()
        if self._wandb:
            self._wandb.finish()


class Progress:
    """A bar on a terminal; elsewhere a plain line every `every` steps, with the time left."""

    def __init__(self, steps: int, start: int, every: int):
        self._bar = tqdm(total=steps, initial=start, unit="step", dynamic_ncols=True) if sys.stderr.isatty() else None
        self.steps, self.start, self.every, self._began = steps, start, max(1, every), time.monotonic()

    def show(self, step: int, values: dict[str, Any]) -> None:
        """Shows the figures of a finished step."""
        keys = (
            "loss",
            "reward_mean",
            "oracle_success",
            "token_accuracy",
            "grad_norm",
            "lr",
            "tokens_per_s",
            "mfu",
            "validation_loss",
        )
        text = {k: f"{values[k]:.4g}" for k in keys if isinstance(values.get(k), (int, float))}
        if self._bar is not None:
            self._bar.set_postfix(text, refresh=False)
            self._bar.update(step - self._bar.n)
        elif step % self.every == 0 or step in (self.start + 1, self.steps):
            left = (time.monotonic() - self._began) / max(1, step - self.start) * (self.steps - step)
            figures = " ".join(f"{k} {v}" for k, v in text.items())
            print(f"step {step}/{self.steps} {figures} left {left / 60:.1f} min", flush=True)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


class Table(dict):
    """Running (sum, weight) pairs of several evaluation batches; `means()` divides."""

    def add(self, sums: dict[str, tuple[Any, Any]]) -> None:
        for k, (s, w) in sums.items():
            old = self.get(k, (0.0, 0.0))
            self[k] = (old[0] + float(s), old[1] + float(w))

    def means(self, prefix: str = "", keys: Iterable[str] | None = None) -> dict[str, float]:
        return {prefix + k: s / w for k, (s, w) in self.items() if w and (keys is None or k in keys)}
