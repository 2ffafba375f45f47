"""Objectives and kinds of models by name.

An objective is a module or a class that has

    to_examples(record, seed) -> list of examples               the training examples of one record
    loss(model, batch) -> (sum f32 [], weight f32 [], metrics)  metrics: name -> (sum, weight), both scalars, except
                                                                `rows`: (sums [B], weights [B]) of each row

and, where it asks the model something in words (without these two it has no prompts, and none are chosen for it),

    choose_prompts(name, stored) -> prompts                     by name, else as stored in a base's `edit_rl.json` (or
                                                                None), else its own default; with `name`, `version`,
                                                                `sha256` and `to_json()`
    examples_with(prompts) -> to_examples                       bound to them

A class is made without arguments, or by its `configured(config)` where it has one. `loss` must be a plain sum: the step
divides by the weight of all microbatches and devices.

A kind of model is a module that has

    model_config(config) -> cfg                      the architecture that `config.model` names; hashable
    make(config, cfg, mesh, dtype) -> (rngs) -> module
    Bucket                                           class of the entries of `config.data.buckets`
    tokenizer(config, base, cfg) -> tokenizer        or None
    batch_format(config, cfg, tokenizer) -> `data.pipeline.Format`; without a tokenizer for its shapes only
    local_folder(name, revision) -> Path             of a base: a folder, or the snapshot of a hub id
    initial_weights(program, base) -> (trainable, frozen)
    export(program, trainable, folder, frozen=, tokenizer=, prompts=, facts=, revision=) -> Path
"""

from pathlib import Path
from typing import Any

from edit_rl_jax.names import ConfigError, resolve

OBJECTIVES = {
    "editscore": "edit_rl_jax.rewards.editscore.objective",
    "sft": "edit_rl_jax.training.sft",  # the source already gives examples (pretraining of the tiny base)
    "flow_matching": "edit_rl_jax.editors.flow_matching:FlowMatching",
    "autoencoder": "edit_rl_jax.editors.vae.trainable:Reconstruction",
}
MODELS = {
    "qwen2_5_vl": "edit_rl_jax.vlm.trainable",
    "omnigen2": "edit_rl_jax.editors.omnigen2.trainable",
    "autoencoder": "edit_rl_jax.editors.vae.trainable",
}

# Modules with `local_folder`, `from_folder`, `folder_tokenizer` and `schedule`, as OmniGen2's. An editor from outside
# is one module with these and what a kind of model has, so no name may mean two things.
EDITORS = {"omnigen2": "edit_rl_jax.editors.omnigen2.weights"}


def objective(config: Any) -> Any:
    """The objective `config.objective`, a name or "my_pkg.mod:Class". ConfigError names the nearest right name."""
    found = resolve(config.objective, OBJECTIVES)
    if not isinstance(found, type):
        return found
    return found.configured(config) if hasattr(found, "configured") else found()


def model(config: Any) -> Any:
    """The kind of model `config.model.kind`, a name or "my_pkg.mod". ConfigError names the nearest right name."""
    return resolve(config.model.kind, MODELS)


def hub_folder(config: Any, key: str, revision: str | None = None) -> Path:
    """Finds the local folder of the path or hub id under a key of `config.model`. Raises ConfigError for none."""
    name = config.model[key]
    try:
        return model(config).local_folder(name, revision)
    except OSError as e:  # the hub's errors are of this kind too
        raise ConfigError(f"config key 'model.{key}', '{name}': {str(e).splitlines()[0]}") from e


def base_folder(config: Any) -> Path | None:
    """Finds the local folder of `model.init_from`; None for random weights. Raises ConfigError where there is none."""
    return hub_folder(config, "init_from", config.model.revision or None) if config.model.init_from else None
