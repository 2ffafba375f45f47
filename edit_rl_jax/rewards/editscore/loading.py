"""An EditScore model from a folder: base weights, adapter, and where a base is found."""

from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax.qwen2_5_vl import peft, weights
from edit_rl_jax.qwen2_5_vl.config import Config
from edit_rl_jax.qwen2_5_vl.model import LoRAConfig, Qwen25VL
from edit_rl_jax.sharding import shardings


def load_model(
    cfg: Config,
    folder: str | Path,
    adapter: tuple[Path, peft.Adapter] | None = None,
    *,
    dtype: Any = None,
    merge: bool = True,
    mesh: Any = None,
    attention: str | None = None,
) -> Qwen25VL:
    """Qwen2.5-VL with the weights of a folder and, if given, an adapter (folder, description); for inference."""
    dtype = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    lora = None
    if adapter:
        _, a = adapter
        lora = LoRAConfig(rank=a.rank, alpha=a.alpha, vision=a.vision, merger=a.merger)
    make = lambda lora: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=lora, dtype=dtype, attention=attention, remat="none")
    graphdef, abstract = nnx.split(nnx.eval_shape(lambda: make(lora)))
    places = shardings(abstract, mesh) if mesh is not None else None
    state = weights.load(folder, abstract, places)
    if adapter:
        state = peft.load(adapter[0], state, places)
        if merge:
            graphdef, state = nnx.split(nnx.eval_shape(lambda: make(None)))[0], peft.merge(state, adapter[1].scale)
    return nnx.merge(graphdef, state)


def base_folder(folder: Path, base: str | Path | None, adapter: peft.Adapter) -> Path:
    """Where an adapter's base is: as told, else as the adapter says: from here, from the adapter, or one that the
    package carries (its folder was another on the machine that trained)."""
    said = base or adapter.config.get("base_model_name_or_path")
    if not said:
        raise FileNotFoundError(f"{folder} names no base model: give one")
    packaged = Path(__file__).parents[2] / "assets" / Path(said).name
    for found in () if base or Path(said).is_dir() else (folder / said, packaged):
        if found.is_dir():
            return found
    return weights.local_folder(said, None if base else adapter.config.get("revision"))
