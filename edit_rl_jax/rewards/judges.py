"""Finds the judge of a model folder and loads it: which it is stands in the folder's `edit_rl.json`, or is said."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.names import resolve
from edit_rl_jax.nn import model_files, weights
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards.base import Judge

DEFAULT = "editscore"  # of folders that say nothing: released models and adapters
JUDGES = {  # by `objective` of training
    "editscore": "edit_rl_jax.rewards.editscore.judge:EditScore",
    "editreward": "edit_rl_jax.rewards.editreward.judge:EditReward",
    "edit_rrm": "edit_rl_jax.rewards.edit_rrm.judge:EditRRM",
}


def kind(name: str) -> Any:
    """Returns the class of a judge, by a name of JUDGES or as "my_pkg.mod:Class". Raises ConfigError."""
    return resolve(name, JUDGES)


def name_of(folder: Path, said: str = "") -> str:
    """Names the judge of a local model folder: the one that is said, else by the objective that it was trained for.

    A class from outside has to be said, for a folder must not choose what is imported. Raises WeightsError, one line,
    for a folder whose objective is no judge's, or that of another judge than a known one that is said.
    """
    stored = model_files.stored_metadata(folder).get("objective") if folder.is_dir() else None
    if stored is None or ":" in said:
        return said or DEFAULT
    where = f"{folder / model_files.METADATA}: a model for the objective {model_files.short(stored)}"
    if not isinstance(stored, str) or stored not in JUDGES:
        raise WeightsError(
            f"{where} is no judge, of which there are {', '.join(JUDGES)} and what --judge mod:Class says"
        )
    if said not in ("", stored):
        raise WeightsError(f"{where} is not the judge {said!r}")
    return stored


def find(model: str | Path, judge: str = "") -> tuple[Path, Any]:
    """Returns the local folder of a model (of a hub id, its snapshot), and the class of its judge. Raises as `load`."""
    folder = weights.local_folder(model, None, ("*.json", "*.safetensors", "*.txt", "*.jinja"))
    return folder, kind(name_of(folder, judge))


def options(found: Any, given: Mapping[str, Any]) -> Any:
    """Returns the options of a judge's class; of `given` it takes those that it has."""
    return found.Options(**{f.name: given[f.name] for f in dataclasses.fields(found.Options) if f.name in given})


def load(
    model: str | Path,
    judge: str = "",
    options: Any = None,
    *,
    base: str | Path | None = None,
    mesh: Any = None,
    verify: bool = True,
) -> Judge:
    """Loads the judge of a model or adapter folder, or of a hub id.

    judge: its name, where the folder does not say it. options: of its `Options`, default: as they are declared.
    base: of an adapter, where it is not where the adapter says. mesh: where its weights are laid out.
    verify: compare an export with its SHA-256 (see `nn.model_files`). Raises ConfigError for an unknown name,
    WeightsError, one line that names the file, for what does not fit, or FileNotFoundError.
    """
    folder, found = find(model, judge)
    options = found.Options() if options is None else options
    if not isinstance(options, found.Options):
        raise WeightsError(f"{folder}: its judge has other options: say --judge {name_of(folder, judge)}")
    return found.from_folder(folder, options, base=base, mesh=mesh, verify=verify)
