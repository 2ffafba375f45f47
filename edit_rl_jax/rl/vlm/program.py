"""From a config and a mesh to the compiled programs of a verifier's update. Allocates nothing."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from edit_rl_jax import sharding
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import flat as st
from edit_rl_jax.rl.vlm import config as config_lib
from edit_rl_jax.rl.vlm.losses import TokenLoss
from edit_rl_jax.rl.vlm.packing import Packer
from edit_rl_jax.rl.vlm.update import make_old, make_update
from edit_rl_jax.training import interfaces, optim
from edit_rl_jax.training.on_mesh import OnMesh, State, dtype, places
from edit_rl_jax.vlm.export import image_settings
from edit_rl_jax.vlm.packing import Bucket
from edit_rl_jax.vlm.tokenizer import TextEncoder


@dataclasses.dataclass(frozen=True)
class Program(OnMesh):
    """The programs of a verifier's RL, compiled on demand; all abstract values carry shardings.

    update: jitted (state, frozen, batch, count, pairs, on_policy, number) -> (state, metrics), `state` donated (see
    `update.make_update`). old: jitted (trainable, frozen, batch, count) -> `answer_old`. packer: makes batches.
    batch: their arrays, abstract.
    """

    config: Any
    model_config: Any
    packer: Packer
    batch: dict[str, jax.ShapeDtypeStruct]
    state: State  # abstract
    update: Callable
    old: Callable
    init_state: Callable  # jitted: (trainable) -> state

    def put(self, arrays: dict[str, Any]) -> dict[str, Any]:
        """Lays a host batch, the same in every process, over the mesh."""
        lay = lambda x, place: jax.make_array_from_callback(x.shape, place, lambda part: x[part])
        return jax.tree.map(lay, arrays, places(self.batch))


def build_program(config: Any, mesh: Mesh, arch: Any, tokenizer: Any = None) -> Program:
    """Builds the programs of a config on a mesh of real or described devices; without a tokenizer for shapes only.

    Raises ConfigError or ShardingError, naming the key or the tensor.
    """
    config_lib.check(config)
    kind, r = interfaces.model(config), config.rl
    model = OnMesh.of(kind.make(config, arch, mesh, dtype(config, mesh)), mesh)
    settings = TokenLoss(tuple(r.loss.clip), r.loss.kl_weight)
    optimizer = optim.make(config.optim, config.steps * r.updates)
    text = None if tokenizer is None else TextEncoder(tokenizer)
    bucket = Bucket(*config.data.buckets[0])
    try:
        packer = Packer(text, arch, image_settings(config, arch), bucket, config.rows, r.microbatches)
        shapes = packer.shapes()
    except ValueError as e:
        raise ConfigError(f"config key 'data.buckets': {e}") from e
    batch = st.abstract(shapes, sharding.batch_shardings(shapes, mesh, accum=True))

    def begin(weights):
        start = {"start": jax.tree.map(jnp.copy, weights)} if settings.kl_weight else {}
        return optimizer.init(weights) | start

    state, init_state = model.train_state(begin)
    change = make_update(settings, model.merge, optimizer, r.temperature)
    return Program(
        **vars(model),
        config=config,
        model_config=arch,
        packer=packer,
        batch=batch,
        state=state,
        update=jax.jit(change, out_shardings=(places(state), model.everywhere), donate_argnums=0),
        old=jax.jit(make_old(model.merge, r.temperature), out_shardings=batch["answer_old"].sharding),
        init_state=init_state,
    )
