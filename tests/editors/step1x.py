"""Step1X-Edit's transformer composed in torch by the facts of it, random tiny ones, ragged inputs, the ladder's rungs.

Blocks, last norm and rotary tables are diffusers' FLUX; connector and embedders are written here. Torch runs each row
alone, ours all of them padded, with NaN where the padding is. The blocks alone are held in tests/editors/flux.py.
"""

import dataclasses
import functools
import json
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.torch
import torch
from diffusers.models.normalization import AdaLayerNormContinuous
from diffusers.models.transformers.transformer_flux import (
    FluxPosEmbed,
    FluxSingleTransformerBlock,
    FluxTransformerBlock,
)
from flax import nnx
from torch import nn

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.step1x_edit import transformer
from edit_rl_jax.editors.step1x_edit.config import Step1XConfig
from edit_rl_jax.editors.step1x_edit.layout import layout
from edit_rl_jax.editors.step1x_edit.weights import TRANSFORMER
from edit_rl_jax.nn import weights
from tests.editors import rungs
from tests.editors.rungs import compared, pad
from tests.parity.ladder import LAYER, NETWORK, error, jit, layer
from tests.parity.tiny import randomise


def _config(channels, layers, single, heads, dim, axes, text, states, connector_heads, depth, pooled, scaled) -> dict:
    return {
        "in_channels": channels, "num_layers": layers, "num_single_layers": single, "num_attention_heads": heads,
        "attention_head_dim": dim, "axes_dims_rope": axes, "joint_attention_dim": text, "pooled_projection_dim": pooled,
        "connector_in_channels": states, "connector_heads_num": connector_heads, "connector_depth": depth,
        "connector_scale_factor": scaled
    }  # fmt: skip


CONFIGS = {
    "v1.1": _config(16, 2, 2, 3, 16, (4, 6, 6), 32, 24, 4, 2, 20, False),
    "v1.0": _config(8, 1, 1, 2, 12, (4, 4, 4), 24, 16, 2, 2, 12, True),
    "deeper": _config(12, 1, 1, 4, 8, (2, 2, 4), 20, 28, 1, 3, 8, False),
    "scaled_wide": _config(4, 1, 2, 2, 24, (8, 4, 12), 48, 12, 6, 1, 28, True),
}
BUCKET, EQUAL = TokenLengths(text=13, references=40, noise=32), TokenLengths(text=40, references=40, noise=40)


@dataclasses.dataclass(frozen=True)
class Row:
    """text: states, and how many of them are text; the rest is the editor's own padding. Sizes in tokens."""

    states: int
    text: int
    reference: tuple[int, int]
    size: tuple[int, int]


ROWS = (Row(9, 9, (4, 5), (4, 5)), Row(11, 4, (3, 4), (5, 6)), Row(6, 1, (6, 6), (2, 9)), Row(13, 12, (1, 3), (1, 3)))


def sin256(t: torch.Tensor) -> torch.Tensor:
    """Of t = 1000 sigma."""
    angles = t[:, None].float() * torch.exp(-np.log(10000) * torch.arange(128) / 128).float()[None]
    return torch.cat([torch.cos(angles), torch.sin(angles)], dim=-1)


class MLP(nn.Module):
    def __init__(self, d_in, d_out):
        super().__init__()
        self.in_layer, self.out_layer = nn.Linear(d_in, d_out), nn.Linear(d_out, d_out)

    def forward(self, x):
        return self.out_layer(nn.functional.silu(self.in_layer(x)))


class Block(nn.Module):
    def __init__(self, d, heads):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(d, eps=1e-6), nn.LayerNorm(d, eps=1e-6)
        self.self_attn_qkv, self.self_attn_proj = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(d, 4 * d), "fc2": nn.Linear(4 * d, d)})
        self.adaLN_modulation = nn.Sequential(nn.SiLU(), nn.Linear(d, 2 * d))
        self.heads = heads

    def forward(self, h, c, mask):
        first, second = self.adaLN_modulation(c)[:, None].chunk(2, dim=-1)
        q, k, v = (
            x.unflatten(-1, (self.heads, -1)).transpose(1, 2) for x in self.self_attn_qkv(self.norm1(h)).chunk(3, -1)
        )
        allowed = mask[:, None, :, None] & mask[:, None, None, :]
        allowed[..., 0] = True
        scores = (q @ k.mT / q.shape[-1] ** 0.5).masked_fill(~allowed, -torch.inf)
        h = h + first * self.self_attn_proj((scores.softmax(-1) @ v).transpose(1, 2).flatten(2))
        return h + second * self.mlp["fc2"](nn.functional.silu(self.mlp["fc1"](self.norm2(h))))


class Refiner(nn.Module):
    def __init__(self, c):
        super().__init__()
        d = c["joint_attention_dim"]
        self.input_embedder = nn.Linear(c["connector_in_channels"], d)
        self.t_embedder = nn.ModuleDict({"mlp": nn.Sequential(nn.Linear(256, d), nn.SiLU(), nn.Linear(d, d))})
        self.c_embedder = nn.ModuleDict(
            {"linear_1": nn.Linear(c["connector_in_channels"], d), "linear_2": nn.Linear(d, d)}
        )
        blocks = nn.ModuleList(Block(d, c["connector_heads_num"]) for _ in range(c["connector_depth"]))
        self.individual_token_refiner = nn.ModuleDict({"blocks": blocks})

    def forward(self, x, mean, t, mask):
        c = self.c_embedder["linear_2"](nn.functional.silu(self.c_embedder["linear_1"](mean)))
        c, h = c + self.t_embedder["mlp"](sin256(t)), self.input_embedder(x)
        for block in self.individual_token_refiner["blocks"]:
            h = block(h, c, mask)
        return h


class Connector(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.S = Refiner(c)
        self.global_proj_out = nn.Linear(c["connector_in_channels"], c["pooled_projection_dim"])
        self.scale_factor = nn.Parameter(torch.tensor([-0.91])) if c["connector_scale_factor"] else None

    def forward(self, x, t, mask):
        mean = (x * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
        scaled = mean if self.scale_factor is None else mean * (1 + self.scale_factor)
        return self.S(x * mask[..., None], mean, t, mask), self.global_proj_out(scaled)


class Network(nn.Module):
    """forward: sigma in, noise - data out, all image tokens."""

    def __init__(self, c):
        super().__init__()
        heads, dim, self.axes = c["num_attention_heads"], c["attention_head_dim"], c["axes_dims_rope"]
        d = heads * dim
        self.time_embed, self.vec_embed = MLP(256, d), MLP(c["pooled_projection_dim"], d)
        self.context_embedder, self.x_embedder = nn.Linear(c["joint_attention_dim"], d), nn.Linear(c["in_channels"], d)
        self.connector = Connector(c)
        self.transformer_blocks = nn.ModuleList(FluxTransformerBlock(d, heads, dim) for _ in range(c["num_layers"]))
        single = (FluxSingleTransformerBlock(d, heads, dim) for _ in range(c["num_single_layers"]))
        self.single_transformer_blocks = nn.ModuleList(single)
        self.norm_out = AdaLayerNormContinuous(d, d, elementwise_affine=False, eps=1e-6)
        self.proj_out = nn.Linear(d, c["in_channels"])

    def forward(self, image, states, mask, sigma, ids):
        text, pooled = self.connector(states, 1000 * sigma, mask)
        temb = self.time_embed(sin256(1000 * sigma)) + self.vec_embed(pooled)
        text, image = self.context_embedder(text), self.x_embedder(image)
        rotary = FluxPosEmbed(10000, self.axes)(torch.cat([torch.zeros(text.shape[1], 3), ids]))
        for block in (*self.transformer_blocks, *self.single_transformer_blocks):
            text, image = block(hidden_states=image, encoder_hidden_states=text, temb=temb, image_rotary_emb=rotary)
        return self.proj_out(self.norm_out(image, temb))


@functools.cache
def torch_model(name: str) -> Network:
    model = Network(CONFIGS[name]).eval()
    randomise(model, seed=0)
    return model


@functools.cache
def folder(name: str) -> Path:
    """The torch model of a configuration in the layout of upstream's version for diffusers."""
    path = Path(tempfile.mkdtemp(prefix="step1x_")) / name
    path.mkdir()
    safetensors.torch.save_file(torch_model(name).state_dict(), path / f"{TRANSFORMER.stem}.safetensors")
    (path / "config.json").write_text(json.dumps(Step1XConfig(**CONFIGS[name]).to_hf()))
    return path


@functools.cache
def ours(name: str, **options) -> transformer.Step1XTransformer:
    """Our model with the weights of `folder`, read by the real loader."""
    cfg = Step1XConfig.from_hf(folder(name))
    abstract = nnx.eval_shape(lambda: transformer.Step1XTransformer(cfg, rngs=nnx.Rngs(0), remat="none", **options))
    graphdef, state = nnx.split(abstract)
    return nnx.merge(graphdef, weights.load(folder(name), state, TRANSFORMER))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch for both sides: tokens of each row [n, C], states [T, F]. sigma is 1 - t."""

    rows: tuple[Row, ...]
    noise: list[np.ndarray]
    references: list[np.ndarray]
    text: list[np.ndarray]
    t: np.ndarray
    version: str

    def jax(self, bucket: TokenLengths = BUCKET, fill: float = 0.0):
        """(latents, t, condition); `fill` goes where padding is, the text's too."""
        rows = self.rows
        index = layout(
            [r.states for r in rows], [[r.reference] for r in rows], [r.size for r in rows], bucket, self.version
        )
        given = [np.where(np.arange(r.states)[:, None] < r.text, x, fill) for r, x in zip(rows, self.text)]
        parts = {"noise": self.noise, "references": self.references, "text": given}
        padded = {k: pad([x.astype(np.float32) for x in v], getattr(bucket, k), fill) for k, v in parts.items()}
        mask = np.arange(bucket.text)[None] < np.array([r.text for r in rows])[:, None]
        condition = {**index, "state_mask": mask, "text": padded["text"], "references": padded["references"]}
        return jax.tree.map(jnp.asarray, (padded["noise"], self.t, condition))

    def torch(self, b: int) -> tuple[torch.Tensor, ...]:
        """`Network.forward`'s arguments for row b alone."""
        r, tensor = self.rows[b], lambda x: torch.tensor(np.asarray(x, np.float32))
        first, shift = (0, 0) if self.version == "v1.0" else (1, 1)
        ids = lambda k, size, by: [(k, row + by, column + by) for row in range(size[0]) for column in range(size[1])]
        return (
            tensor(np.concatenate([self.noise[b], self.references[b]]))[None],
            tensor(self.text[b])[None],
            (torch.arange(r.states) < r.text)[None],
            1 - torch.tensor(self.t[b : b + 1]),
            tensor(ids(0, r.size, 0) + ids(first, r.reference, shift)),
        )


def inputs(name: str, rows: tuple[Row, ...] = ROWS, seed: int = 0) -> Inputs:
    c, rng = CONFIGS[name], np.random.default_rng(seed)
    tokens = lambda size: rng.normal(size=(size[0] * size[1], c["in_channels"])).astype(np.float32)
    return Inputs(
        rows,
        [tokens(r.size) for r in rows],
        [tokens(r.reference) for r in rows],
        [rng.normal(size=(r.states, c["connector_in_channels"])).astype(np.float32) for r in rows],
        rng.uniform(0, 1, len(rows)).astype(np.float32),
        "v1.0" if c["connector_scale_factor"] else "v1.1",
    )


def rung_connector(name: str) -> dict[str, float]:
    """Embedders, each block on inputs of two sizes (the small one shows epsilons), and the whole, padding too."""
    model, theirs, c, rng = ours(name), torch_model(name), CONFIGS[name], np.random.default_rng(0)
    normal, out = (lambda *shape: rng.normal(size=shape).astype(np.float32)), {}
    t, d, states = np.array([0.0, 0.13, 0.5, 1.0], np.float32), c["joint_attention_dim"], c["connector_in_channels"]
    mask = np.arange(7)[None] < np.array([7, 4, 1, 6])[:, None]
    for what, width in (("time_embed", 256), ("vec_embed", c["pooled_projection_dim"])):
        x = normal(4, width)
        with torch.no_grad():
            want = getattr(theirs, what)(torch.tensor(x))
        out[what] = error(getattr(model, what)(jnp.asarray(x)), want)
    run = jit(lambda block, *a: block(*a))
    blocks = theirs.connector.S.individual_token_refiner["blocks"]
    for i, block in enumerate(blocks):
        for size in (1.0, 1e-3):
            x, vector = size * normal(4, 7, d), normal(4, d)
            with torch.no_grad():
                want = block(*map(torch.tensor, (x, vector, mask)))
            mine = layer(model.connector.S.individual_token_refiner.blocks, i)
            out[f"block {i} at {size}"] = error(run(mine, *map(jnp.asarray, (x, vector, mask))), want)
    x = normal(4, 7, states)
    with torch.no_grad():
        tokens, pooled = theirs.connector(torch.tensor(x), 1000 * (1 - torch.tensor(t)), torch.tensor(mask))
    dirty = jnp.asarray(np.where(mask[..., None], x, np.nan))
    got = jit(lambda m, *a: m(*a, "none"))(model.connector, dirty, jnp.asarray(mask), jnp.asarray(t))
    return out | {"tokens": error(got[0], tokens), "vector": error(got[1], pooled)}


def rung_positions(name: str) -> dict[str, float]:
    """Positions of all real tokens against upstream's ids: 0 or infinite."""
    i, out = inputs(name), {}
    index = i.jax()[2]
    for b in range(len(i.rows)):
        real = [
            np.asarray(index[f"{k}_positions"][b])[np.asarray(index[f"{k}_segments"][b]) > 0]
            for k in ("noise", "reference")
        ]
        out[f"row {b}"] = 0.0 if np.array_equal(np.concatenate(real), i.torch(b)[-1].numpy()) else np.inf
        out[f"text of row {b}"] = 0.0 if int(index["text_segments"][b].sum()) == i.rows[b].states else np.inf
    return out


@functools.cache
def torch_velocity(name: str) -> list[np.ndarray]:
    return velocities(torch_model(name), name)


@torch.no_grad()
def velocities(model: nn.Module, name: str) -> list[np.ndarray]:
    """Of the ragged rows, by torch."""
    i = inputs(name)
    return [-model(*i.torch(b))[0, : len(x)].numpy() for b, x in enumerate(i.noise)]


def rung_network(name: str) -> dict[str, float]:
    """Velocities of the ragged batch, NaN in its padding; padding must come out zero."""
    return compared(torch_velocity(name), jit(lambda m, *a: m(*a))(ours(name), *inputs(name).jax(EQUAL, np.nan)))


@functools.cache
def torch_gradients(name: str) -> tuple[float, dict[str, np.ndarray]]:
    i, model = inputs(name), torch_model(name)
    return rungs.torch_gradients(model, i, lambda b: -model(*i.torch(b))[0])


def rung_gradients(name: str) -> dict[str, float]:
    """Velocities, and gradients by every weight, relative to each tensor's maximum."""
    i, theirs = inputs(name), (torch_gradients(name), torch_velocity(name))
    return rungs.gradients(*theirs, ours(name), TRANSFORMER, i, i.jax(BUCKET, np.nan))


RUNGS = {
    "positions": (rung_positions, LAYER),
    "connector": (rung_connector, LAYER),
    "network": (rung_network, NETWORK),
    "gradients": (rung_gradients, NETWORK),
}
