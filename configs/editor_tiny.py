"""The tiny editor, from scratch on EditWorld: a small OmniGen2 with its language model, on configs/vae_tiny.py's
autoencoder.

    python scripts/train_editor.py --config configs/editor_tiny.py --workdir runs/editor_tiny \\
        --config.model.vae=runs/vae_tiny/model

Hardware: two CPU cores, half an hour at 0.42 s a step. The one run so far ended at step 3,400, where the oracle
called 0.055 of 512 edits a success (of backgrounds 0.375): it had learnt what to do and not where. Not enough to start
RL from.
"""

from edit_rl_jax.editors import tiny
from edit_rl_jax.training import omnigen2
from edit_rl_jax.training.config import default


def get_config():
    c = default()
    c.name = "editor_tiny"
    c.objective = "flow_matching"
    c.steps = 3800
    c.rows = 32
    c.model.kind = "omnigen2"
    c.model.config = omnigen2.to_json(tiny.configs())
    c.model.tokenizer = "editworld"
    c.model.trainable = "full"
    c.model.save_dtype = "bfloat16"
    c.model.train_text = True
    c.model.remat = "none"
    c.data.train = "editworld_edits"
    c.data.size = 1_000_000
    c.data.shuffle = False  # the world is random by index
    c.data.validation_size = 256
    c.data.buckets = ((16, 1, 84, 84), (36, 1, 84, 84))  # of 110,000 instructions one has 33 tokens
    c.data.workers = 1
    c.flow.times = "uniform"
    c.flow.shift = "none"
    c.flow.drop_text = 0.02
    c.flow.sample_latents = False
    c.flow.changed = 4.0
    c.optim.name = "muon"
    c.optim.lr = 2e-2
    c.optim.adam_lr = 1e-2
    c.optim.schedule = "linear"
    c.optim.warmup = 50
    c.optim.b2 = 0.98
    c.optim.ema = 0.99
    c.checkpoint.every = 100
    c.eval.batches = 4
    c.eval.prompts = 512
    c.log.every = 20
    return c
