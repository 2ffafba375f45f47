"""The toy editor trained from scratch on scenes of 16 pixels.

python scripts/train_editor.py --config tests/toys/editor_config.py --workdir runs/toy
"""

from edit_rl_jax.training import config as config_lib


def get_config():
    c = config_lib.default()
    c.update(objective="flow_matching", steps=60, rows=16, compilation_cache="")
    c.model.update(kind="tests.toys.editor", config='{"width": 32}', trainable="full", remat="none")
    c.data.update(train="editworld_edits", size=200, validation_size=16, resolution=16, workers=0)
    c.data.buckets = ((32, 1, 16, 16),)
    c.flow.update(shift="none", times="uniform")
    c.optim.update(lr=1e-2, warmup=5)
    c.checkpoint.every = 60
    c.eval.update(batches=1, prompts=8, sample_steps=2)
    c.log.tensorboard = False
    return c
