"""What a run's folder says about itself (`config.json`), and the refusal to resume a different run."""

import datetime
import importlib.metadata
import json
import platform
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import jax
from etils import epath

from edit_rl_jax import json_files
from edit_rl_jax.names import ConfigError
from edit_rl_jax.training.config import difference, portable

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "transformers", "edit-rl-jax")


def local_folder(workdir: str) -> tuple[Path, epath.Path | None]:
    """Says where a workdir lies: (folder to write to, remote folder to mirror to or None)."""
    if "://" not in workdir:
        return Path(workdir), None
    name = workdir.rstrip("/").replace("://", "_").replace("/", "_")
    return Path(tempfile.gettempdir()) / "edit_rl_jax" / name, epath.Path(workdir)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def git_commit() -> str:
    """Finds the commit of the checkout that this package runs from, with "+changes" if it differs; else ""."""
    git = lambda *args: subprocess.run(["git", "-C", str(root), *args], capture_output=True, text=True)
    root = Path(__file__).resolve().parents[2]
    try:
        found = git("rev-parse", "HEAD")
        if found.returncode or not (root / "pyproject.toml").exists():
            return ""
        return found.stdout.strip() + ("+changes" if git("status", "--porcelain", "-uno").stdout.strip() else "")
    except OSError:
        return ""


def describe(config: Any, mesh: Any, **facts: Any) -> dict[str, Any]:
    """Gives the content of `config.json`: the config and all else that a reader needs to repeat the run.

    facts: `steps`, `data_hash` and `base_hash` among them, which must not change on resume.
    """
    device = mesh.devices.flat[0]
    plain = config.to_dict()
    plain["model"]["init_from"] = portable(plain["model"]["init_from"])
    return {
        "config": plain,
        **facts,
        "command": sys.argv,
        "started": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "git_commit": git_commit(),
        "versions": {"python": platform.python_version()} | {p: _version(p) for p in PACKAGES},
        "device": {"kind": device.device_kind, "count": mesh.size, "mesh": dict(mesh.shape)},
        "processes": jax.process_count(),
    }


FIXED = ("steps", "data_hash", "base_hash", "principles_hash")


def check_same(folder: epath.Path, now: dict[str, Any]) -> bool:
    """Says whether the folder holds this run. Raises ConfigError, printing the difference, when it holds another.

    What ended before its first checkpoint is no run: the corrected command may use its folder.
    """
    path, checkpoints = folder / "config.json", folder / "checkpoints"
    held = [p.name for p in checkpoints.iterdir()] if checkpoints.exists() else []
    if not any(name.removeprefix("damaged-").isdigit() for name in held):
        return False
    try:
        old = json_files.read_object(path)
    except (json_files.JSONError, OSError) as e:
        raise ConfigError(f"{folder} holds checkpoints, but of which run cannot be read: {e}") from e
    if not isinstance(old.get("config"), dict):
        raise ConfigError(f"{folder} holds checkpoints, but of which run cannot be read: {path}: no object 'config'")
    changed = difference(old["config"], json.loads(json.dumps(now["config"])))
    changed |= {k: (old.get(k), now.get(k)) for k in FIXED if old.get(k) != now.get(k)}
    if changed:
        lines = "\n".join(f"  {k}: {a!r} -> {b!r}" for k, (a, b) in changed.items())
        raise ConfigError(f"{folder} holds a run under another config; use another --workdir. Changed:\n{lines}")
    return True


def enter(folder: Path, remote: epath.Path | None, about: dict[str, Any]) -> None:
    """Refuses the folder of another run (ConfigError, as `check_same`), else leaves `config.json` in `folder`."""
    same = check_same(remote or epath.Path(folder), about)
    path = folder / "config.json"
    if jax.process_index() or same and path.exists():
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as e:
        raise ConfigError(f"--workdir: {e}") from e
    part = folder / "config.json.part"  # moved when whole: a kill here must not leave half a file
    part.write_text((remote / path.name).read_text() if same and remote else json.dumps(about, indent=2) + "\n")
    part.replace(path)


def mark_finished(folder: epath.Path) -> None:
    """Writes `finished`, the last file of a run: an interrupted one has none, whatever its exit status."""
    (folder / "finished").write_text(datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds") + "\n")
