"""One compiled GRPO update against the same update as a Python loop of jitted calls.

    python benchmarks/bench_grpo_update.py --json grpo_update.json      (CPU, a minute; bar: the loop takes longer)

The loop is how the JAX predecessor (jannerm/ddpo) does it: one jitted gradient a (microbatch, step), gradients summed
by another call, metrics fetched after each, then the optimizer. Both run the same microbatches of a small OmniGen2
with adapters, from the same rollout; the gradients are compared first. The two are timed in turn, in one process.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from datetime import date
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.layout import layout
from edit_rl_jax.editors.omnigen2.transformer import OmniGen2Transformer
from edit_rl_jax.flow.guidance import stack
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.flow.steps import Noise
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.rl.editors.losses import PolicyGradient
from edit_rl_jax.rl.editors.rollout import make_rollout
from edit_rl_jax.rl.editors.update import gradient, make_update, microbatch
from edit_rl_jax.training.optim import Optimizer

STEPS, SIDE, TEXT = 8, 4, 12  # denoising steps; patches a side; text tokens
CONFIG = OmniGen2Config(
    hidden_size=96, num_attention_heads=6, num_kv_heads=2, num_layers=4, num_refiner_layers=1, axes_dim_rope=(4, 8, 4),
    axes_lens=(100, 60, 60), text_feat_dim=32, in_channels=4, multiple_of=16,
)  # fmt: skip


def problem(prompts: int, group: int, rows: int):
    """(trainable, frozen, velocity, prompts) with random weights and conditions."""
    model = OmniGen2Transformer(CONFIG, rngs=nnx.Rngs(0), lora=LoRAConfig(8, 16.0))
    graphdef, trainable, frozen = nnx.split(model, Trainable, Frozen)
    velocity = lambda t, f, x, time, c: nnx.merge(graphdef, st.unflatten(trainable, t), st.unflatten(frozen, f))(
        x, time, c
    )
    rng, side = np.random.default_rng(0), (SIDE, SIDE)
    index = layout([TEXT] * prompts, [[side]] * prompts, [side] * prompts, TokenLengths(TEXT, SIDE**2, SIDE**2))
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)
    condition = {k: jnp.asarray(v) for k, v in index.items()} | {
        "text": draw(prompts, TEXT, CONFIG.text_feat_dim),
        "references": draw(prompts, SIDE**2, CONFIG.token_dim),
    }
    number = jnp.arange(prompts, dtype=jnp.int32)
    batch = {
        "condition": stack(condition),
        "times": jnp.broadcast_to(jnp.asarray(Schedule(STEPS, "static").times()), (prompts, STEPS + 1)),
        "mask": None,
        "item": number,
        "prompt": jnp.repeat(number, group).reshape(-1, rows),
        "member": jnp.tile(jnp.arange(group, dtype=jnp.int32), prompts).reshape(-1, rows),
    }
    return st.flatten(trainable), st.flatten(frozen), velocity, batch


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--prompts", type=int, default=12, help="prompts of a rollout (default: %(default)s)")
    p.add_argument("--group", type=int, default=8, help="samples a prompt (default: %(default)s)")
    p.add_argument("--rows", type=int, default=16, help="samples a microbatch (default: %(default)s)")
    p.add_argument("--window", type=int, default=3, help="trained steps (default: %(default)s)")
    p.add_argument("--repeats", type=int, default=9, help="timings of each (default: %(default)s)")
    p.add_argument("--json", metavar="FILE", help="write the figures here too")
    args = p.parse_args()
    trainable, frozen, velocity, prompts = problem(args.prompts, args.group, args.rows)
    count = len(prompts["prompt"])
    algorithm = PolicyGradient(Denoising(STEPS, noise=Noise("cps", 0.8), window=args.window))
    rollout = make_rollout(velocity, algorithm.sampler, (SIDE**2, CONFIG.token_dim))
    drawn = jax.jit(rollout)(trainable, frozen, prompts, 0, 0, 1)
    advantage = jnp.asarray(np.random.default_rng(1).normal(size=(count, args.rows)), jnp.float32)
    keep = jnp.ones((count, args.rows), bool)
    optimizer = Optimizer(optax.adamw(1.0), lambda _: jnp.float32(1e-4), clip=1.0)
    update = jax.jit(make_update(algorithm, velocity, optimizer, microbatches=count), donate_argnums=0)

    @jax.jit
    def one(trainable, m, i):
        rows, condition = microbatch(algorithm, prompts, drawn, advantage, keep, m, 0, 0)
        grads, out = gradient(algorithm, velocity, None, trainable, frozen, None, None, rows, condition, i)
        return grads, (out.total, out.weight, out.means)

    add = jax.jit(partial(jax.tree.map, jnp.add), donate_argnums=0)

    @partial(jax.jit, donate_argnums=0)
    def apply(state, grads, total, weight):
        grads = jax.tree.map(lambda g: g / weight, grads)
        return optimizer.apply(state, grads, total / weight, 0)

    def loop(state):
        grads, total, weight = None, 0.0, 0.0
        for m in range(count):
            for i in range(args.window):
                new, metrics = one(state["trainable"], m, i)
                grads = new if grads is None else add(grads, new)
                part, rows, _ = jax.device_get(metrics)
                total, weight = total + part, weight + rows
        return apply(state, grads, total, weight)

    def compiled(state):
        return update(state, frozen, prompts, drawn, advantage, keep, 0, 0, 0)

    start = lambda: jax.tree.map(jnp.copy, optimizer.init(trainable))
    both = compiled(start()), loop(start())  # compiles, too
    norms = [float(metrics["grad_norm"]) for _, metrics in both]
    np.testing.assert_allclose(*norms, rtol=1e-4)
    seconds: dict[str, list[float]] = {"compiled": [], "loop": []}
    for _ in range(args.repeats):
        for name, run in (("compiled", compiled), ("loop", loop)):
            state = jax.block_until_ready(start())
            begin = time.perf_counter()
            jax.block_until_ready(run(state)[0])
            seconds[name].append(time.perf_counter() - begin)
    median = {name: float(np.median(times)) for name, times in seconds.items()}
    figures = {
        "microbatches": count,
        "rows": args.rows,
        "trained_steps": args.window,
        "calls_compiled": 1,
        "calls_loop": 2 * count * args.window,  # gradients, sums but the first, the optimizer
        "median_s_compiled": round(median["compiled"], 4),
        "median_s_loop": round(median["loop"], 4),
        "loop_over_compiled": round(median["loop"] / median["compiled"], 3),
        "grad_norm": norms,
        "device": f"{platform.machine()} {jax.devices()[0].device_kind}",
        "date": date.today().isoformat(),
    }
    print(json.dumps(figures, indent=1))
    if args.json:
        with open(args.json, "w") as f:
            json.dump(figures, f, indent=1)


if __name__ == "__main__":
    main()
