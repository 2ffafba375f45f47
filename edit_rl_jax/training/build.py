"""From a config and a mesh to a `Program`: abstract weights with shardings, and the jitted step. Allocates nothing.

The training scripts run a Program; `plan.py` lowers the same one for a topology that is not there.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edit_rl_jax import flops, sharding
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.params import Frozen, Trainable
from edit_rl_jax.training import interfaces, optim, step
from edit_rl_jax.training.interfaces import base_folder as base_folder


@dataclasses.dataclass(frozen=True)
class Program:
    """A training run, compiled on demand. Weights are flat dicts (see `training.state`); all abstract values carry
    shardings."""

    config: Any
    mesh: Mesh
    model_config: Any
    graphdef: nnx.GraphDef
    trainable_state: nnx.State  # abstract, with logical axes: templates for `state.unflatten`
    frozen_state: nnx.State
    trainable: st.Flat
    frozen: st.Flat
    opt_state: Any
    batches: dict[Any, dict[str, jax.ShapeDtypeStruct]]  # arrays [accum, B, ...]
    step: Callable  # jitted: (trainable, opt_state, frozen, batch, step_number) -> (trainable, opt_state, metrics)
    evaluate: Callable  # jitted: (trainable, frozen, batch) -> {name: (sum, weight)}
    init: Callable  # jitted: (key) -> (trainable, frozen), random weights
    init_trainable: Callable  # jitted: (key) -> trainable alone: what a loaded base does not hold
    init_optimizer: Callable  # jitted: (trainable) -> opt_state
    loss: Callable

    def merge(self, trainable: st.Flat, frozen: st.Flat) -> Any:
        """The model with these weights."""
        t, f = st.unflatten(self.trainable_state, trainable), st.unflatten(self.frozen_state, frozen)
        return nnx.merge(self.graphdef, t, f)

    def averaged(self, trainable: st.Flat, opt_state: Any) -> st.Flat:
        """The weights to validate and to export: their moving average where the config wants one."""
        return opt_state["ema"] if self.config.optim.ema else trainable

    def with_shardings(self, part: str) -> nnx.State:
        """The abstract state "trainable" or "frozen" whose values carry shardings, for the loaders."""
        template = self.trainable_state if part == "trainable" else self.frozen_state
        return st.unflatten(template, self.trainable if part == "trainable" else self.frozen)

    def model_flops(self, bucket: Any, remat: bool = False) -> int:
        """FLOPs that the mathematics of one step needs, over all devices: forward and backward without
        rematerialisation (with `remat`: as executed). That is 4N + attention a token for LoRA and 6N + attention for
        full training, less what needs no gradient."""
        part = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape[1:], x.dtype), self.batches[bucket])
        grad = jax.value_and_grad(self.loss, has_aux=True)
        with jax.set_mesh(self.mesh):
            return self.config.accum * flops.count(grad, self.trainable, self.frozen, part, remat=remat)


def model_config(config: Any) -> Any:
    """The architecture that `config.model` names. The published reward models need no download."""
    return interfaces.model(config).model_config(config)


def make_mesh(config: Any, devices: Any = None) -> Mesh:
    """Mesh of `config.mesh`, or of the preset that `config.topology` names; -1 takes the devices that are left.

    Raises ShardingError when the devices are not all used: an idle device is a mistake.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (config.mesh_presets[config.topology] if config.topology else config.mesh).to_dict()
    mesh = sharding.make_mesh({k: v for k, v in shape.items() if k != "data" or v != 1}, devices)
    if mesh.size != len(devices):
        raise sharding.ShardingError(f"mesh {dict(mesh.shape)} uses {mesh.size} of {len(devices)} devices")
    return mesh


def abstract_batches(config: Any, cfg: Any, mesh: Mesh) -> dict[Any, dict[str, jax.ShapeDtypeStruct]]:
    """Shapes and shardings of every bucket's batch, with the accumulation axis in front."""
    form, out = interfaces.model(config).batch_format(config, cfg, None), {}
    for i, bucket in enumerate(form.buckets):
        empty = form.empty(i, config.rows)
        batch = {k: jax.ShapeDtypeStruct((config.accum, *v.shape), v.dtype) for k, v in empty.items()}
        out[bucket] = st.abstract(batch, sharding.batch_shardings(batch, mesh, accum=True))
    return out


def _dtype(config: Any, mesh: Mesh) -> Any:
    if config.model.dtype == "auto":
        return jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)


def _opt_shardings(opt_state: Any, shardings: dict[str, NamedSharding], shapes: st.Flat, replicated: Any) -> Any:
    """What is stored under a weight's name with its shape is placed like the weight; the rest is replicated."""

    def place(path, leaf):
        names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey) and k.key in shardings]
        return shardings[names[-1]] if names and shapes[names[-1]].shape == leaf.shape else replicated

    return jax.tree_util.tree_map_with_path(place, opt_state)


def build(config: Any, mesh: Mesh, steps: int = 0) -> Program:
    """The program of a config (`training.config`) on a mesh of real or described devices.

    steps: total optimizer steps of the schedule; default `config.steps`. Raises ConfigError or ShardingError, naming
    the key or the tensor.
    """
    cfg = model_config(config)
    make = interfaces.model(config).make(config, cfg, mesh, _dtype(config, mesh))
    objective = interfaces.objective(config)
    split = lambda rngs: nnx.split(make(rngs=rngs), Trainable, Frozen)
    with jax.set_mesh(mesh):
        graphdef, trainable, frozen = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), Trainable, Frozen)
    replicated = NamedSharding(mesh, PartitionSpec())
    t_shard, f_shard = (st.flatten(sharding.shardings(s, mesh)) for s in (trainable, frozen))
    t_flat, f_flat = st.flatten(trainable), st.flatten(frozen)
    tx, ema = optim.make(config.optim), config.optim.ema
    start = (lambda t: {"optimizer": tx.init(t), "ema": jax.tree.map(jnp.copy, t)}) if ema else tx.init
    opt = jax.eval_shape(start, t_flat)
    o_shard = _opt_shardings(opt, t_shard, t_flat, replicated)

    loss = step.make_loss(graphdef, trainable, frozen, objective)
    train = step.make_step(loss, tx, optim.schedule(config.optim, steps or config.steps or 1), config.optim.clip, ema)

    # The initializers of many small weights run once and would take XLA's CPU compiler half a minute.
    quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    once = quickly if mesh.devices.flat[0].platform == "cpu" else None

    def init(key):
        _, t, f = split(nnx.Rngs(params=key))
        return st.flatten(t), st.flatten(f)

    return Program(
        config=config,
        mesh=mesh,
        model_config=cfg,
        graphdef=graphdef,
        trainable_state=trainable,
        frozen_state=frozen,
        trainable=st.abstract(t_flat, t_shard),
        frozen=st.abstract(f_flat, f_shard),
        opt_state=st.abstract(opt, o_shard),
        batches=abstract_batches(config, cfg, mesh),
        step=jax.jit(train, out_shardings=(t_shard, o_shard, replicated), donate_argnums=(0, 1)),
        evaluate=jax.jit(step.make_evaluate(loss), out_shardings=replicated),
        init=jax.jit(init, out_shardings=(t_shard, f_shard), compiler_options=once),
        init_trainable=jax.jit(lambda key: init(key)[0], out_shardings=t_shard, compiler_options=once),
        init_optimizer=jax.jit(start, out_shardings=o_shard),
        loss=loss,
    )
