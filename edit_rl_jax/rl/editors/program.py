"""From a config and a mesh to the compiled programs of RL: rollout, update, evaluation. Allocates nothing.

`train_grpo.py` runs them; `plan.py` lowers the same ones for a topology that is not there.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from edit_rl_jax import sharding
from edit_rl_jax.editors.base import Bucket, Editor
from edit_rl_jax.editors.omnigen2.prompts import tokenize
from edit_rl_jax.editors.sampling import levels
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.sampling import Sampler
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.flow.steps import Noise
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn import flat as st
from edit_rl_jax.rl.advantages import AdvantageConfig, advantages
from edit_rl_jax.rl.editors import config as config_lib
from edit_rl_jax.rl.editors.losses import Algorithm, PolicyGradient
from edit_rl_jax.rl.editors.nft import DiffusionNFT
from edit_rl_jax.rl.editors.prompts import Prompt
from edit_rl_jax.rl.editors.rollout import Prompts, Rollout, make_rollout
from edit_rl_jax.rl.editors.update import make_update
from edit_rl_jax.training import interfaces, optim
from edit_rl_jax.training.on_mesh import OnMesh, State, dtype, places

Batch = dict[str, Any]
"""What the host gives a rollout: `tokens`, `segments` i32 [P, 1 or 2, T] (instruction; with guidance the negative),
`pixels` u8 [P, H, W, 3], `layout` {name: [P, branches, ...]}; times, item, prompt, member of `rl.rollout.Prompts`."""


@dataclasses.dataclass(frozen=True)
class Program(OnMesh):
    """The programs of RL of an editor, compiled on demand; all abstract values carry shardings.

    rollout: jitted (trainable, frozen, batch, seed, step, start) -> (Prompts, Rollout whose `finished` are images, u8
    [M, B, H, W, 3]). evaluate: the same in `rl.eval_sample_steps` steps without noise, one sample a prompt -> images u8
    [M, B, ...].
    update: jitted (state, frozen, prompts, rollout, scores, chunk, seed, number) -> (state, metrics), `state` donated;
    scores: (rewards, valid, groups) [M * B] of `rl.advantages`, whose metrics are "rewards" among these.
    """

    config: Any
    model_config: Any  # the editor's architecture
    editor: Editor  # abstract
    tokenizer: Any
    state: State  # abstract
    algorithm: Algorithm
    rollout: Callable
    evaluate: Callable
    update: Callable
    init_state: Callable  # jitted: (trainable) -> state

    @property
    def microbatches(self) -> int:
        """M of a rollout."""
        return self.config.rl.prompts * self.config.rl.group // self.config.rows

    def put(self, batch: Any) -> Any:
        """A host batch on the mesh, whole on every device; the same on every process."""
        return jax.device_put(batch, NamedSharding(self.mesh, PartitionSpec()))

    def batch(self, prompts: Sequence[Prompt], items: Sequence[int], members: int, steps: int = 0) -> Batch:
        """The host batch of `members` samples a prompt; items: their numbers in the data; steps: 0 = `rl.steps`."""
        return host_batch(self.config, self.editor, self.tokenizer, prompts, items, members, steps)


def host_batch(
    config: Any,
    editor: Editor,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    items: Sequence[int],
    members: int,
    steps: int = 0,
) -> Batch:
    """See `Program.batch`. Text longer than `rl.text` is cut, as in the released pipeline."""
    r, (height, width), count = config.rl, config.rl.size, len(prompts)
    n = guidance(config).branches
    negative = [editor.chat(r.negative, r.negative_system)] * (n > 1)
    chats = [c for p in prompts for c in (editor.chat(p.instruction), *negative)]
    tokens, segments, wanted = tokenize(tokenizer, chats, r.text)
    wanted = [min(w, r.text) for w in wanted]
    size = (height // editor.multiple, width // editor.multiple)
    patches = size[0] * size[1]
    bucket = Bucket(r.text, patches, patches)
    # Branches: the instruction; with guidance the negative, with the source (of three) and without.
    each = 1 + len(negative)
    texts = [wanted[::each], *([wanted[1::each]] * (n - 1))]
    references = [[size], *([[size]] if n == 3 else []), *([()] if n > 1 else [])]
    index = [editor.layout(t, [ref] * count, [size] * count, bucket) for t, ref in zip(texts, references)]
    times = schedule(config, steps or r.steps).times(height * width // editor.downscale**2)
    numbers = np.repeat(np.arange(count, dtype=np.int32), members)
    return {
        "tokens": tokens.reshape(count, each, -1),
        "segments": segments.reshape(count, each, -1),
        "pixels": np.stack([p.source for p in prompts]),
        "layout": jax.tree.map(lambda *a: np.stack(a, 1), *map(dict, index)),
        "times": np.broadcast_to(times, (count, len(times))).copy(),
        "item": np.asarray(items, np.int32),
        "prompt": numbers.reshape(-1, config.rows),
        "member": np.tile(np.arange(members, dtype=np.int32), count).reshape(-1, config.rows),
    }


def guidance(config) -> Guidance:
    """`rl.guidance`."""
    return Guidance(**config.rl.guidance.to_dict())


def schedule(config, steps: int) -> Schedule:
    """`rl.schedule` in so many steps."""
    return Schedule(steps, **config.rl.schedule.to_dict())


def algorithm(config) -> Algorithm:
    """The pair (sampler, loss) of `rl.algorithm`. Raises ConfigError."""
    r = config.rl
    options = {**r.loss.to_dict(), "clip": tuple(r.loss.clip)}
    beta = options.pop("beta")
    try:
        if r.algorithm == "nft":
            sampler, clip = Sampler(r.steps, r.solver, guidance(config)), r.advantage.clip
            return DiffusionNFT(sampler, beta, clip, r.loss.kl_weight, r.loss.train_steps)
        low_high = tuple(r.window_range) if any(r.window_range) else None
        noise = Noise(r.noise.kind, r.noise.level)
        return PolicyGradient(Sampler(r.steps, r.solver, guidance(config), noise, r.window, low_high), **options)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"config key 'rl': {e}") from e


def encode(model: Editor, batch: Batch) -> Prompts:
    """Text and source of each prompt once, as the condition of its samples; the source by its posterior's mean."""
    pixels, tokens = batch["pixels"], batch["tokens"]
    rows = lambda a: a.reshape(-1, *a.shape[2:])
    text = _over_mesh(model.encode_text, rows(tokens), rows(batch["segments"])).reshape(*tokens.shape, -1)
    references = _over_mesh(model.encode_images, pixels.astype(jnp.float32) / 127.5 - 1)
    n = batch["layout"]["text_segments"].shape[1]
    condition = batch["layout"] | {
        "text": text[:, jnp.asarray([0, 1, 1][:n])],
        "references": jnp.repeat(references[:, None], n, 1),
    }
    return Prompts(condition=condition, mask=None, **{k: batch[k] for k in ("times", "item", "prompt", "member")})


def _over_mesh(encode: Callable[..., Array], *arrays: Array) -> Array:
    """Encodes rows over the mesh; where they do not divide, empty rows are added and cut off again."""
    count = arrays[0].shape[0]
    more = -count % sharding.row_shards()
    filled = [jnp.pad(a, ((0, more), *((0, 0),) * (a.ndim - 1))) for a in arrays]
    return encode(*(sharding.shard(a, "batch", *(None,) * (a.ndim - 1)) for a in filled))[:count]


def build_program(config: Any, mesh: Mesh, editor: Any, tokenizer: Any = None) -> Program:
    """The programs of a config on a mesh of real or described devices; editor: its architecture.

    Raises ConfigError or ShardingError, naming the key or the tensor.
    """
    config_lib.check(config)
    r, (height, width), full = config.rl, config.rl.size, config.model.trainable == "full"
    make = interfaces.model(config).make(config, editor, mesh, dtype(config, mesh))
    model = OnMesh.of(make, mesh)
    with jax.set_mesh(mesh):
        abstract_editor = model.merge(model.trainable, model.frozen)
        bare, _ = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), lora=None)))
    unit = abstract_editor.multiple
    if height % unit or width % unit:
        raise ConfigError(f"config key 'rl.size': sides are multiples of {unit}, got {height} x {width}")
    merge = model.merge
    velocity = lambda t, f, x, time, c: merge(t, f).velocity(x, time, c)
    reference = lambda f, x, time, c: nnx.merge(bare, st.unflatten(model.frozen_state, f)).velocity(x, time, c)
    method = algorithm(config)
    latent = (height // unit * (width // unit), abstract_editor.channels)
    cpu = mesh.devices.flat[0].platform == "cpu"

    def drawing(sampler: Sampler):
        def draw(t, f, batch, seed, step, start):
            finish = lambda f, final, _: levels(merge(t, f).decode(final, height, width))
            prompts = encode(merge(t, f), batch)
            rollout = make_rollout(velocity, sampler, latent, same_noise=r.same_noise, finish=None if cpu else finish)
            drawn = rollout(t, f, prompts, seed, step, start)
            if cpu:  # where XLA runs convolutions inside a loop several times slower
                drawn = drawn._replace(finished=jax.vmap(lambda final: finish(f, final, None))(drawn.final))
            return prompts, drawn

        return draw

    plain = Sampler(r.eval_sample_steps or r.steps, r.solver, guidance(config))
    optimizer = optim.make(config.optim, config.steps * r.updates)
    change = make_update(
        method, velocity, optimizer, microbatches=r.prompts * r.group // config.rows // r.updates,
        reference=None if full else reference,
    )  # fmt: skip

    def update(state, frozen, prompts, rollout, scores, chunk, seed, number):
        found = advantages(*scores, AdvantageConfig(**r.advantage.to_dict()))
        values, keep = (a.reshape(prompts["prompt"].shape) for a in (found.values, found.keep))
        new, metrics = change(state, frozen, prompts, rollout, values, keep, chunk, seed, number)
        if method.needs_old:  # moves at the end of a rollout's updates
            share = jnp.where(chunk == r.updates - 1, r.old, 1.0)
            new["old"] = jax.tree.map(lambda a, b: share * a + (1 - share) * b, state["old"], new["trainable"])
        return new, metrics | {"rewards": found.metrics}

    def begin(weights):
        old = {"old": jax.tree.map(jnp.copy, weights)} if method.needs_old else {}
        return optimizer.init(weights) | old

    state, init_state = model.train_state(begin)
    everywhere = model.everywhere
    by_rows = lambda n: NamedSharding(mesh, PartitionSpec(*(None,) * n, sharding.DEFAULT_RULES.spec(
        "rows", (config.rows,), ("batch",), mesh)[0]))  # fmt: skip
    drawn = Rollout(final=by_rows(1), x=by_rows(2), mean=by_rows(2), start=everywhere, finished=by_rows(1))
    return Program(
        **vars(model),
        config=config,
        model_config=editor,
        editor=abstract_editor,
        tokenizer=tokenizer,
        state=state,
        algorithm=method,
        rollout=jax.jit(drawing(method.sampler), out_shardings=(everywhere, drawn)),
        evaluate=jax.jit(
            lambda t, f, batch, seed: drawing(plain)(t, f, batch, seed, jnp.int32(0), jnp.int32(0))[1].finished,
            out_shardings=by_rows(1),
        ),
        update=jax.jit(update, out_shardings=(places(state), everywhere), donate_argnums=0),
        init_state=init_state,
    )
