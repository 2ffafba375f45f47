"""An editor from outside the package: one module is the kind of model that is trained and the editor that edits."""

from edit_rl_jax.editors.omnigen2.trainable import (
    Bucket,
    batch_format,
    export,
    initial_weights,
    local_folder,
    make,
    model_config,
    tokenizer,
)
from edit_rl_jax.editors.omnigen2.weights import folder_tokenizer, from_folder, schedule

KIND = [Bucket, batch_format, export, initial_weights, local_folder, make, model_config, tokenizer]
EDITOR = [folder_tokenizer, from_folder, local_folder, schedule]
