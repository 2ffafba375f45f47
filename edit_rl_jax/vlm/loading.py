"""A model from a folder: architecture, tokenizer, image settings, what is stored with it, and then its weights."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax.nn import model_files, peft, peft_config, weights
from edit_rl_jax.nn.model_files import METADATA
from edit_rl_jax.nn.params import LoRAConfig
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.sharding import laid_by_rows, shardings
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.folders import base_folder, local_folder
from edit_rl_jax.vlm.patches import ImageSettings
from edit_rl_jax.vlm.tokenizer import check_tokenizer, load_tokenizer

__all__ = ["ModelFolder", "architecture", "base_folder", "load_model", "local_folder", "lora_of", "open_model"]


@dataclasses.dataclass(frozen=True)
class ModelFolder:
    """A model folder that was read, all but its weights.

    Attributes:
      cfg: the architecture (`family.Architecture`).
      tokenizer: its own, checked.
      images: how images become patches; the pixel budget is the stored one, else 512 x 512.
      metadata: what `edit_rl.json` says; {} for a model of another maker. where: that file, for messages.
      home: where the base weights are. adapter: (folder, description) of an adapter to them.
    """

    cfg: Any
    tokenizer: Any
    images: ImageSettings
    metadata: dict[str, Any]
    where: str
    home: Path
    adapter: tuple[Path, peft.Adapter] | None

    @property
    def folders(self) -> tuple[Path, Path | None]:
        """The folder that was asked for, and the base of an adapter, by which weights are known."""
        return (self.adapter[0], self.home) if self.adapter else (self.home, None)

    def load(self, **options: Any) -> Any:
        """The model with its weights (`family.Decoder`); options of `load_model`."""
        return load_model(self.cfg, self.home, self.adapter, **options)


def open_model(
    folder: str | Path, base: str | Path | None = None, *, revision: str | None = None, verify: bool = True
) -> ModelFolder:
    """Reads a model folder, or an adapter folder with its base (from `base`, else from where the adapter says).

    verify: compare an export's files with their SHA-256 first (see `nn.model_files`). Raises WeightsError, one line
    that names the file, or FileNotFoundError.
    """
    folder = local_folder(folder, revision)
    model_files.verify(folder, verify)
    adapted = (folder / peft.CONFIG).exists()
    home = base_folder(folder, base) if adapted else folder
    if home != folder:
        model_files.verify(home, verify)
    kind = family.of(home)
    adapter = (folder, peft.read_adapter(folder, kind.NAMING)) if adapted else None
    cfg = kind.architecture(home)
    has = lambda name: (folder if (folder / name).exists() else home) / name
    stored, budget = stored_metadata(has(METADATA).parent)
    images = _images(has("preprocessor_config.json"), cfg.images(), budget)
    tokenizer = load_tokenizer(has("tokenizer.json").parent)
    try:
        check_tokenizer(tokenizer, cfg)
    except WeightsError as e:
        raise WeightsError(f"{has('tokenizer.json').parent}: {e}") from None
    return ModelFolder(cfg, tokenizer, images, stored, str(has(METADATA)), home, adapter)


def stored_metadata(folder: Path) -> tuple[dict[str, Any], dict[str, int]]:
    """What a folder's `edit_rl.json` says, and its pixel budget, else 512 x 512. Raises WeightsError naming it."""
    stored, where = model_files.stored_metadata(folder), str(folder / METADATA)
    budget = dict(model_files.section(stored, "images", where)) or {"max_pixels": 512 * 512}
    for key, value in budget.items():
        if key not in ("min_pixels", "max_pixels"):
            raise WeightsError(f"{where}: images has no key {key[:40]!r}")
        model_files.checked(value, "int", f"{where}: images.{key}", 1, 2**40)
    return stored, budget


def _images(file: Path, own: ImageSettings, budget: dict[str, int]) -> ImageSettings:
    if not file.exists():
        return dataclasses.replace(own, **budget)
    images = ImageSettings.from_hf(file, **budget)
    sizes = lambda s: (s.patch_size, s.temporal_patch_size, s.merge_size)
    if sizes(images) != sizes(own):
        raise WeightsError(f"{file}: patch and merge sizes are not the model's, {sizes(own)}")
    return images


def architecture(name: str | Path, base: str | Path | None = None) -> family.Architecture:
    """The architecture of a model or adapter folder, or hub id; published ones need no download.

    Raises WeightsError or OSError where the model or its base is not there.
    """
    home = base or name
    if not base and not family.published(str(name)):
        home = folder = local_folder(name)
        if (folder / peft.CONFIG).exists():
            said = peft_config.read(folder / peft.CONFIG).get("base_model_name_or_path")
            home = said if family.published(str(said)) else base_folder(folder)
    known = None if Path(home).exists() else family.published(str(home))
    source = known[0] if known else local_folder(home)
    return family.of(source).architecture(source)


def load_model(
    cfg: Any,
    folder: str | Path,
    adapter: tuple[Path, peft.Adapter] | None = None,
    *,
    dtype: Any = None,
    merge: bool = True,
    mesh: Any = None,
    attention: str | None = None,
) -> Any:
    """The model of an architecture with the weights of a folder and, if given, an adapter (folder, description).

    dtype: default fp32 on CPU, bf16 elsewhere. merge: folds the adapter into the weights.
    """
    kind, dtype = family.of(cfg), dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    lora = lora_of(adapter[1], kind) if adapter else None
    make = lambda lora: kind.model(cfg, rngs=nnx.Rngs(0), lora=lora, dtype=dtype, attention=attention, remat="none")
    graphdef, state = nnx.split(nnx.eval_shape(lambda: make(lora)))
    places = shardings(state, mesh) if mesh is not None else None
    if adapter:  # first, for it says soonest whether the two belong together
        state = peft.load(adapter[0], state, kind.NAMING, places)
    state = weights.load(local_folder(folder), state, kind.NAMING, places)
    if adapter and merge:
        graphdef, state = nnx.split(nnx.eval_shape(lambda: make(None)))[0], peft.merge(state, adapter[1].scale)
    return nnx.merge(graphdef, laid_by_rows(state))


def lora_of(adapter: peft.Adapter, kind: Any) -> LoRAConfig:
    """The leaves that a model of a family needs to hold an adapter."""
    covers = lambda start: any(m.startswith(start) for m in adapter.layers)
    return LoRAConfig(adapter.rank, adapter.alpha, **{k: covers(start) for k, start in kind.LORA_PARTS.items()})
