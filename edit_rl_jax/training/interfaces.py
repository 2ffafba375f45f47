"""What can be trained, and what for: the Protocols of kinds of models and of objectives, and their names.

A config names both: `model.kind` and `objective`, each a registered name or an import path. They are looked up once, at
the top of a run (`sources.Input`), and a member that is missing is one line that names it.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from jaxtyping import Array, Float

from edit_rl_jax import names
from edit_rl_jax.data.pipeline import Format
from edit_rl_jax.names import has_all, resolve
from edit_rl_jax.nn import model_files
from edit_rl_jax.nn.flat import Flat

OBJECTIVES = {
    "editscore": "edit_rl_jax.rewards.editscore.objective",
    "editreward": "edit_rl_jax.rewards.editreward.objective:Preference",
    "edit_rrm": "edit_rl_jax.rewards.edit_rrm.objective:Verifier",
    "sft": "edit_rl_jax.vlm.cross_entropy",  # the source already gives examples (pretraining of the tiny base)
    "flow_matching": "edit_rl_jax.editors.flow_matching:FlowMatching",
    "autoencoder": "edit_rl_jax.editors.vae.trainable:Reconstruction",
}
MODELS = {
    "qwen2_5_vl": "edit_rl_jax.vlm.trainable",  # a VLM of any family: which, the model's own files say
    "qwen3_vl": "edit_rl_jax.vlm.trainable",
    "editreward": "edit_rl_jax.rewards.editreward.trainable",
    "omnigen2": "edit_rl_jax.editors.omnigen2.trainable",
    "flux_kontext": "edit_rl_jax.editors.flux_kontext.trainable",
    "qwen_image_edit": "edit_rl_jax.editors.qwen_image_edit.trainable",
    "step1x_edit": "edit_rl_jax.editors.step1x_edit.trainable",
    "autoencoder": "edit_rl_jax.editors.vae.trainable",
}

Metrics = Mapping[str, tuple[Array, Array]]


@runtime_checkable
class Objective(Protocol):
    """A module, or a class: made without arguments, or by its `configured(config)` where it has one.

    One with options of its own names them in `SECTIONS`, as a kind of model does, and reads them in `configured`, which
    raises ConfigError for options that do not fit together.
    """

    def to_examples(self, record: Any, seed: int) -> list[Any]:
        """Makes the training examples of one record; raises RecordError for one that has none to give."""

    def loss(self, model: Any, batch: Mapping[str, Array]) -> tuple[Float[Array, ""], Float[Array, ""], Metrics]:
        """Sums the loss of a batch, without a mean: the step divides by the weight of all microbatches and devices.

        Gives (sum, weight, metrics), metrics a mapping from names to (sum, weight), scalars except `rows`: sums and
        weights [B] of each row, by which a loss that is not finite is traced to its records. An objective whose loss
        has chance in it also has `validation_loss`, without.
        """


@runtime_checkable
class Worded(Objective, Protocol):
    """An objective that asks the model something in words; without these two it has no prompts."""

    def choose_prompts(self, name: str, stored: Mapping[str, Any] | None) -> Any:
        """Chooses prompts by name, else as stored in a base's `edit_rl.json`, else by its own default. They have
        `name`, `version`, `sha256` and `to_json()`. Raises KeyError or ValueError."""

    def examples_with(self, prompts: Any) -> Callable[[Any, int], list[Any]]:
        """Binds `to_examples` to prompts; picklable."""


@runtime_checkable
class Trainable(Protocol):
    """A kind of model: a module or an object. `config` is the whole config, `cfg` what `model_config` gave."""

    SECTIONS: Mapping[str, type]
    """Dotted sections of its configs and the dataclasses whose fields they have (see `config_keys`)."""

    Bucket: type
    """Class of the entries of `config.data.buckets`, made of their numbers."""

    BUCKET: Mapping[str, int]
    """What these numbers are called, and the least that each can be."""

    def check(self, config: Any) -> None:
        """Raises ConfigError for values that do not fit together."""

    def model_config(self, config: Any) -> Any:
        """Reads the architecture that `config.model` names, hashable; of a published model without a download."""

    def make(self, config: Any, cfg: Any, mesh: Any, dtype: Any) -> Callable[..., Any]:
        """Gives the factory of the module: called with `rngs=`; RL of editors also says `lora=None` for the base."""

    def tokenizer(self, config: Any, base: Path | None, cfg: Any) -> Any:
        """Loads the tokenizer that `config.model.tokenizer` names, else the base's; None where no text is read."""

    def batch_format(self, config: Any, cfg: Any, tokenizer: Any) -> Format:
        """Makes the format of the batches; without a tokenizer for its shapes only."""

    def local_folder(self, name: str, revision: str | None) -> Path:
        """Finds a base: a folder, or the snapshot of a hub id. Raises OSError where there is none."""

    def initial_weights(self, program: Any, base: Path | None) -> tuple[Flat, Flat]:
        """Makes (trainable, frozen) on the mesh: random by `config.seed`, then the base's and the adapter's over them.

        Raises WeightsError for files that do not fit, ConfigError for an adapter that is not what the config describes.
        """

    def export(self, program: Any, trainable: Flat, folder: Path, **about: Any) -> Path:
        """Writes all that was trained, or raises WeightsError; about: `frozen`, `tokenizer`, `prompts`, `facts` (of the
        card), `revision` (of the base) and `source` (the training data). Every process calls, the first writes."""

    def card(self, config: Any, prompts: Any, facts: Mapping[str, Any], revision: str = "") -> str:
        """Writes the text of the model card."""


def objective_named(name: str) -> Any:
    """Finds an objective, not yet made, by its name or "my_pkg.mod:Class". ConfigError names the nearest right name, or
    what is missing."""
    return has_all(resolve(name, OBJECTIVES), Objective, "objective", name)


def model_named(name: str) -> Trainable:
    """Finds a kind of model by its name or "my_pkg.mod". Raises as `objective_named`."""
    return has_all(resolve(name, MODELS), Trainable, "model.kind", name)


def objective(config: Any) -> Objective:
    """Makes the objective of a config. Raises ConfigError, also for options that cannot be."""
    found = objective_named(config.objective)
    if not isinstance(found, type):
        return found
    return found.configured(config) if hasattr(found, "configured") else found()


def model(config: Any) -> Trainable:
    """Finds the kind of model of a config. Raises ConfigError."""
    return model_named(config.model.kind)


def base_folder(config: Any) -> Path | None:
    """Finds the local folder of `model.init_from`; None for random weights. Raises ConfigError where there is none."""
    return names.base_folder(config.model, model(config).local_folder)


def initial_weights(kind: Trainable, program: Any, base: Path | None) -> tuple[Flat, Flat]:
    """Makes (trainable, frozen) as `kind` does, from a base that is as it was exported (see `nn.model_files`)."""
    if base is not None:
        model_files.verify(base)
    return kind.initial_weights(program, base)
