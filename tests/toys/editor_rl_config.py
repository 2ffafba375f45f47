"""The toy editor improved by RL, all its weights; `model.init_from` is wanted.

python scripts/train_grpo.py --config tests/toys/editor_rl_config.py --workdir runs/toy_rl --config.model.init_from=DIR
"""

from edit_rl_jax.rl.editors import config as config_lib


def get_config():
    c = config_lib.default("tests.toys.editor")
    c.update(steps=2, rows=8, compilation_cache="")
    c.model.update(trainable="full", remat="none")
    c.data.update(train="editworld", size=32)
    c.optim.update(lr=1e-2, warmup=1)
    c.log.tensorboard = False
    r = c.rl
    r.update(prompts=2, group=8, updates=2, size=(24, 24), text=32, steps=3, window=2, eval_prompts=4, report_prompts=2)
    r.guidance.update(text=2.0)
    r.rewards = (("saturation", 1.0),)
    return c
