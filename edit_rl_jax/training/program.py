"""From a config and a mesh to a `Program`: a model on the mesh and the jitted step. Allocates nothing.

The training scripts run a Program; `plan.py` lowers the same one for a topology that is not there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from jax.sharding import Mesh

from edit_rl_jax import flops, sharding
from edit_rl_jax.data.pipeline import Format
from edit_rl_jax.nn import flat as st
from edit_rl_jax.training import interfaces, optim, step
from edit_rl_jax.training.on_mesh import OnMesh, State, dtype, places


@dataclasses.dataclass(frozen=True)
class Program(OnMesh):
    """The programs of a training run, compiled on demand; all abstract values carry shardings."""

    config: Any
    model_config: Any
    state: State  # abstract
    batches: dict[Any, dict[str, jax.ShapeDtypeStruct]]  # arrays [accum, B, ...]
    step: Callable  # jitted: (state, frozen, batch, step_number) -> (state, metrics), state donated
    evaluate: Callable  # jitted: (trainable, frozen, batch) -> {name: (sum, weight)}
    init_state: Callable  # jitted: (trainable) -> state
    loss: Callable  # (trainable, frozen, batch) -> (sum, (weight, metrics)), see `step.make_loss`

    def model_flops(self, bucket: Any, remat: bool = False) -> int:
        """Counts the FLOPs that the mathematics of one step needs, over all devices: forward and backward without
        rematerialisation (with `remat`: as executed). That is 4N + attention a token for LoRA and 6N + attention for
        full training, less what needs no gradient."""
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.batches[bucket])
        grad = jax.value_and_grad(self.loss, has_aux=True)
        with jax.set_mesh(self.mesh):
            return self.config.accum * flops.count(grad, self.trainable, self.frozen, part, remat=remat)


def abstract_batches(config: Any, form: Format, mesh: Mesh) -> dict[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Gives shapes and shardings of every bucket's batch, with the accumulation axis in front."""
    out = {}
    for i, bucket in enumerate(form.buckets):
        one, lead = form.empty(i, 1), (config.accum, config.rows)  # a pod's whole batch may not fit into a host
        batch = {k: jax.ShapeDtypeStruct(lead + v.shape[1:], v.dtype) for k, v in one.items()}
        out[bucket] = st.abstract(batch, sharding.batch_shardings(batch, mesh, accum=True))
    return out


def build_program(config: Any, mesh: Mesh, steps: int = 0) -> Program:
    """Builds the program of a config (`training.config`) on a mesh of real or described devices.

    steps: total optimizer steps of the schedule; default `config.steps`. Raises ConfigError or ShardingError, naming
    the key or the tensor.
    """
    kind, objective = interfaces.model(config), interfaces.objective(config)
    cfg = kind.model_config(config)
    model = OnMesh.of(kind.make(config, cfg, mesh, dtype(config, mesh)), mesh)
    optimizer = optim.make(config.optim, steps or config.steps or 1)
    state, init_state = model.train_state(optimizer.init)
    loss = step.make_loss(model.merge, objective)
    validation = step.make_loss(model.merge, objective, training=False)
    return Program(
        **vars(model),
        config=config,
        model_config=cfg,
        state=state,
        batches=abstract_batches(config, kind.batch_format(config, cfg, None), mesh),
        step=jax.jit(
            step.make_step(loss, optimizer), out_shardings=(places(state), model.everywhere), donate_argnums=0
        ),
        evaluate=jax.jit(step.make_evaluate(validation), out_shardings=model.everywhere),
        init_state=init_state,
        loss=loss,
    )
