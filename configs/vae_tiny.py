"""The tiny editor's autoencoder, from scratch on EditWorld: 84 x 84 pixels to 21 x 21 latents, then to 3 x 3 patches of
48 numbers (fitted at the end, by principal components).

    python scripts/train_editor.py --config configs/vae_tiny.py --workdir runs/vae_tiny

The result, runs/vae_tiny/model, is where configs/editor_tiny.py starts.
Hardware: two CPU cores, 4 to 5 minutes. To expect: 0.95 of right edits survive it (eval.json), 0.98 without
the patches.
"""

import json

from edit_rl_jax.editors.omnigen2 import tiny
from edit_rl_jax.training.config import default


def get_config():
    c = default(kind="autoencoder", objective="autoencoder")
    c.name = "vae_tiny"
    c.steps = 2400
    c.rows = 2
    c.model.config = json.dumps(tiny.VAE.to_hf())
    c.model.trainable = "full"
    c.data.train = "editworld_edits"
    c.data.size = 1_000_000
    c.data.shuffle = False  # the world is random by index
    c.data.validation_size = 64
    c.data.buckets = ((0, 0, 84, 84),)
    c.data.workers = 1
    c.optim.name = "muon"
    c.optim.lr = 1e-2
    c.optim.adam_lr = 2e-3
    c.optim.schedule = "linear"
    c.optim.warmup = 50
    c.optim.b2 = 0.98
    c.optim.ema = 0.995
    c.checkpoint.every = 250
    c.autoencoder.kl = 6e-5
    c.eval.batches = 32
    c.eval.prompts = 256
    c.log.every = 50
    return c
