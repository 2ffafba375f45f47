"""A training loop of one's own: a line is fitted, with a session, a model on the mesh and an optimizer.

    python tests/toys/loop.py --config tests/toys/loop.py --workdir DIR

It resumes, holds the folder's lease, and writes checkpoints, figures and a report as the package's own loops do.
"""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np

from edit_rl_jax.nn.linear import Linear
from edit_rl_jax.nn.params import Init
from edit_rl_jax.training import optim, session
from edit_rl_jax.training.config import default
from edit_rl_jax.training.on_mesh import OnMesh, places
from edit_rl_jax.training.report import write_report

TRUTH = np.float32([[1.5], [-2.0], [0.5]])


def get_config():
    c = default()
    c.name, c.model.config, c.steps, c.rows, c.compilation_cache = "line", "{}", 300, 16, ""
    c.optim.lr, c.optim.ema, c.checkpoint.every, c.log.tensorboard = 0.1, 0.9, 20, False
    return c


def main(argv=None) -> int:
    return session.main(argv, __doc__, train)


def train(run: session.Session) -> None:
    config = run.config
    model = OnMesh.of(lambda rngs: Linear(3, 1, (None, None), init=Init(full=True), rngs=rngs), run.mesh)
    optimizer = optim.make(config.optim, config.steps)
    abstract, init_state = model.train_state(optimizer.init)

    def step(state, x, number):
        loss = lambda weights: jnp.mean((model.merge(weights, {})(x) - x @ TRUTH) ** 2)
        value, grads = jax.value_and_grad(loss)(state["trainable"])
        state, out = optimizer.apply(state, grads, value, number)
        return state, out | {"loss": value}

    step = jax.jit(step, out_shardings=(places(abstract), model.everywhere), donate_argnums=0)
    begin = lambda: init_state(model.init(jax.random.key(config.seed))[0])
    state, _ = run.resume(abstract, begin, steps=config.steps, data_hash="line", base_hash="")
    with jax.set_mesh(run.mesh):
        for number in run.steps():
            x = np.random.default_rng([config.seed, number]).normal(size=(config.rows, 3)).astype(np.float32)
            state, out = step(state, x, np.int32(number - 1))
            out = {k: float(v) for k, v in jax.device_get(out).items()}
            if bad := run.guard.check(number, bool(out.pop("finite")), None, (), ()):
                session.log.warning("%s", bad)
            run.record(number, out)
            if run.due(number, out):
                run.save(number, state, {"rows": number * config.rows})
    if run.interrupted:
        return
    if run.lead:
        error = np.abs(np.asarray(optim.averaged(state)["kernel"]) - TRUTH).max()
        (run.folder / "eval.json").write_text(json.dumps({"steps": config.steps, "error": float(error)}))
        write_report(run.folder)


if __name__ == "__main__":
    sys.exit(main())
