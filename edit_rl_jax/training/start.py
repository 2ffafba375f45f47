"""What a run starts from: the revision of its base, its prompts, its weights and those of an adapter."""

import hashlib
from pathlib import Path
from typing import Any

from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files
from edit_rl_jax.training import interfaces
from edit_rl_jax.training.program import Program


def revision(folder: Path | None) -> str:
    """What the base is, whether or not the config says: the commit of a hub snapshot, else "sha256:" and 16 hex digits
    over config, index and the names and sizes of the weight files; "" for None."""
    if folder is None or folder.parent.name == "snapshots":  # the hub cache's .../snapshots/COMMIT
        return folder.name if folder else ""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        if path.name == "config.json" or path.name.endswith(".safetensors.index.json"):
            digest.update(name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(f"{name} {path.stat().st_size}".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def prompts(config: Any, base: Path | None) -> Any:
    """The prompts of an objective that has any (see `training.registry`), else None: `config.model.prompts`, else those
    stored with a base of the same objective, else the objective's own default. Raises ConfigError for a wrong name."""
    objective, name = interfaces.objective(config), config.model.prompts
    if not hasattr(objective, "choose_prompts"):
        if name:
            raise ConfigError(f"config key 'model.prompts' is '{name}', but '{config.objective}' has no prompts")
        return None
    stored = model_files.stored_metadata(base) if base else {}
    found = stored.get("prompts") if stored.get("objective") == config.objective else None
    where = f"{base / model_files.METADATA}" if base and found and not name else "config key 'model.prompts'"
    try:
        return objective.choose_prompts(name, found)
    except (KeyError, ValueError) as e:
        raise ConfigError(f"{where}: {e.args[0]}") from e


def initial_weights(program: Program, base: Path | None) -> tuple[st.Flat, st.Flat]:
    """(trainable, frozen) on the mesh: random by `config.seed`, then the base's and the adapter's weights over them.

    Raises WeightsError for files that do not fit, or are not as they were exported (see `nn.model_files`), ConfigError
    for an adapter that is not what `model.lora` describes.
    """
    if base is not None:
        model_files.verify(base)
    return interfaces.model(program.config).initial_weights(program, base)
