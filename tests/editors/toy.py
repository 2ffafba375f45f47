"""An editor from outside the package, whose edits are known: the result is the reference, brighter by the text.

Its latents are the pixels in patches of 2, its text features the number of "+" so far; the field leads straight to
reference + 0.1 x features of the last token, or to that shift alone where there is no reference.
"""

import dataclasses
import types
from pathlib import Path

import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.data.images import floor_resize
from edit_rl_jax.editors.base import EditError
from edit_rl_jax.editors.omnigen2.editor import pack, unpack
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.schedules import Schedule

BRIGHTER = 0.1


@dataclasses.dataclass(frozen=True)
class Processor:
    multiple: int = 2
    downscale: int = 1
    channels: int = 12
    steps: int = 4
    guidance: Guidance = Guidance(3.0, 1.2)
    max_side: int = 1024

    def fit(self, images, size, max_pixels, max_side, where):
        if size is None and len(images) != 1:
            raise EditError(where, f"{len(images)} images do not say the size")
        cut = lambda shape, side: floor_resize(*shape, 2, max_pixels, side, where)
        references = tuple(cut(i, max_side) for i in images)
        return references, references[0] if size is None else cut(size, max(size))

    def text_length(self, tokenizer, request, guidance):
        texts = [request.instruction or ""] + [request.negative] * (guidance.branches > 1)
        return max(len(tokenizer.encode(t)) for t in texts)

    def prepare(self, tokenizer, requests, lengths, guidance):
        n = guidance.branches
        text = np.zeros((len(requests), n, lengths.text), np.int32)
        seen = np.zeros((len(requests), n, lengths.references, 1), bool)
        valid = np.zeros((len(requests), n, lengths.noise, 1), bool)
        area = lambda images: sum(h * w // 4 for h, w in images)
        for b, r in enumerate(requests):
            if r is None:
                continue
            for k in range(n):
                ids = tokenizer.encode((r.negative if k else r.instruction) or "")
                text[b, k, : len(ids)] = ids
                seen[b, k, : 0 if k and k == n - 1 else area(r.references)] = True
                valid[b, k, : area([r.size])] = True
        return {"text": text, "seen": seen, "valid": valid}


class Editor(nnx.Module):
    processor = Processor()

    def __init__(self):
        self.brighter = nnx.Param(jnp.float32(BRIGHTER))

    def condition(self, arrays, references):
        shift = self.brighter[...] * jnp.sum(arrays["text"] == ord("+"), axis=-1).astype(jnp.float32)
        seen = jnp.where(arrays["seen"], references[:, None], 0)
        return {"shift": shift, "references": seen, "valid": arrays["valid"]}

    def encode(self, pixels, keys=None):
        return pack(pixels, 2)

    def velocity(self, latents, t, condition):
        n, seen = latents.shape[1], condition["references"][:, : latents.shape[1]]
        target = condition["shift"][:, None, None] + jnp.pad(seen, ((0, 0), (0, n - seen.shape[1]), (0, 0)))
        return jnp.where(condition["valid"], (target - latents) / (1 - t[:, None, None]), 0)

    def decode(self, latents, height, width):
        return unpack(latents, 2, height, width)


def folder_tokenizer(folder=None):
    """A character is a token."""
    return types.SimpleNamespace(encode=lambda text: [ord(c) for c in text])


def local_folder(path):
    return Path(path)


def from_folder(folder, **options):
    return Editor()


def schedule(folder, steps):
    return Schedule(steps, "linear")
