"""What a run starts from: the revision of its base, its prompts, its weights and those of an adapter."""

import hashlib
from pathlib import Path
from typing import Any

import jax

from edit_rl_jax.nn.peft import modules
from edit_rl_jax.qwen2_5_vl import peft, weights
from edit_rl_jax.training import export, registry
from edit_rl_jax.training import state as st
from edit_rl_jax.training.build import Program, hub_folder
from edit_rl_jax.training.config import ConfigError


def revision(folder: Path | None) -> str:
    """What the base is, whether or not the config says: the commit of a hub snapshot, else "sha256:" and 16 hex digits
    over config, index and the names and sizes of the weight files; "" for None."""
    if folder is None or folder.parent.name == "snapshots":  # the hub cache's .../snapshots/COMMIT
        return folder.name if folder else ""
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        if path.name in ("config.json", weights.INDEX):
            digest.update(path.name.encode() + path.read_bytes())
        elif path.suffix == ".safetensors":
            digest.update(f"{path.name} {path.stat().st_size}".encode())
    return f"sha256:{digest.hexdigest()[:16]}"


def prompts(config: Any, base: Path | None) -> Any:
    """The prompts of an objective that has any (see `training.registry`), else None: `config.model.prompts`, else those
    stored with a base of the same objective, else the objective's own default. Raises ConfigError for a wrong name."""
    objective, name = registry.objective(config.objective), config.model.prompts
    if not hasattr(objective, "choose_prompts"):
        if name:
            raise ConfigError(f"config key 'model.prompts' is '{name}', but '{config.objective}' has no prompts")
        return None
    stored = export.stored_metadata(base) if base else {}
    try:
        return objective.choose_prompts(
            name, stored.get("prompts") if stored.get("objective") == config.objective else None
        )
    except (KeyError, ValueError) as e:
        raise ConfigError(f"config key 'model.prompts': {e.args[0]}") from e


def initial_weights(program: Program, base: Path | None) -> tuple[st.Flat, st.Flat]:
    """(trainable, frozen) on the mesh: random by `config.seed`, then the base's and the adapter's weights over them.

    Raises WeightsError for files that do not fit, ConfigError for an adapter that is not what `model.lora` describes.
    """
    m, key = program.config.model, jax.random.key(program.config.seed)
    if base is None:
        return program.init(key)
    if m.trainable == "full":
        return st.flatten(weights.load(base, program.with_shardings("trainable"))), {}
    if m.init_adapter:
        folder = hub_folder(program.config, "init_adapter")
        check_adapter(program, peft.read_adapter(folder))
        trainable = st.flatten(peft.load(folder, program.with_shardings("trainable")))
    else:
        trainable = program.init_trainable(key)
    return trainable, st.flatten(weights.load(base, program.with_shardings("frozen")))


def check_adapter(program: Program, adapter: peft.Adapter) -> None:
    """Raises ConfigError naming each key of `model.lora` in which the adapter differs: another alpha would change what
    it computes, and a layer that it does not cover would start at zero and stay there."""
    lora = program.config.model.lora
    wrong = [
        f"model.lora.{key} is {lora[key]}, the adapter's {getattr(adapter, key)}"
        for key in ("rank", "alpha", "vision", "merger")
        if lora[key] != getattr(adapter, key)
    ]
    left = [m for m in modules(program.trainable_state, weights.NAMING) if not adapter.targets(m)]
    if not wrong and left:
        wrong = [f"the adapter does not cover {', '.join(left[:5])}{' and more' if len(left) > 5 else ''}"]
    if wrong:
        raise ConfigError("config key 'model.init_adapter': " + "; ".join(wrong))
