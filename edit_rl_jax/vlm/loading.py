"""An EditScore model from a folder: base weights, adapter, and where a base is found."""

import re
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax.nn import peft_config
from edit_rl_jax.sharding import shardings
from edit_rl_jax.vlm.qwen2_5_vl import peft, weights
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL

PACKAGED = re.compile(r"(?:^|/)edit_rl_jax/assets/([^/]+)/?$")  # as `config.portable` writes it, or with the whole path
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


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
    lora = adapter[1].lora if adapter else None
    make = lambda lora: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=lora, dtype=dtype, attention=attention, remat="none")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(lora)))
    places = shardings(state, mesh) if mesh is not None else None
    if adapter:  # first, for it says soonest whether the two belong together
        state = peft.load(adapter[0], state, places)
    state = weights.load(folder, state, places)
    if adapter and merge:
        graphdef, state = nnx.split(nnx.eval_shape(lambda: make(None)))[0], peft.merge(state, adapter[1].scale)
    return nnx.merge(graphdef, state)


def base_folder(folder: Path, base: str | Path | None = None) -> Path:
    """Where the base of an adapter folder is: as told, else exactly where the adapter says.

    What it says is a folder (from here, as PEFT reads it, or from the adapter), a model that the package carries, by
    its path in the package, or a hub id. Raises FileNotFoundError that asks for --base where there is none, and
    WeightsError for a malformed config.
    """
    config = peft_config.read(folder / peft.CONFIG)
    said, give = base or config.get("base_model_name_or_path"), "give the base with --base"
    if not said or not isinstance(said, (str, Path)):
        raise FileNotFoundError(f"{folder} names no base model ({said!r}): {give}")
    problem = f"{folder}: its base '{said}'"
    found = [f for f in ([Path(said)] if base else [Path(said), folder / said]) if f.is_dir()]
    if len(found) == 2 and not found[0].samefile(found[1]):
        raise FileNotFoundError(f"{problem} is both {found[0].resolve()} and {found[1].resolve()}: {give}")
    if not found and not base and (packaged := PACKAGED.search(str(said))):
        found = [f for f in [Path(__file__).parents[1] / "assets" / packaged[1]] if f.is_dir()]
    if not found:
        if not HUB_ID.fullmatch(str(said)):
            raise FileNotFoundError(f"{problem} is not here: {give}")
        try:
            found = [weights.local_folder(said, None if base else config.get("revision"))]
        except Exception as e:  # the hub's and the network's errors have no common base
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            raise FileNotFoundError(f"{problem} is neither here nor to be had from the hub: {give} ({reason})") from e
    if (found[0] / peft.CONFIG).exists() and not (found[0] / "config.json").exists():
        raise FileNotFoundError(f"{problem} is an adapter, not a model: {give}")
    return found[0]
