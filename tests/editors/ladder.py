"""The parity ladder of OmniGen2's transformer: rungs, bars and errors as in tests/parity/ladder.py.

Torch's side is computed once; ours is traced anew at each call, so that the mutations can put faults into it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.omnigen2 import transformer
from edit_rl_jax.editors.omnigen2.weights import TRANSFORMER
from edit_rl_jax.nn import weights
from tests.editors import tiny
from tests.editors.tiny import ROWS
from tests.editors.upstream import upstream
from tests.parity.ladder import LAYER, NETWORK, error, jit, layer

WIDER = TokenLengths(text=20, references=64, noise=33)
"""Another padding of the same rows."""
EQUAL = TokenLengths(text=60, references=60, noise=60)
"""A third, of which all refiners see one shape: op by op, an operator is compiled once for all of them."""
ours = functools.cache(functools.partial(tiny.ours, remat="none"))  # less to compile, the same arithmetic


@functools.cache
def captured(name: str) -> dict:
    """Inputs and outputs of torch's modules on the row with two references, alone."""
    model, seen = tiny.torch_model(name), {}
    modules = {n: m for n, m in model.named_modules() if n.count(".") <= 1}
    handles = [
        m.register_forward_hook(
            lambda module, args, kwargs, out, n=n: seen.__setitem__(n, (*args, *kwargs.values(), out)), with_kwargs=True
        )
        for n, m in modules.items()
    ]
    with torch.no_grad():
        model(**tiny.inputs(name, ROWS[2:3]).torch())
    for h in handles:
        h.remove()
    return seen


def rung_positions(name: str) -> dict[str, float]:
    """cos and sin at every token against the reference's table by its own position ids."""
    model, i = ours(name), tiny.inputs(name)
    index = i.jax()[2]
    kinds = ("text", "reference", "noise")
    at = jnp.concatenate([index[f"{k}_positions"] for k in kinds], axis=1)
    cos, sin = jit(lambda at: transformer.rotary_tables(model.cfg, at))(at)
    live = np.concatenate([index[f"{k}_segments"] for k in kinds], axis=1) > 0
    rope = upstream("models.transformers.repo").OmniGen2RotaryPosEmbed
    p, given = i.cfg.patch_size, i.torch()
    pixels = lambda sizes: [(p * h, p * w) for h, w in sizes]
    want, lengths = rope(10000, i.cfg.axes_dim_rope, i.cfg.axes_lens, p)(
        given["freqs_cis"],
        given["text_attention_mask"],
        [[h * w for h, w in r.references] or [0] for r in i.rows],
        [r.size[0] * r.size[1] for r in i.rows],
        [pixels(r.references) or None for r in i.rows],
        pixels([r.size for r in i.rows]),
        "cpu",
    )[3::2]
    out = {}
    for b, n in enumerate(lengths):
        for what, mine, theirs in (("cos", cos, want.real), ("sin", sin, want.imag)):
            out[f"{what}, row {b}"] = error(mine[b][live[b]], theirs[b, :n])
    return out


def rung_embeddings(name: str) -> dict[str, float]:
    """Time and caption embeddings, patch embedders; times over the whole of [0, 1]."""
    model, theirs = ours(name), tiny.torch_model(name)
    rng = np.random.default_rng(0)
    t = np.array([0.0, 0.0063, 0.25, 0.5004, 0.87, 1.0], np.float32)
    text = (3 * rng.normal(size=(6, 5, model.cfg.text_feat_dim))).astype(np.float32)
    patches = rng.normal(size=(6, 5, model.cfg.token_dim)).astype(np.float32)
    with torch.no_grad():
        temb, caption = theirs.time_caption_embed(torch.tensor(t), torch.tensor(text), torch.float32)
        embedded = [m(torch.tensor(patches)) for m in (theirs.x_embedder, theirs.ref_image_patch_embedder)]
    mine = model.time_caption_embed
    out = {"time": error(mine.timestep_embedder(jnp.asarray(t), jnp.dtype("float32")), temb)}
    for size in (1.0, 1e-3):  # the small one shows the norm's epsilon
        with torch.no_grad():
            caption = theirs.time_caption_embed.caption_embedder(torch.tensor(size * text))
        out[f"caption at {size}"] = error(mine.caption(jnp.asarray(size * text)), caption)
    for what, m, want in zip(("noise", "reference"), (model.x_embedder, model.ref_image_patch_embedder), embedded):
        out[f"{what} patches"] = error(m(jnp.asarray(patches)), want)
    return out


def rung_layers(name: str) -> dict[str, float]:
    """Every block alone on torch's own inputs to it, padded to one shape, and the output layer."""
    model, seen, out = ours(name), captured(name), {}
    run = jit(lambda block, x, temb, cos, sin, ids: block(x, temb, cos, sin, ids))
    length = seen["layers.0"][0].shape[1]

    def pad(x):
        """[2, length, ...]: two references are a batch of two in torch."""
        x = np.asarray(x)
        return jnp.asarray(np.pad(x, [(0, 2 - len(x)), (0, length - x.shape[1])] + [(0, 0)] * (x.ndim - 2)))

    for kind in TRANSFORMER.stacked:
        blocks = getattr(model, kind)
        for i in range(model.cfg.num_layers if kind == "layers" else model.cfg.num_refiner_layers):
            x, mask, freqs, *temb, want = seen[f"{kind}.{i}"]
            time = jnp.asarray(temb[0][:1].numpy() if temb else np.zeros((1, model.cfg.time_size), np.float32))
            tables = (pad(f.numpy().astype(np.float32)) for f in (freqs.real, freqs.imag))
            ids = pad(mask.numpy().astype(np.int32))
            got = run(layer(blocks, i), pad(x), jnp.repeat(time, 2, axis=0), *tables, ids)
            live = mask.bool().numpy()
            out[f"{kind}.{i}"] = error(np.asarray(got)[: len(x), : x.shape[1]][live], want[torch.tensor(live)])
    x, temb, want = seen["norm_out"]
    out["norm_out"] = error(jit(lambda m, *a: m(*a))(model.norm_out, jnp.asarray(x), jnp.asarray(temb)), want)
    return out


@functools.cache
def torch_velocity(name: str) -> list[np.ndarray]:
    """Velocities of the ragged batch as tokens, one row after the other."""
    i = tiny.inputs(name)
    with torch.no_grad():
        return [i.tokens(x.numpy()) for x in tiny.torch_model(name)(**i.torch())]


def rung_network(name: str) -> dict[str, float]:
    """Velocities of the ragged batch, NaN in its padding; padding must come out zero."""
    return compared(name, jit(lambda m, *a: m(*a))(ours(name), *tiny.inputs(name).jax(EQUAL, np.nan)))


def compared(name: str, got: jax.Array) -> dict[str, float]:
    out = {}
    for b, want in enumerate(torch_velocity(name)):
        out[f"row {b}"] = error(got[b, : len(want)], want)
        out[f"padding of row {b}"] = float(np.abs(got[b, len(want) :]).max(initial=0))
    return out


@functools.cache
def torch_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    """Mean squared distance to a random target over all real tokens, and its gradient by every weight."""
    model, i = tiny.torch_model(name), tiny.inputs(name)
    model.zero_grad()
    total, count = 0.0, 0
    # one row at a time: the reference attends from a row without references to nothing, whose gradient is NaN
    for b, row in enumerate(i.rows):
        one = tiny.dataclasses.replace(
            i, latents=i.latents[b : b + 1], references=i.references[b : b + 1], text=i.text[b : b + 1],
            t=i.t[b : b + 1], rows=(row,)
        )  # fmt: skip
        out = model(**one.torch())[0]
        target = torch.tensor(target_image(i, b))
        total = total + ((out - target) ** 2).sum()
        count += out.numel()
    (total / count).backward()
    grad = lambda p: np.zeros(p.shape, np.float32) if p.grad is None else p.grad.numpy()
    grads = {n: grad(p) for n, p in model.named_parameters()}
    return (total / count).item(), grads


def target_image(i: tiny.Inputs, b: int) -> np.ndarray:
    """A target the size of the network's output for a row."""
    c = i.cfg.out_channels or i.cfg.in_channels
    return np.random.default_rng(b).normal(size=(c, *i.latents[b].shape[1:])).astype(np.float32)


def loss(model, i: tiny.Inputs, bucket: TokenLengths, fill: float = 0.0):
    """The mean squared distance of `torch_gradients`, masked to real tokens, and the velocities."""
    out = model(*i.jax(bucket, fill))
    targets = tiny.padded([i.tokens(target_image(i, b)) for b in range(len(i.rows))], bucket.noise)
    live = (i.jax(bucket)[2]["noise_segments"] > 0)[..., None]
    return jnp.sum(jnp.where(live, out - targets, 0) ** 2) / (jnp.sum(live.astype(jnp.float32)) * out.shape[-1]), out


def rung_gradients(name: str) -> dict[str, float]:
    """Velocities in another bucket, and gradients by every weight, relative to each tensor's maximum."""
    value, theirs = torch_gradients(name)
    graphdef, state = nnx.split(ours(name))
    mean = lambda s: loss(nnx.merge(graphdef, s), tiny.inputs(name), WIDER, np.nan)
    (got, velocity), grads = jit(jax.value_and_grad(mean, has_aux=True))(state)
    out, seen = {"loss": error(got, value)} | compared(name, velocity), set()
    for path, g in zip(*weights.flatten(grads)[:2]):
        names = TRANSFORMER.sources(path, g.shape)
        for n, x in zip(names, np.asarray(g.get_value()) if TRANSFORMER.layers(path) else [np.asarray(g.get_value())]):
            want = theirs[n]
            seen.add(n)
            out[n] = error(x.T if path[-1] == "kernel" else x, want, least=1e-30)
    assert seen == theirs.keys(), seen ^ theirs.keys()
    return out


RUNGS = {
    "positions": (rung_positions, LAYER),
    "embeddings": (rung_embeddings, LAYER),
    "layers": (rung_layers, LAYER),
    "network": (rung_network, NETWORK),
    "gradients": (rung_gradients, NETWORK),
}
