"""Tiny random models and packed batches for the tests of this folder."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.nn.params import Frozen, LoRAConfig, Trainable
from edit_rl_jax.vlm.positions import Grid, pack_vision, rope_index
from edit_rl_jax.vlm.qwen2_5_vl.config import Config, TextConfig, VisionConfig
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from tests import quick

jit = functools.partial(jax.jit, compiler_options=quick.OPTIONS)
IMAGE, START, END = 90, 91, 92
PATCH_DIM = 2 * 2 * 2 * 3
TEXT = TextConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    rms_norm_eps=1e-6,
    rope_theta=1e4,
    mrope_section=(1, 1, 2),
)
VISION = VisionConfig(  # windows of 4x4 merged tokens = 64 patches, as in the released models; patches of 2x2 pixels
    depth=4,
    hidden_size=32,
    intermediate_size=40,
    num_heads=4,
    patch_size=2,
    window_size=16,
    out_hidden_size=32,
    fullatt_block_indexes=(1, 3),
)
CONFIG = Config(VISION, TEXT, image_token_id=IMAGE, vision_start_token_id=START, vision_end_token_id=END)


def tiny(cfg: Config = CONFIG, lora: LoRAConfig | None = None, seed: int = 0, **kwargs) -> Qwen25VL:
    """A model with every leaf random: kernels N(0, 1/fan_in), biases, gains and both LoRA factors too."""
    rng = np.random.default_rng(seed)
    draws = {
        "scale": lambda s: rng.uniform(0.5, 1.5, s),
        "bias": lambda s: rng.normal(0, 0.3, s),
        "embedding": lambda s: rng.normal(0, 1, s),
        # Of full size it would nearly double every layer's gain, and rounding would grow 200-fold through the network.
        "lora_b": lambda s: rng.normal(0, 0.3 * s[-2] ** -0.5, s),
    }

    def draw(path, v):
        name = [k.key for k in path if hasattr(k, "key")][-1]
        value = draws.get(name, lambda s: rng.normal(0, s[-2] ** -0.5, s))(v.shape)
        return v.replace(jnp.asarray(value, v.dtype))

    abstract = nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0), lora=lora, **kwargs))
    graphdef, *states = nnx.split(abstract, Trainable, Frozen)
    is_leaf = lambda x: isinstance(x, nnx.Variable)
    return nnx.merge(graphdef, *[jax.tree.map_with_path(draw, s, is_leaf=is_leaf) for s in states])


@dataclasses.dataclass
class Sample:
    """Tokens with the images' pads in place, grids, and patches in processor order."""

    tokens: np.ndarray
    grids: list[Grid]
    patches: list[np.ndarray]


def sample(seed: int, *parts: int | Grid) -> Sample:
    """A random sample: an int is so many text tokens, a grid an image between its tags."""
    rng = np.random.default_rng(seed)
    tokens, grids, patches = [], [], []
    for part in parts:
        if isinstance(part, int):
            tokens += rng.integers(1, IMAGE, part).tolist()
        else:
            tokens += [START, *[IMAGE] * (part[0] * part[1] * part[2] // 4), END]
            grids.append(part)
            patches.append(rng.normal(size=(part[0] * part[1] * part[2], PATCH_DIM)).astype(np.float32))
    return Sample(np.array(tokens), grids, patches)


def batch(rows: list[list[Sample]], T: int, R: int, P: int, cfg: VisionConfig = VISION, left: int = 0):
    """Packed rows, each of `left` padding tokens, the samples, padding."""
    out = {
        "tokens": np.zeros((len(rows), T), np.int32),
        "positions": np.zeros((len(rows), 3, T), np.int32),
        "segments": np.zeros((len(rows), T), np.int32),
        "image_index": np.full((len(rows), T), -1, np.int32),
        "patches": np.zeros((len(rows), R, P, PATCH_DIM), np.float32),
        "patch_segments": np.zeros((len(rows), R, P), np.int32),
        "window_segments": np.zeros((len(rows), R, P), np.int32),
        "patch_hw": np.zeros((len(rows), R, P, 2), np.int32),
    }
    for b, samples in enumerate(rows):
        layout = pack_vision([g for s in samples for g in s.grids], cfg, R, P)
        pixels = np.concatenate([np.zeros((1, PATCH_DIM), np.float32), *[p for s in samples for p in s.patches]])
        out["patches"][b] = pixels[layout.source + 1]
        for name in ("patch_segments", "window_segments", "patch_hw"):
            out[name][b] = getattr(layout, name)
        at, image = left, 0
        for i, s in enumerate(samples):
            span = slice(at, at + len(s.tokens))
            out["tokens"][b, span], out["segments"][b, span] = s.tokens, i + 1
            out["positions"][b, :, span] = rope_index(s.tokens, s.grids, IMAGE)[0]
            merged = layout.merged_index[image : image + len(s.grids)]
            if merged:
                out["image_index"][b, span][s.tokens == IMAGE] = np.concatenate(merged)
            at, image = span.stop, image + len(s.grids)
    return {k: jnp.asarray(v) for k, v in out.items()}


@jit
def logits(model: Qwen25VL, inputs) -> jax.Array:
    """Logits of every position [B, T, V]."""
    return model.logits(model.hidden(inputs))


def error(a, b) -> float:
    """max |a - b| / max(1, max |b|)."""
    a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
    return float(np.abs(a - b).max() / max(1.0, np.abs(b).max()))
