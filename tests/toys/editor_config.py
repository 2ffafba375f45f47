"""The toy editor trained from scratch on scenes of 24 pixels.

python scripts/train_editor.py --config tests/toys/editor_config.py --workdir runs/toy
"""

from edit_rl_jax.training import config_keys


def get_config():
    c = config_keys.default("tests.toys.editor", "flow_matching")
    c.update(steps=60, rows=16, compilation_cache="")
    c.model.update(config='{"width": 32}', trainable="full", remat="none")
    c.data.update(train="editworld_edits", size=200, validation_size=16, resolution=24, workers=0)
    c.data.buckets = ((32, 1, 24, 24),)
    c.flow.update(shift="none", times="uniform")
    c.optim.update(lr=1e-2, warmup=5)
    c.checkpoint.every = 60
    c.eval.update(batches=1, prompts=8, sample_steps=2)
    c.log.tensorboard = False
    return c
