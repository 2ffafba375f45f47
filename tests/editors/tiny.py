"""Random tiny OmniGen2 transformers in torch, and ragged inputs for them: the reference side of the parity ladder."""

import dataclasses
import functools
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import torch
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.omnigen2.config import OmniGen2Config
from edit_rl_jax.editors.omnigen2.layout import layout
from edit_rl_jax.editors.omnigen2.transformer import OmniGen2Transformer
from edit_rl_jax.editors.omnigen2.weights import TRANSFORMER
from edit_rl_jax.nn import weights
from tests.editors.upstream import upstream
from tests.parity.tiny import randomise


def _config(hidden, heads, kv, layers, refiners, axes, text, **rest) -> dict:
    names = "hidden_size num_attention_heads num_kv_heads num_layers num_refiner_layers axes_dim_rope text_feat_dim"
    given = dict(zip(names.split(), (hidden, heads, kv, layers, refiners, axes, text)))
    return {"axes_lens": (100, 60, 60), "timestep_scale": 1000.0, "multiple_of": 16, "in_channels": 4, **given, **rest}


CONFIGS = {
    "grouped": _config(72, 3, 1, 2, 2, (8, 8, 8), 40, norm_eps=1e-5),
    "released_heads": _config(126, 21, 7, 1, 1, (2, 2, 2), 24, multiple_of=32),
    "uneven_axes": _config(96, 6, 2, 2, 1, (4, 8, 4), 56, timestep_scale=1.0, norm_eps=1e-6),
    "heads_equal": _config(64, 4, 4, 3, 2, (8, 4, 4), 32, ffn_dim_multiplier=0.7, in_channels=16),
    "wide_patches": _config(80, 2, 1, 1, 2, (16, 12, 12), 64, patch_size=4, in_channels=3),
}
BUCKET = TokenLengths(text=17, references=60, noise=30)


@dataclasses.dataclass(frozen=True)
class Row:
    """text: tokens. references, size: images in patches."""

    text: int
    references: tuple[tuple[int, int], ...]
    size: tuple[int, int]


ROWS = (
    Row(7, (), (4, 5)),
    Row(1, ((3, 4),), (3, 4)),
    Row(17, ((2, 7), (5, 3)), (6, 5)),
    Row(12, ((1, 3), (4, 2), (6, 6)), (1, 9)),
)


@functools.cache
def folder(name: str) -> Path:
    """The torch model of a configuration, saved by diffusers in several shards."""
    path = Path(tempfile.mkdtemp(prefix="omnigen2_")) / name
    torch_model(name).save_pretrained(path, max_shard_size="100KB")
    return path


@functools.cache
def torch_model(name: str) -> torch.nn.Module:
    cls = upstream("models.transformers").OmniGen2Transformer2DModel
    model = cls(**CONFIGS[name]).eval()
    randomise(model, seed=0)
    return model


def ours(name: str, **options) -> OmniGen2Transformer:
    """Our model with the weights of `folder`, read by the real loader."""
    cfg = OmniGen2Config.from_hf(folder(name))
    abstract = nnx.eval_shape(lambda: OmniGen2Transformer(cfg, rngs=nnx.Rngs(0), **options))
    graphdef, state = nnx.split(abstract)
    return nnx.merge(graphdef, weights.load(folder(name), state, TRANSFORMER))


@dataclasses.dataclass(frozen=True)
class Inputs:
    """One batch for both sides. latents, references: images [C, H, W] by row; text: [T, F] by row; t [B]."""

    latents: list[np.ndarray]
    references: list[list[np.ndarray]]
    text: list[np.ndarray]
    t: np.ndarray
    cfg: OmniGen2Config
    rows: tuple[Row, ...]

    def tokens(self, image: np.ndarray) -> np.ndarray:
        """[rows * columns, p * p * C] of an image [C, H, W]."""
        C, H, W = image.shape
        p = self.cfg.patch_size
        return image.reshape(C, H // p, p, W // p, p).transpose(1, 3, 2, 4, 0).reshape(-1, p * p * C)

    def jax(self, bucket: TokenLengths = BUCKET, fill: float = 0.0):
        """(latents, t, condition); `fill` goes where padding is."""
        index = layout(
            [r.text for r in self.rows], [r.references for r in self.rows], [r.size for r in self.rows], bucket
        )
        noise = padded([self.tokens(x) for x in self.latents], bucket.noise)
        condition = {**index, "text": padded(self.text, bucket.text)}
        if bucket.references:
            width = self.cfg.token_dim
            rows = [[self.tokens(x) for x in r] or np.zeros((0, width), np.float32) for r in self.references]
            condition["references"] = padded(rows, bucket.references)
        for values, segments in (
            (noise, index["noise_segments"]),
            (condition["text"], index["text_segments"]),
            (condition.get("references"), index["reference_segments"]),
        ):
            if fill and values is not None:
                values[segments == 0] = fill
        return jax.tree.map(jnp.asarray, (noise, self.t, condition))

    def torch(self) -> dict:
        rope = upstream("models.transformers.repo").OmniGen2RotaryPosEmbed
        text = padded(self.text, max(r.text for r in self.rows))
        mask = np.arange(text.shape[1])[None] < np.array([r.text for r in self.rows])[:, None]
        tensor = lambda x: torch.tensor(x)
        return {
            "hidden_states": [tensor(x) for x in self.latents],
            "timestep": tensor(self.t),
            "text_hidden_states": tensor(text),
            "text_attention_mask": tensor(mask),
            "freqs_cis": rope.get_freqs_cis(self.cfg.axes_dim_rope, self.cfg.axes_lens, 10000),
            "ref_image_hidden_states": [[tensor(x) for x in r] or None for r in self.references],
        }


def inputs(name: str, rows: tuple[Row, ...] = ROWS, seed: int = 0) -> Inputs:
    """Random inputs of rows; text features have a norm that its RMS norm must take away."""
    cfg, rng = OmniGen2Config(**CONFIGS[name]), np.random.default_rng(seed)
    image = lambda size: rng.normal(size=(cfg.in_channels, *(cfg.patch_size * n for n in size))).astype(np.float32)
    return Inputs(
        [image(r.size) for r in rows],
        [[image(s) for s in r.references] for r in rows],
        [(3 * rng.normal(size=(r.text, cfg.text_feat_dim))).astype(np.float32) for r in rows],
        rng.uniform(0, 1, len(rows)).astype(np.float32),
        cfg,
        rows,
    )


def padded(rows, length: int) -> np.ndarray:
    """[B, length, C] fp32 of ragged rows of tokens [n, C] (or lists of them, which follow each other), zero after."""
    joined = [np.concatenate(list(r)) if isinstance(r, list | tuple) and len(r) else np.asarray(r) for r in rows]
    width = next(r.shape[-1] for r in joined if r.ndim == 2)
    out = np.zeros((len(joined), length, width), np.float32)
    for b, r in enumerate(joined):
        if r.ndim == 2:
            out[b, : len(r)] = r
    return out
