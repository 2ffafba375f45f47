"""An editor from outside the package, whose edits are known: the result is the reference, brighter by the text.

Its latents are the pixels in patches of 2, its text features the number of "+" so far; the field leads straight to
reference + 0.1 x features of the last token, or to that shift alone where there is no reference.
"""

import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.editors.omnigen2.editor import pack, unpack
from edit_rl_jax.flow.schedules import Schedule

BRIGHTER = 0.1


class Editor(nnx.Module):
    multiple, downscale, channels = 2, 1, 12

    def __init__(self):
        self.brighter = nnx.Param(jnp.float32(BRIGHTER))

    def chat(self, instruction, system=None):
        return f"{system or ''}{instruction}."

    def layout(self, text_lengths, references, sizes, bucket):
        marks = lambda lengths, n: (np.arange(n)[None] < np.array(lengths)[:, None]).astype(np.int32)
        area = lambda images: sum(h * w for h, w in images)
        return {
            "text_segments": marks(text_lengths, bucket.text),
            "reference_segments": marks([area(r) for r in references], bucket.references),
            "noise_segments": marks([area([s]) for s in sizes], bucket.noise),
        }

    def encode_text(self, tokens, segments):
        plus = (tokens == ord("+")) & (segments > 0)
        return jnp.cumsum(plus.astype(jnp.float32), axis=1)[..., None]

    def encode_images(self, pixels, keys=None):
        return pack(pixels, 2)

    def velocity(self, latents, t, condition):
        c, n = condition, latents.shape[1]
        shift = jnp.max(jnp.where(c["text_segments"][..., None] > 0, c["text"], 0), axis=1, keepdims=True)
        target = jnp.broadcast_to(self.brighter[...] * shift, latents.shape)
        if "references" in c:
            seen = jnp.where(c["reference_segments"][..., None] > 0, c["references"], 0)[:, :n]
            target = target + jnp.pad(seen, ((0, 0), (0, n - seen.shape[1]), (0, 0)))
        return (target - latents) / (1 - t[:, None, None])

    def decode(self, latents, height, width):
        return unpack(latents, 2, height, width)


def folder_tokenizer(folder=None):
    """A character is a token."""
    return types.SimpleNamespace(encode=lambda text, add_special_tokens: [ord(c) for c in text])


def local_folder(path):
    return Path(path)


def from_folder(folder, **options):
    return Editor()


def schedule(folder, steps):
    return Schedule(steps, "linear")
