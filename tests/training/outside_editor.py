"""An editor from outside the package: one module is the kind of model that is trained and the editor that edits."""

from edit_rl_jax.editors.omnigen2.trainable import (  # noqa: F401
    BUCKET,
    SECTIONS,
    Bucket,
    batch_format,
    card,
    check,
    export,
    initial_weights,
    local_folder,
    make,
    model_config,
    tokenizer,
)
from edit_rl_jax.editors.omnigen2.weights import folder_tokenizer, from_folder, schedule  # noqa: F401
