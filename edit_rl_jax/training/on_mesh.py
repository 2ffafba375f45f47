"""A model on a mesh of real or described devices: abstract weights with shardings, and their beginning. Allocates
nothing; every program of training and RL is made from it."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from edit_rl_jax import sharding
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.params import Frozen, Trainable

State = dict[str, Any]
"""What training moves, as one tree: "trainable" (flat fp32 weights), "opt_state", and copies of the weights by name:
"ema" where the config wants a moving average, "old" for the RL algorithms that ask for it, "reference" of a KL whose
reference moves."""


def make_mesh(config: Any, devices: Any = None) -> Mesh:
    """Makes the mesh of `config.mesh`, or of the preset that `config.topology` names; -1 takes the devices left.

    A preset is of one slice: of several each has one, "data" times as many in all; so has a mesh with a -1 and no
    "data" of its own. Raises ShardingError when the devices are not all used: an idle device is a mistake.
    """
    devices = list(jax.devices() if devices is None else devices)
    shape = (config.mesh_presets[config.topology] if config.topology else config.mesh).to_dict()
    data, slices = shape.get("data", 1), sharding.slices_of(devices)
    if slices > 1 and (config.topology or data == 1 and -1 in shape.values()):
        shape["data"] = data * slices
    mesh = sharding.make_mesh({k: v for k, v in shape.items() if k != "data" or v != 1}, devices)
    if mesh.size != len(devices):
        raise sharding.ShardingError(f"mesh {dict(mesh.shape)} uses {mesh.size} of {len(devices)} devices")
    return mesh


def dtype(config: Any, mesh: Mesh) -> Any:
    """Returns the dtype of frozen weights and activations: `model.dtype`, "auto" being that of the mesh's devices."""
    if config.model.dtype == "auto":
        return jnp.float32 if mesh.devices.flat[0].platform == "cpu" else jnp.bfloat16
    return jnp.dtype(config.model.dtype)


@dataclasses.dataclass(frozen=True)
class OnMesh:
    """A model whose weights are flat dicts (see `nn.flat`) at the jit boundary; abstract values carry shardings.

    Attributes:
      trainable_state, frozen_state: abstract, with logical axes: templates for `nn.flat.unflatten`.
      trainable, frozen: the same, flat.
      init: jitted: (key) -> (trainable, frozen), random weights.
      init_trainable: jitted: (key) -> trainable alone, which a loaded base does not hold.
    """

    mesh: Mesh
    graphdef: nnx.GraphDef
    trainable_state: nnx.State
    frozen_state: nnx.State
    trainable: st.Flat
    frozen: st.Flat
    init: Callable[[jax.Array], tuple[st.Flat, st.Flat]]
    init_trainable: Callable[[jax.Array], st.Flat]

    @classmethod
    def of(cls, make: Callable[..., Any], mesh: Mesh) -> "OnMesh":
        """Lays the model that `make(rngs=)` makes over `mesh`. Raises ShardingError, naming the tensor."""
        split = lambda rngs: nnx.split(make(rngs=rngs), Trainable, Frozen)
        with jax.set_mesh(mesh):
            graphdef, *states = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0))), Trainable, Frozen)
        places = tuple(st.flatten(sharding.shardings(s, mesh)) for s in states)
        flat = [st.abstract(st.flatten(s), p) for s, p in zip(states, places)]
        # The initializers of many small weights run once and would take XLA's CPU compiler half a minute.
        quickly = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
        once = quickly if mesh.devices.flat[0].platform == "cpu" else None

        def init(key):
            return tuple(map(st.flatten, split(nnx.Rngs(params=key))[1:]))

        both = jax.jit(init, out_shardings=places, compiler_options=once)
        part = jax.jit(lambda key: init(key)[0], out_shardings=places[0], compiler_options=once)
        return cls(mesh, graphdef, *states, *flat, both, part)

    def merge(self, trainable: st.Flat, frozen: st.Flat) -> Any:
        """Puts the model together from these weights."""
        t, f = st.unflatten(self.trainable_state, trainable), st.unflatten(self.frozen_state, frozen)
        return nnx.merge(self.graphdef, t, f)

    def with_shardings(self, part: str) -> nnx.State:
        """Returns the abstract state "trainable" or "frozen" with values that carry shardings, for the loaders."""
        return st.unflatten(getattr(self, f"{part}_state"), getattr(self, part))

    @property
    def sizes(self) -> str:
        """Says how many parameters are trained and how many frozen."""
        t, f = (f"{sum(x.size for x in part.values()):,}" for part in (self.trainable, self.frozen))
        return f"{t} parameters trained, {f} frozen"

    @property
    def everywhere(self) -> NamedSharding:
        """The sharding of what is whole on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    def train_state(self, begin: Callable[[st.Flat], State]) -> tuple[State, Callable[[st.Flat], State]]:
        """Returns (the state that `begin` makes of trainable weights, abstract; `begin`, jitted with its shardings).

        What is stored under a weight's name with its shape is placed like the weight; the rest is replicated.
        """

        def place(path, leaf):
            names = [k.key for k in path if isinstance(k, jax.tree_util.DictKey) and k.key in self.trainable]
            like = self.trainable[names[-1]] if names else None
            return like.sharding if like is not None and like.shape == leaf.shape else self.everywhere

        shapes = jax.eval_shape(begin, self.trainable)
        places = jax.tree_util.tree_map_with_path(place, shapes)
        return st.abstract(shapes, places), jax.jit(begin, out_shardings=places)


def places(abstract: Any) -> Any:
    """Returns the shardings of abstract values."""
    return jax.tree.map(lambda x: x.sharding, abstract)
