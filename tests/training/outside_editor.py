"""An editor from outside the package: one module is the kind of model that is trained and the editor that edits."""

from edit_rl_jax.editors.omnigen2.weights import folder_tokenizer, from_folder, schedule
from edit_rl_jax.training.omnigen2 import (
    Bucket,
    batch_format,
    export,
    initial_weights,
    local_folder,
    make,
    model_config,
    tokenizer,
)

KIND = [Bucket, batch_format, export, initial_weights, local_folder, make, model_config, tokenizer]
EDITOR = [folder_tokenizer, from_folder, local_folder, schedule]
