"""Random tiny Qwen-Image transformers in diffusers, ragged inputs for them, and the ladder's rungs of a whole network.

Torch runs each row alone, ours all of them padded, with NaN where the padding is. Bars and errors: tests/parity/ladder.
"""

import dataclasses
import functools
import tempfile
from pathlib import Path

import diffusers
import numpy as np
import torch
from flax import nnx

from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.layout import layout
from edit_rl_jax.editors.qwen_image_edit.transformer import TRANSFORMER, QwenImageTransformer
from edit_rl_jax.nn import weights
from tests.editors import flux, rungs
from tests.editors.flux import BUCKET, ROWS, Row
from tests.parity.tiny import randomise


def _config(channels, layers, heads, dim, axes, text, zero_cond_t=False) -> dict:
    return {
        "in_channels": channels, "num_layers": layers, "num_attention_heads": heads, "attention_head_dim": dim,
        "axes_dims_rope": axes, "joint_attention_dim": text, "zero_cond_t": zero_cond_t
    }  # fmt: skip


LADDER = {
    "three_heads": _config(16, 2, 3, 16, (4, 6, 6), 24),
    "zero_cond_t": _config(16, 2, 3, 16, (4, 6, 6), 24, True),
    "released_heads": _config(8, 1, 24, 8, (2, 2, 4), 16),
    "uneven_axes": _config(4, 3, 2, 24, (8, 4, 12), 40, True),
}
CONFIGS = dict(LADDER)
"""Other tests put theirs here."""


class Inputs(flux.Inputs):
    """As FLUX's, of which the pooled text and the guidance are not read."""

    placed = staticmethod(layout)

    def torch(self, b: int) -> dict:
        """diffusers' arguments for row b alone."""
        r, given = self.rows[b], super().torch(b, False)
        keep = ("hidden_states", "encoder_hidden_states", "timestep")
        return {k: given[k] for k in keep} | {"img_shapes": [[(1, *size) for size in (r.size, *r.references)]]}


@functools.cache
def torch_model(name: str) -> diffusers.QwenImageTransformer2DModel:
    c = CONFIGS[name]
    model = diffusers.QwenImageTransformer2DModel(patch_size=2, out_channels=c["in_channels"] // 4, **c).eval()
    randomise(model, seed=0)
    return model


@functools.cache
def ours(name: str, **options) -> QwenImageTransformer:
    """Our model with the weights that diffusers saved, read by the real loader."""
    with tempfile.TemporaryDirectory(prefix="qwen_image_") as folder:
        torch_model(name).save_pretrained(folder)
        cfg = QwenImageConfig.from_hf(Path(folder))
        abstract = nnx.eval_shape(lambda: QwenImageTransformer(cfg, rngs=nnx.Rngs(0), remat="none", **options))
        graphdef, state = nnx.split(abstract)
        return nnx.merge(graphdef, weights.load(Path(folder), state, TRANSFORMER))


def inputs(name: str, rows: tuple[Row, ...] = ROWS, seed: int = 0) -> Inputs:
    """Random ones; the second row is noise alone."""
    i = flux.drawn(Inputs, CONFIGS[name], rows, seed)
    return dataclasses.replace(i, t=np.where(np.arange(len(rows)) == 1, np.float32(0), i.t))


@functools.cache
def torch_velocity(name: str) -> list[np.ndarray]:
    return velocities(torch_model(name), name)


@torch.no_grad()
def velocities(model: torch.nn.Module, name: str) -> list[np.ndarray]:
    """Of the ragged rows, by torch."""
    i = inputs(name)
    return [-model(**i.torch(b)).sample[0, : len(x)].numpy() for b, x in enumerate(i.noise)]


def rung_gradients(name: str) -> dict[str, float]:
    """Velocities, and gradients by every weight, relative to each tensor's maximum."""
    i, model = inputs(name), torch_model(name)
    gradients = rungs.torch_gradients(model, i, lambda b: -model(**i.torch(b)).sample[0])
    return rungs.gradients(gradients, torch_velocity(name), ours(name), TRANSFORMER, i, i.jax(BUCKET, np.nan))
