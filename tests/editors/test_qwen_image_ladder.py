"""Qwen-Image's transformer against diffusers' on random tiny configurations: velocities of ragged rows, and gradients
by every weight. Torch runs each row alone, ours all of them padded, with NaN where the padding is."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from flax import nnx

from edit_rl_jax.editors.base import TokenLengths
from edit_rl_jax.editors.qwen_image_edit.config import QwenImageConfig
from edit_rl_jax.editors.qwen_image_edit.layout import layout
from edit_rl_jax.editors.qwen_image_edit.transformer import TRANSFORMER, QwenImageTransformer
from edit_rl_jax.nn import weights
from tests.editors.flux import pad
from tests.parity.ladder import NETWORK, error
from tests.parity.tiny import randomise

CONFIGS = {  # channels, layers, heads, width of a head, axes, text, zero_cond_t
    "three_heads": (16, 2, 3, 16, (4, 6, 6), 24, False),
    "zero_cond_t": (16, 2, 3, 16, (4, 6, 6), 24, True),
    "released_heads": (8, 1, 24, 8, (2, 2, 4), 16, False),
    "uneven_axes": (4, 3, 2, 24, (8, 4, 12), 40, True),
}
TEXT, SIZES, T = (7, 1, 5), ((4, 5), (3, 4), (1, 9)), np.array([0.7, 0.0, 0.35], np.float32)
REFERENCES = (((3, 4),), ((2, 7), (5, 3)), ((1, 3), (4, 2), (6, 6)))
LENGTHS = TokenLengths(text=8, references=50, noise=22)


@pytest.mark.parametrize("name", [pytest.param(n, marks=[pytest.mark.slow] * (n != "zero_cond_t")) for n in CONFIGS])
def test_velocities_and_gradients_are_those_of_diffusers(name, tmp_path):
    keys = ("in_channels", "num_layers", "num_attention_heads", "attention_head_dim", "axes_dims_rope",
            "joint_attention_dim", "zero_cond_t")  # fmt: skip
    config = dict(zip(keys, CONFIGS[name]))
    theirs = diffusers.QwenImageTransformer2DModel(**config, patch_size=2, out_channels=config["in_channels"] // 4)
    randomise(theirs.eval(), seed=0)
    theirs.save_pretrained(tmp_path)
    cfg, rng = QwenImageConfig.from_hf(tmp_path), np.random.default_rng(0)
    draw = lambda n, width: rng.normal(size=(n, width)).astype(np.float32)
    area, C = lambda size: size[0] * size[1], cfg.in_channels
    noise, goal = ([draw(area(s), C) for s in SIZES] for _ in range(2))
    references = [draw(sum(map(area, r)), C) for r in REFERENCES]
    text = [draw(n, cfg.joint_attention_dim) for n in TEXT]
    want, loss = [], 0.0
    for b, size in enumerate(SIZES):
        out = -theirs(
            hidden_states=torch.tensor(np.concatenate([noise[b], references[b]]))[None],
            encoder_hidden_states=torch.tensor(text[b])[None],
            timestep=1 - torch.tensor(T[b : b + 1]),
            img_shapes=[[(1, *s) for s in (size, *REFERENCES[b])]],
        ).sample[0, : area(size)]
        want.append(out.detach().numpy())
        loss = loss + ((out - torch.tensor(goal[b])) ** 2).sum()
    loss.backward()

    state = nnx.eval_shape(lambda: QwenImageTransformer(cfg, rngs=nnx.Rngs(0), remat="none"))
    graphdef, state = nnx.split(state)
    state = weights.load(tmp_path, state, TRANSFORMER)
    padded = lambda x, n, fill=np.nan: jnp.asarray(pad(x, n, fill))
    condition = {
        **layout(TEXT, REFERENCES, SIZES, LENGTHS),
        "text": padded(text, 8),
        "references": padded(references, 50),
    }
    condition = jax.tree.map(jnp.asarray, condition)

    def total(state):
        out = nnx.merge(graphdef, state)(padded(noise, 22), jnp.asarray(T), condition)
        live = (condition["noise_segments"] > 0)[..., None]
        return jnp.sum(jnp.where(live, out - padded(goal, 22, 0.0), 0) ** 2), out

    (_, got), grads = jax.jit(jax.value_and_grad(total, has_aux=True))(state)
    errors = {f"row {b}": error(got[b, : len(w)], w) for b, w in enumerate(want)}
    gradients, seen = {n: p.grad.numpy() for n, p in theirs.named_parameters() if p.grad is not None}, set()
    for path, g in zip(*weights.flatten(grads)[:2]):
        names, g = TRANSFORMER.sources(path, g.shape), np.asarray(g.get_value())
        for n, x in zip(names, g if TRANSFORMER.layers(path) else [g]):
            given = gradients.get(n, np.zeros_like(x.T if path[-1] == "kernel" else x))  # last text half: unread
            errors[n] = error(x.T if path[-1] == "kernel" else x, given, least=1e-30)
            seen.add(n)
    assert gradients.keys() <= seen
    assert not {k: e for k, e in errors.items() if not e <= NETWORK}
