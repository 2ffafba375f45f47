"""The tiny editor, from scratch on EditWorld: a small OmniGen2 with its language model, on configs/vae_tiny.py's
autoencoder.

    python scripts/train_editor.py --config configs/editor_tiny.py --workdir runs/editor_tiny \\
        --config.model.vae=runs/vae_tiny/model

The first instructions name cells and nothing else ("remove south"); what they teach, sentences then need not.
Hardware: two CPU cores, 0.8 s a step, 40 minutes. To expect: assets/tiny_editor, made nearly so (its card says
where its schedule differed) in 44 minutes, succeeds on 0.490 (0.445 to 0.533) of 512 held-out scenes by the oracle.

configs/editor_tiny.py:flux_kontext is a FLUX.1-Kontext of as many parameters (3,597,284 beside 3,634,972) on the same
autoencoder. Its T5 and its CLIP start at random and are trained with the transformer, as OmniGen2's language model is:
no pretrained ones read this world's tokens. Its texts all have 32 tokens, for their padding is seen: 4.6e10 FLOPs a
step beside 3.5e10 (texts of 18 tokens at most, the most frequent) and 5.0e10. In 40 processor minutes (1,727 steps) it
succeeds on 0.182 (0.148 to 0.215), OmniGen2 in as many (2,006 steps) on 0.365 (0.322 to 0.406).
--config.model.vae=edit_rl_jax/assets/tiny_editor/vae is the autoencoder of the packaged editor.
As a released Kontext it would enlarge an image to a million pixels: edit.py and eval_editor.py want --max-pixels 7056.
"""

from edit_rl_jax.editors.flux_kontext import tiny as flux_kontext
from edit_rl_jax.editors.flux_kontext.weights import FOLDER as FLUX_KONTEXT
from edit_rl_jax.editors.omnigen2 import tiny as omnigen2
from edit_rl_jax.editors.omnigen2.weights import FOLDER as OMNIGEN2
from edit_rl_jax.training.config import default

NETWORKS = {"omnigen2": (OMNIGEN2, omnigen2), "flux_kontext": (FLUX_KONTEXT, flux_kontext)}


def get_config(network="omnigen2"):
    if network not in NETWORKS:
        raise ValueError(f"no network '{network}'; there are {', '.join(NETWORKS)}")
    c = default(kind=network, objective="flow_matching")
    c.name = "editor_tiny" if network == "omnigen2" else f"editor_tiny_{network}"
    c.steps = 2800
    c.rows = 64
    folder, tiny = NETWORKS[network]
    c.model.config = folder.to_json(tiny.configs())
    c.model.tokenizer = "editworld"
    c.model.trainable = "full"
    c.model.save_dtype = "bfloat16"
    c.model.train_text = True
    c.model.remat = "none"
    c.data.train = "editworld_edits"
    c.data.size = 1_000_000
    c.data.shuffle = False  # the world is random by index
    with c.unlocked():
        c.data.options.first = 32_000  # items that are terse, the first 500 steps
        c.data.options.terse = 0.3
    c.data.validation_size = 256
    c.data.buckets = ((18, 1, 84, 84), (36, 1, 84, 84))  # of 110,000 instructions one has 35 tokens
    if network == "flux_kontext":
        c.model.text = flux_kontext.TEXT
        c.data.buckets = ((flux_kontext.TEXT, 1, 84, 84),)
    c.data.workers = 1
    c.flow.times = "uniform"
    c.flow.shift = "6"  # what to change, and where, is decided near the noise
    c.flow.drop_text = 0.02
    c.flow.sample_latents = False
    c.flow.changed = 1.0
    c.optim.name = "muon"
    c.optim.lr = 3e-2
    c.optim.adam_lr = 2e-2
    c.optim.schedule = "linear"
    c.optim.warmup = 50
    c.optim.b2 = 0.98
    c.optim.ema = 0.99
    c.checkpoint.every = 100
    c.eval.batches = 4
    c.eval.prompts = 512
    c.log.every = 20
    return c
