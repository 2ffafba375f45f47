"""Random tiny FLUX transformers in diffusers, ragged inputs for them, and the parity ladder's rungs.

Torch runs each row alone, ours all of them padded, with NaN where the padding is. Bars and errors: tests/parity/ladder.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.flux_kontext import transformer
from edit_rl_jax.editors.flux_kontext.config import FluxConfig
from edit_rl_jax.editors.flux_kontext.layout import layout
from edit_rl_jax.editors.flux_kontext.weights import TRANSFORMER
from edit_rl_jax.editors.mmdit import blocks, rotary
from edit_rl_jax.nn import weights
from tests.editors import rungs
from tests.editors.rungs import compared, pad
from tests.parity.ladder import LAYER, NETWORK, error, jit, layer
from tests.parity.tiny import randomise


def _config(channels, layers, single, heads, dim, axes, text, pooled, guidance=True) -> dict:
    return {
        "in_channels": channels, "num_layers": layers, "num_single_layers": single, "num_attention_heads": heads,
        "attention_head_dim": dim, "axes_dims_rope": axes, "joint_attention_dim": text,
        "pooled_projection_dim": pooled, "guidance_embeds": guidance
    }  # fmt: skip


CONFIGS = {
    "three_heads": _config(16, 2, 3, 3, 16, (4, 6, 6), 24, 20),
    "released_heads": _config(8, 1, 1, 24, 8, (2, 2, 4), 16, 12),
    "uneven_axes": _config(4, 3, 1, 2, 24, (8, 4, 12), 40, 8),
    "no_guidance": _config(12, 1, 1, 4, 12, (4, 4, 4), 20, 28, guidance=False),
}
BUCKET = TokenLengths(text=11, references=60, noise=30)
EQUAL = TokenLengths(text=60, references=60, noise=60)
"""Another padding of the same rows."""


@dataclasses.dataclass(frozen=True)
class Row:
    """text: tokens. references, size: images in tokens."""

    text: int
    references: tuple[tuple[int, int], ...]
    size: tuple[int, int]
    guidance: float


ROWS = (
    Row(7, (), (4, 5), 2.5),
    Row(1, ((3, 4),), (3, 4), 1.0),
    Row(11, ((2, 7), (5, 3)), (6, 5), 4.0),
    Row(5, ((1, 3), (4, 2), (6, 6)), (1, 9), 3.5),
)


@functools.cache
def torch_model(name: str) -> diffusers.FluxTransformer2DModel:
    model = diffusers.FluxTransformer2DModel(patch_size=1, **CONFIGS[name]).eval()
    randomise(model, seed=0)
    return model


@functools.cache
def folder(name: str) -> Path:
    """The torch model of a configuration, saved by diffusers in several shards."""
    path = Path(tempfile.mkdtemp(prefix="flux_")) / name
    torch_model(name).save_pretrained(path, max_shard_size="100KB")
    return path


@functools.cache
def ours(name: str, **options) -> transformer.FluxTransformer:
    """Our model with the weights of `folder`, read by the real loader."""
    cfg = FluxConfig.from_hf(folder(name))
    abstract = nnx.eval_shape(lambda: transformer.FluxTransformer(cfg, rngs=nnx.Rngs(0), remat="none", **options))
    graphdef, state = nnx.split(abstract)
    return nnx.merge(graphdef, weights.load(folder(name), state, TRANSFORMER))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch for both sides: tokens of each row [n, C]; references of each image. sigma is 1 - t."""

    rows: tuple[Row, ...]
    noise: list[np.ndarray]
    references: list[list[np.ndarray]]
    text: list[np.ndarray]
    pooled: np.ndarray
    t: np.ndarray
    placed = staticmethod(layout)

    def jax(self, bucket: TokenLengths = BUCKET, fill: float = 0.0):
        """(latents, t, condition); `fill` goes where padding is."""
        index = self.placed(
            [r.text for r in self.rows], [r.references for r in self.rows], [r.size for r in self.rows], bucket
        )
        joined = [np.concatenate([np.zeros((0, self.noise[0].shape[-1]), np.float32), *r]) for r in self.references]
        parts = {"noise": self.noise, "references": joined, "text": self.text}
        padded = {k: pad(v, getattr(bucket, k), fill) for k, v in parts.items()}
        more = {"pooled": self.pooled, "guidance": np.array([r.guidance for r in self.rows], np.float32)}
        condition = {**index, **more, "text": padded["text"], "references": padded["references"]}
        return jax.tree.map(jnp.asarray, (padded["noise"], self.t, condition))

    def torch(self, b: int, guided: bool) -> dict:
        """diffusers' arguments for row b alone."""
        r, tensor = self.rows[b], lambda x: torch.tensor(np.asarray(x, np.float32))
        ids = lambda k, size: [(k, row, column) for row in range(size[0]) for column in range(size[1])]
        images = ids(0, r.size) + [i for k, size in enumerate(r.references, 1) for i in ids(k, size)]
        return {
            "hidden_states": tensor(np.concatenate([self.noise[b], *self.references[b]]))[None],
            "encoder_hidden_states": tensor(self.text[b])[None],
            "pooled_projections": tensor(self.pooled[b])[None],
            "timestep": 1 - torch.tensor(self.t[b : b + 1]),
            "guidance": tensor([r.guidance]) if guided else None,
            "img_ids": tensor(images),
            "txt_ids": torch.zeros(r.text, 3),
        }


def inputs(name: str, rows: tuple[Row, ...] = ROWS, seed: int = 0) -> Inputs:
    return drawn(Inputs, CONFIGS[name], rows, seed)


def drawn(kind: type[Inputs], c: dict, rows: tuple[Row, ...], seed: int) -> Inputs:
    """Random inputs of a configuration."""
    rng = np.random.default_rng(seed)
    tokens = lambda size: rng.normal(size=(size[0] * size[1], c["in_channels"])).astype(np.float32)
    return kind(
        rows,
        [tokens(r.size) for r in rows],
        [[tokens(s) for s in r.references] for r in rows],
        [rng.normal(size=(r.text, c["joint_attention_dim"])).astype(np.float32) for r in rows],
        rng.normal(size=(len(rows), c.get("pooled_projection_dim", 1))).astype(np.float32),
        rng.uniform(0, 1, len(rows)).astype(np.float32),
    )


@functools.cache
def captured(name: str) -> dict:
    """Arguments and outputs of torch's modules on the row with two references."""
    model, seen = torch_model(name), {}
    modules = {n: m for n, m in model.named_modules() if n.count(".") <= 1}
    keep = lambda n: lambda module, args, kwargs, out: seen.__setitem__(n, ({**dict(enumerate(args)), **kwargs}, out))
    handles = [m.register_forward_hook(keep(n), with_kwargs=True) for n, m in modules.items()]
    with torch.no_grad():
        model(**inputs(name).torch(2, CONFIGS[name]["guidance_embeds"]))
    for h in handles:
        h.remove()
    return seen


def rung_positions(name: str) -> dict[str, float]:
    """cos and sin at every token against the reference's tables by its own ids, far ones too."""
    model, i, axes, out = torch_model(name), inputs(name), CONFIGS[name]["axes_dims_rope"], {}
    index = i.jax()[2]
    at = jnp.concatenate([index[f"{k}_positions"] for k in transformer.KINDS], axis=1)
    live = np.concatenate([index[f"{k}_segments"] for k in transformer.KINDS], axis=1) > 0
    tables = [np.asarray(x) for x in rotary.tables(at, axes)]
    for b in range(len(i.rows)):
        given = i.torch(b, False)
        want = model.pos_embed(torch.cat([given["txt_ids"], given["img_ids"]]))
        out |= {f"{n}, row {b}": error(x[b][live[b]], y[:, ::2]) for n, x, y in zip(("cos", "sin"), tables, want)}
    far = np.array([[[0, 0, 0], [1, 97, 64], [3, 4000, 4095]]], np.int32)
    want = model.pos_embed(torch.tensor(far[0]).float())
    return out | {
        f"far {k}": error(x[0], y[:, ::2]) for k, (x, y) in enumerate(zip(rotary.tables(jnp.asarray(far), axes), want))
    }


def rung_embeddings(name: str) -> dict[str, float]:
    """The vector of time, guidance and pooled text, and the embedders; times over the whole of [0, 1]."""
    model, theirs, c, rng = ours(name), torch_model(name), CONFIGS[name], np.random.default_rng(0)
    t = np.array([0.0, 0.0063, 0.25, 0.5004, 0.87, 1.0], np.float32)
    guidance = np.array([2.5, 1.0, 3.5, 4.0, 0.0, 7.25], np.float32)
    pooled = rng.normal(size=(6, c["pooled_projection_dim"])).astype(np.float32)
    numbers = [1000 * torch.tensor(1 - t), *([1000 * torch.tensor(guidance)] if c["guidance_embeds"] else [])]
    with torch.no_grad():
        want = theirs.time_text_embed(*numbers, torch.tensor(pooled))
    found = model.time_text_embed(*map(jnp.asarray, (t, guidance, pooled)), jnp.dtype("float32"))
    out = {"vector": error(found, want)}
    for part, width in (("context_embedder", c["joint_attention_dim"]), ("x_embedder", c["in_channels"])):
        x = rng.normal(size=(2, 5, width)).astype(np.float32)
        with torch.no_grad():
            want = getattr(theirs, part)(torch.tensor(x))
        out[part] = error(getattr(model, part)(jnp.asarray(x)), want)
    return out


def rung_layers(name: str) -> dict[str, float]:
    """Every block alone on torch's own inputs to it, and the output; then on inputs so small that epsilons show."""
    model, seen, out = ours(name), captured(name), {}
    arrays = lambda x: jnp.asarray(np.asarray(x))
    cos, sin = (arrays(x[:, ::2])[None] for x in seen["transformer_blocks.0"][0]["image_rotary_emb"])
    ids = jnp.ones((1, cos.shape[1]), jnp.int32)
    run = jit(lambda block, *a: block(*a))
    for n, (given, want) in seen.items():
        kind, _, i = n.partition(".")
        if kind not in TRANSFORMER.stacked or not i:
            continue
        arg = lambda key, at, given=given: given.get(key, given.get(at))
        text, image, temb = (arg(k, at) for k, at in (("encoder_hidden_states", 1), ("hidden_states", 0), ("temb", 2)))
        rest = (arrays(temb), (cos, sin), ids)
        block = layer(getattr(model, kind), int(i))
        for size in (1.0, 1e-3):
            if size < 1:
                with torch.no_grad():
                    want = dict(torch_model(name).named_modules())[n](
                        hidden_states=size * image, encoder_hidden_states=size * text, temb=temb,
                        image_rotary_emb=seen["transformer_blocks.0"][0]["image_rotary_emb"],
                    )  # fmt: skip
            t, x = arrays(size * text), arrays(size * image)
            if kind == "transformer_blocks":
                got = run(block, t, x, *rest)
            else:
                y = run(block, jnp.concatenate([t, x], axis=1), *rest)
                got = y[:, : t.shape[1]], y[:, t.shape[1] :]
            out |= {f"{n} {what} at {size}": error(g, w) for what, g, w in zip(("text", "image"), got, want)}
        # the norm of queries alone, where its epsilon shows
        x = 1e-3 * np.random.default_rng(0).normal(size=(1, 5, 3, model.cfg.attention_head_dim)).astype(np.float32)
        with torch.no_grad():
            want = dict(torch_model(name).named_modules())[f"{n}.attn.norm_q"](torch.tensor(x))
        out[f"{n} norm_q"] = error(block.attn.norm_q(jnp.asarray(x)), want)
    given, want = seen["norm_out"]
    temb, x = arrays(given[1]), given[0]
    for size in (1.0, 1e-3):
        with torch.no_grad():
            want = torch_model(name).norm_out(size * x, given[1])
        out[f"output at {size}"] = error(jit(lambda m, *a: m(*a))(model.norm_out, arrays(size * x), temb), want)
    return out


@functools.cache
def torch_velocity(name: str) -> list[np.ndarray]:
    return velocities(torch_model(name), name)


@torch.no_grad()
def velocities(model: torch.nn.Module, name: str) -> list[np.ndarray]:
    """Of the ragged rows, by torch."""
    i, guided = inputs(name), CONFIGS[name]["guidance_embeds"]
    return [-model(**i.torch(b, guided)).sample[0, : len(x)].numpy() for b, x in enumerate(i.noise)]


def rung_network(name: str) -> dict[str, float]:
    """Velocities of the ragged batch, NaN in its padding; padding must come out zero."""
    return compared(torch_velocity(name), jit(lambda m, *a: m(*a))(ours(name), *inputs(name).jax(EQUAL, np.nan)))


@functools.cache
def torch_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    i, model, guided = inputs(name), torch_model(name), CONFIGS[name]["guidance_embeds"]
    return rungs.torch_gradients(model, i, lambda b: -model(**i.torch(b, guided)).sample[0])


def rung_gradients(name: str) -> dict[str, float]:
    """Velocities, and gradients by every weight, relative to each tensor's maximum."""
    i, theirs = inputs(name), (torch_gradients(name), torch_velocity(name))
    return rungs.gradients(*theirs, ours(name), TRANSFORMER, i, i.jax(BUCKET, np.nan))


RUNGS = {
    "positions": (rung_positions, LAYER),
    "embeddings": (rung_embeddings, LAYER),
    "layers": (rung_layers, LAYER),
    "network": (rung_network, NETWORK),
    "gradients": (rung_gradients, NETWORK),
}
__all__ = ["RUNGS", "blocks"]
