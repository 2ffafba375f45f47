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
from edit_rl_jax.data.images import resize
from edit_rl_jax.editors.base import Editor, Processor, Request, TokenLengths, check_text, smaller, tokens
from edit_rl_jax.editors.pixels import checked_levels, to_pixels
from edit_rl_jax.editors.sampling import LANCZOS
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.sampling import Denoising
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
"""What the host gives a rollout: `arrays` {name: [P, ...]} of the editor's `prepare`, `sources` u8 [P, H, W, 3]; times,
item, prompt, member of `rl.editors.rollout.Prompts`."""


@dataclasses.dataclass(frozen=True)
class Program(OnMesh):
    """The programs of RL of an editor, compiled on demand; all abstract values carry shardings.

    rollout: jitted (trainable, frozen, batch, seed, step, start) -> (Prompts, Rollout whose `finished` are images, u8
    [M, B, H, W, 3], and which of them are finite, bool [M, B]). evaluate: the same in `rl.eval_sample_steps` steps
    without noise, one sample a prompt -> what is finished.
    update: jitted (state, frozen, prompts, rollout, scores, chunk, seed, number) -> (state, metrics), `state` donated;
    scores: (rewards, valid, groups) [M * B] of `rl.advantages`, or with `rl.advantage.decoupled` (rewards [M * B, D],
    valid, groups, weights [D]); its metrics are "rewards" among these.
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

    def check(self, prompt: Prompt) -> None:
        """Refuses a prompt whose text is longer than `rl.text`. Raises EditError."""
        processor = self.editor.processor
        asked = request(self.config, prompt, processor.multiple)
        length = processor.text_length(self.tokenizer, asked, self.algorithm.sampler.guidance)
        check_text(length, self.config.rl.text, f"{prompt.key} (config key 'rl.text')")

    def batch(
        self,
        prompts: Sequence[Prompt],
        items: Sequence[int],
        members: int,
        steps: int = 0,
        size: tuple[int, int] | None = None,
    ) -> Batch:
        """The host batch of `members` samples a prompt; items: their numbers in the data; steps, size: 0 and None are
        `rl.steps` and `rl.size`. Raises ConfigError for sources of another size."""
        return host_batch(self.config, self.editor.processor, self.tokenizer, prompts, items, members, steps, size)


def host_batch(
    config: Any,
    processor: Processor,
    tokenizer: Any,
    prompts: Sequence[Prompt],
    items: Sequence[int],
    members: int,
    steps: int = 0,
    size: tuple[int, int] | None = None,
) -> Batch:
    """See `Program.batch`. Without a tokenizer rows are padding. Raises ValueError for text that `check` refuses."""
    r, count, guided = config.rl, len(prompts), guidance(config, processor)
    size = size or tuple(r.size)
    if wrong := [p for p in prompts if p.source.shape[:2] != size]:
        raise ConfigError(f"prompt {wrong[0].key}: its source is {wrong[0].source.shape[:2]}, not {size}")
    rows = [None if tokenizer is None else request(config, p, processor.multiple) for p in prompts]
    n, reference = tokens(processor, size), smaller(size, r.reference_pixels, processor.multiple)
    times = schedule(config, steps or r.steps).times(size[0] * size[1] // processor.downscale**2)
    numbers = np.repeat(np.arange(count, dtype=np.int32), members)
    return {
        "arrays": dict(
            processor.prepare(tokenizer, rows, TokenLengths(r.text, tokens(processor, reference), n), guided)
        ),
        "sources": np.stack([resize(p.source, *reference, LANCZOS) for p in prompts]),
        "times": np.broadcast_to(times, (count, len(times))).copy(),
        "item": np.asarray(items, np.int32),
        "prompt": numbers.reshape(-1, config.rows),
        "member": np.tile(np.arange(members, dtype=np.int32), count).reshape(-1, config.rows),
    }


def request(config: Any, prompt: Prompt, multiple: int) -> Request:
    """What an editor is asked for a prompt: one reference, of the result's size, which is the source's, or smaller."""
    r, size = config.rl, prompt.source.shape[:2]
    references = (smaller(size, r.reference_pixels, multiple),)
    return Request(prompt.instruction, (prompt.source,), references, size, r.negative, r.negative_system, prompt.key)


def guidance(config, processor: Processor) -> Guidance:
    """The editor's guidance with the numbers of `rl.guidance`."""
    return dataclasses.replace(processor.guidance, **config.rl.guidance.to_dict())


def check_guidance(r: Any, guided: Guidance) -> None:
    """Refuses settings that the editor's guidance would not look at. Raises ConfigError."""
    usual = {f.name: f.default for f in dataclasses.fields(Guidance)}
    changed = [f"rl.guidance.{k}" for k in guided.unused if k in usual and r.guidance[k] != usual[k]]
    if "negative_system" in guided.unused and r.negative_system != config_lib.RL.negative_system:
        changed.append("rl.negative_system")
    if changed:
        raise ConfigError(f"config keys {', '.join(changed)}: the editor has no use for them")


def schedule(config, steps: int) -> Schedule:
    """`rl.schedule` in so many steps."""
    return Schedule(steps, **config.rl.schedule.to_dict())


def other_times(config: Any, own: Schedule) -> str:
    """Says how `rl.schedule` differs from the schedule that the editor's folder asks for, "" where it does not;
    `base_res` aside, which RL chooses."""
    asked = schedule(config, own.steps)
    used = {"static": ["shift"], "exponential": ["max_shift", "max_tokens"]}.get(asked.kind, [])
    differ = [k for k in ("kind", *used, "terminal") if getattr(asked, k) != getattr(own, k)]
    said = [f"rl.schedule.{k} is {getattr(asked, k)}, the editor's folder says {getattr(own, k)}" for k in differ]
    return "; ".join(said)


def algorithm(config, guidance: Guidance) -> Algorithm:
    """The pair (sampler, loss) of `rl.algorithm`. Raises ConfigError."""
    r = config.rl
    options = {**r.loss.to_dict(), "clip": tuple(r.loss.clip)}
    beta = options.pop("beta")
    try:
        if r.algorithm == "nft":
            sampler, clip = Denoising(r.steps, r.solver, guidance), r.advantage.clip
            return DiffusionNFT(sampler, beta, clip, r.loss.kl_weight, r.loss.train_steps, r.loss.noisiest)
        low_high = tuple(r.window_range) if any(r.window_range) else None
        noise = Noise(r.noise.kind, r.noise.level)
        return PolicyGradient(Denoising(r.steps, r.solver, guidance, noise, r.window, low_high), **options)
    except (TypeError, ValueError) as e:
        raise ConfigError(f"config key 'rl': {e}") from e


def old_share(r: Any, done: Array) -> float | Array:
    """The share of the sampling weights that stays after so many rollouts: `rl.old`, or on the way to it."""
    return jnp.minimum(r.old_rise * jnp.float32(jnp.maximum(done - r.old_from, 0)), r.old) if r.old_rise else r.old


def encode(model: Editor, batch: Batch) -> Prompts:
    """The condition of each prompt's samples, made once; of the source by its posterior's mean."""
    references = _over_mesh(lambda sources: model.encode(to_pixels(sources)), batch["sources"])
    condition = _over_mesh(model.condition, batch["arrays"], references)
    return Prompts(condition=condition, mask=None, **{k: batch[k] for k in ("times", "item", "prompt", "member")})


def _over_mesh(make: Callable[..., Any], *trees: Any) -> Any:
    """Makes arrays of rows over the mesh; where they do not divide, empty rows are added and cut off again."""
    count = jax.tree.leaves(trees)[0].shape[0]
    more = -count % sharding.row_shards()
    filled = jax.tree.map(lambda a: jnp.pad(a, ((0, more), *((0, 0),) * (a.ndim - 1))), trees)
    spread = jax.tree.map(lambda a: sharding.shard(a, "batch", *(None,) * (a.ndim - 1)), filled)
    return jax.tree.map(lambda a: a[:count], make(*spread))


def build_program(config: Any, mesh: Mesh, editor: Any, tokenizer: Any = None) -> Program:
    """The programs of a config on a mesh of real or described devices; editor: its architecture.

    Raises ConfigError or ShardingError, naming the key or the tensor.
    """
    config_lib.check(config)
    r, full = config.rl, config.model.trainable == "full"
    make = interfaces.model(config).make(config, editor, mesh, dtype(config, mesh))
    model = OnMesh.of(make, mesh)
    with jax.set_mesh(mesh):
        abstract_editor = model.merge(model.trainable, model.frozen)
        bare, _ = nnx.split(nnx.eval_shape(lambda: make(rngs=nnx.Rngs(0), lora=None)))
    processor = abstract_editor.processor
    unit, guided = processor.multiple, guidance(config, processor)
    check_guidance(r, guided)
    for key, (height, width) in (("rl.size", r.size), ("rl.eval_size", r.eval_size)):
        if height % unit or width % unit:
            raise ConfigError(f"config key '{key}': sides are multiples of {unit}, got {height} x {width}")
    merge = model.merge
    velocity = lambda t, f, x, time, c: merge(t, f).velocity(x, time, c)
    reference = lambda f, x, time, c: nnx.merge(bare, st.unflatten(model.frozen_state, f)).velocity(x, time, c)
    method = algorithm(config, guided)
    cpu = mesh.devices.flat[0].platform == "cpu"

    def drawing(sampler: Denoising, height: int, width: int):
        latent = (tokens(processor, (height, width)), processor.channels)

        def draw(t, f, batch, seed, step, start):
            finish = lambda f, final, _: checked_levels(merge(t, f).decode(final, height, width))
            prompts = encode(merge(t, f), batch)
            rollout = make_rollout(velocity, sampler, latent, same_noise=r.same_noise, finish=None if cpu else finish)
            drawn = rollout(t, f, prompts, seed, step, start)
            if cpu:  # where XLA runs convolutions inside a loop several times slower
                drawn = drawn._replace(finished=jax.vmap(lambda final: finish(f, final, None))(drawn.final))
            return prompts, drawn

        return draw

    plain = Denoising(r.eval_sample_steps or r.steps, r.solver, guided)
    judged = drawing(plain, *config_lib.evaluation_size(r))
    optimizer = optim.make(config.optim, config.steps * r.updates)
    change = make_update(
        method, velocity, optimizer, microbatches=r.prompts * r.group // config.rows // r.updates,
        reference=None if full or r.reference_every else reference, moving=bool(r.reference_every)
    )  # fmt: skip
    once = lambda chunk, share: jnp.where(chunk == r.updates - 1, share, 1.0)  # moves at the end of a rollout's updates
    mix = lambda share, a, b: jax.tree.map(lambda a, b: share * a + (1 - share) * b, a, b)

    def update(state, frozen, prompts, rollout, scores, chunk, seed, number):
        found = advantages(*scores[:3], AdvantageConfig(**r.advantage.to_dict()), *scores[3:])
        values, keep = (a.reshape(prompts["prompt"].shape) for a in (found.values, found.keep))
        new, metrics = change(state, frozen, prompts, rollout, values, keep, chunk, seed, number)
        done = number // r.updates + 1  # rollouts, with this one
        if method.needs_old:
            share = old_share(r, done)
            new["old"] = mix(once(chunk, share), state["old"], new["trainable"])
            metrics |= {"old_share": jnp.float32(share)} if r.old else {}
        if r.reference_every:
            moves = done % r.reference_every == 0
            share = once(chunk, jnp.where(moves, r.reference_stays, 1.0))
            new["reference"] = mix(share, state["reference"], new["trainable"])
            metrics |= {"reference_moves": jnp.float32(moves)}
        return new, metrics | {"rewards": found.metrics}

    def begin(weights):
        copies = ["old"] * method.needs_old + ["reference"] * bool(r.reference_every)
        return optimizer.init(weights) | {name: jax.tree.map(jnp.copy, weights) for name in copies}

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
        rollout=jax.jit(drawing(method.sampler, *r.size), out_shardings=(everywhere, drawn)),
        evaluate=jax.jit(
            lambda t, f, batch, seed: judged(t, f, batch, seed, jnp.int32(0), jnp.int32(0))[1].finished,
            out_shardings=by_rows(1),
        ),
        update=jax.jit(update, out_shardings=(places(state), everywhere), donate_argnums=0),
        init_state=init_state,
    )
