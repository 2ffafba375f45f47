"""Objectives by name. An objective is a module or a class without constructor arguments that has

    to_examples(record, seed) -> list[Example]                  the training examples of one record
    loss(model, batch) -> (sum f32 [], weight f32 [], metrics)  metrics: name -> (sum, weight), both scalars, except
                                                                `rows`: (sums [B], weights [B]) of each text row

and, where it asks the model something in words (without these two it has no prompts, and none are chosen for it),

    choose_prompts(name, stored) -> prompts                     by name, else as stored in a base's `edit_rl.json` (or
                                                                None), else its own default; with `name`, `version`,
                                                                `sha256` and `to_json()`
    examples_with(prompts) -> to_examples                       bound to them

`loss` must be a plain sum: the step divides by the weight of all microbatches and devices.
"""

from typing import Any

from edit_rl_jax.training.config import resolve

OBJECTIVES = {
    "editscore": "edit_rl_jax.rewards.editscore.objective",
    "sft": "edit_rl_jax.training.sft",  # the source already gives examples (pretraining of the tiny base)
}

# Modules with `local_folder`, `from_folder`, `tokenizer` and `schedule`, as OmniGen2's.
EDITORS = {"omnigen2": "edit_rl_jax.editors.omnigen2.weights"}


def objective(name: str) -> Any:
    """The objective of that name or "my_pkg.mod:Class". Raises ConfigError naming the nearest right name."""
    found = resolve(name, OBJECTIVES)
    return found() if isinstance(found, type) else found
