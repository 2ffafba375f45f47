"""Edits by any `Editor`: images and an instruction in, an image out; fixed shapes, randomness of its own an edit.

References are resized and encoded (by the posterior's mean), everything is padded to a bucket, conditions are made, and
all steps run in one compiled call; then latents are decoded. At one bucket an edit is bit-identical in any company: its
noise comes from (seed, item, member) and its row of the batch knows no other row.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from edit_rl_jax import sharding
from edit_rl_jax.data.images import resize
from edit_rl_jax.editors.base import (
    Condition,
    EditError,
    Editor,
    Request,
    Size,
    TokenLengths,
    check_text,
    smaller,
    tokens,
)
from edit_rl_jax.editors.pixels import checked_levels, to_pixels
from edit_rl_jax.editors.vae.tiling import decode_tiled
from edit_rl_jax.flow.keys import Purpose, item_keys, normal
from edit_rl_jax.flow.sampling import Denoising, sample
from edit_rl_jax.flow.schedules import Schedule

LANCZOS, BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR
K = TypeVar("K")
V = TypeVar("V")


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """What is asked for.

    images: references, RGB, of any size. size: (height, width) of the result in pixels; None: that of the only image,
    resized as the editor does. item, member: number in the data and which of its samples, from which the noise comes.
    """

    instruction: str
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()
    size: Size | None = None
    item: int = 0
    member: int = 0
    where: str = "edit"


@dataclasses.dataclass(frozen=True)
class EditSettings:
    """How edits are made.

    Attributes:
      sampler, schedule: of one number of steps.
      negative, negative_system: see `base.Request`.
      max_pixels, max_side: of images, as the editor's `Processor.fit` takes them.
      reference_pixels: of a reference at most, whatever the result's size: they cost as many tokens; 0: no such limit.
      text_length: tokens of text at most.
      tile: images with a longer side are decoded in tiles of at most this side, in pixels, blended where they overlap
        by a quarter, which takes less memory; 0: never. Wanted are multiples of four of the editor's `multiple`.
      rows: edits sampled together; over a mesh, all devices' together.
      buckets: the shapes that may be compiled; the first that holds an edit is taken. (): lengths rounded up by at most
        a quarter, a compilation each.
    """

    sampler: Denoising
    schedule: Schedule
    negative: str = ""
    negative_system: str | None = None
    max_pixels: int = 1024 * 1024
    max_side: int = 1024
    reference_pixels: int = 0
    text_length: int = 1024
    tile: int = 0
    rows: int = 1
    buckets: tuple[TokenLengths, ...] = ()

    def __post_init__(self):
        if self.sampler.steps != self.schedule.steps:
            raise ValueError(f"a sampler of {self.sampler.steps} steps, a schedule of {self.schedule.steps}")
        if self.sampler.window:
            raise ValueError("edits are made without noisy steps")


class Ready(NamedTuple):
    """An edit on the host, its references encoded. final: the size in pixels to which the result is resized."""

    request: Request
    lengths: TokenLengths
    final: Size
    latents: Float[np.ndarray, "S C"]
    item: int
    member: int


class Batch(NamedTuple):
    """Edits of one bucket: what `flow.sampling.sample` and `rl.editors.rollout` take."""

    condition: Condition  # [B, branches, ...]
    times: Float[Array | np.ndarray, "B N1"]
    mask: Bool[Array | np.ndarray, "B N"]
    item: Int[Array | np.ndarray, " B"]
    member: Int[Array | np.ndarray, " B"]


class EditorSampler:
    """An editor that is asked for edits.

    Args:
      editor: with its weights, on one device or over `mesh`; `state` holds them and may be replaced between calls.
      tokenizer: what its processor takes.
      compiler_options: of `jax.jit`.
    """

    def __init__(
        self,
        editor: Editor,
        tokenizer: Any,
        settings: EditSettings,
        mesh: Mesh | None = None,
        compiler_options: Mapping[str, Any] | None = None,
    ):
        self.tokenizer, self.settings, self.mesh, self.processor = tokenizer, settings, mesh, editor.processor
        self.graphdef, self.state = nnx.split(editor)
        self._jit = partial(jax.jit, compiler_options=compiler_options)
        merged = lambda f: self._jit(lambda state, *args: f(nnx.merge(self.graphdef, state), *args))
        self._encode = merged(lambda m, levels: m.encode(to_pixels(levels)))
        self._condition = merged(lambda m, *args: m.condition(*args))
        self._sample = merged(self._latents)
        self._decode: dict[tuple[Size, bool], Callable] = {}  # by size: it is a constant of the program
        if settings.tile % (4 * self.processor.multiple):
            raise ValueError(f"a tile of {settings.tile} pixels: wanted are multiples of {4 * self.processor.multiple}")

    def edit(self, edits: Sequence[Edit], seed: int = 0) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """Makes the edited images, in order. Raises EditError or ImageError for one that cannot be made."""
        out: list[UInt8[np.ndarray, "_ _ 3"]] = []
        for made in self.made(edits, seed):
            if isinstance(made, EditError):
                raise made
            out.append(made)
        return out

    def made(self, edits: Sequence[Edit], seed: int = 0) -> list[UInt8[np.ndarray, "_ _ 3"] | EditError]:
        """As `edit`, with an error in the place of an edit of whose pixels some are not finite."""
        ready = self.prepare(edits)
        images = self.decode(self.latents(ready, seed), [r.request.size for r in ready])
        fault = lambda edit: EditError(edit.where, "not finite", "the editor gives values that are no numbers")
        return [
            fault(edit) if image is None else resize(image, *r.final, BILINEAR)
            for edit, r, image in zip(edits, ready, images)
        ]

    def check(self, edit: Edit) -> tuple[Request, TokenLengths]:
        """Sizes an edit and chooses its bucket, without a device.

        Raises ImageError for an image that is too narrow; EditError for text that is too long, for what no bucket holds
        and for what the editor does not take.
        """
        s, p, where = self.settings, self.processor, edit.where
        references, size = p.fit([x.shape[:2] for x in edit.images], edit.size, s.max_pixels, s.max_side, where)
        references = tuple(smaller(r, s.reference_pixels, p.multiple) for r in references)
        request = Request(edit.instruction, edit.images, references, size, s.negative, s.negative_system, where)
        text = p.text_length(self.tokenizer, request, s.sampler.guidance)
        check_text(text, s.text_length, where)
        need = TokenLengths(text, sum(tokens(p, r) for r in references), tokens(p, size))
        if not s.buckets:
            return request, TokenLengths(*map(_rounded, dataclasses.astuple(need)))
        holds = lambda b: b.text >= need.text and b.references >= need.references and b.noise >= need.noise
        found = next((b for b in s.buckets if holds(b)), None)
        if found is None:
            raise EditError(where, f"no bucket of {s.buckets} holds {need}")
        return request, found

    def prepare(self, edits: Sequence[Edit]) -> list[Ready]:
        """Encodes the references; images that are the same object and shown at one size, once. Raises as `edit`."""
        checked = [self.check(e) for e in edits]
        keys = [[(id(x), size) for x, size in zip(e.images, r.references)] for e, (r, _) in zip(edits, checked)]
        pictures = {key: x for e, own in zip(edits, keys) for key, x in zip(own, e.images)}
        encoded = self._encoded_images({key: resize(x, *key[1], LANCZOS) for key, x in pictures.items()})
        none = np.zeros((0, self.processor.channels), np.float32)
        latents = [np.concatenate([none, *(encoded[key] for key in own)]) for own in keys]
        return [
            Ready(request, lengths, e.size or request.size, own, e.item, e.member)
            for e, (request, lengths), own in zip(edits, checked, latents)
        ]

    def batch(self, ready: Sequence[Ready]) -> Batch:
        """Makes the arrays of edits of one bucket on the devices, their conditions among them."""
        p, (lengths,), requests = self.processor, {r.lengths for r in ready}, [r.request for r in ready]
        arrays = p.prepare(self.tokenizer, requests, lengths, self.settings.sampler.guidance)
        references = np.stack([np.pad(r.latents, ((0, lengths.references - len(r.latents)), (0, 0))) for r in ready])
        cells = [(h // p.downscale) * (w // p.downscale) for h, w in (q.size for q in requests)]
        mask = np.arange(lengths.noise) < np.array([tokens(p, q.size) for q in requests])[:, None]
        number = lambda name: np.asarray([getattr(r, name) for r in ready], np.int32)
        placed = self.placed((self.settings.schedule.times(cells), mask, number("item"), number("member")))
        return Batch(self._run(self._condition, *self.placed((dict(arrays), references))), *placed)

    def latents(self, ready: Sequence[Ready], seed: int = 0) -> list[Float[np.ndarray, "N C"]]:
        """Sampled latents, without padding, in order. Edits of one bucket run together, `settings.rows` at a time."""
        out: dict[int, np.ndarray] = {}
        for part in _batches(((r.lengths, i) for i, r in enumerate(ready)), self.settings.rows):
            found = np.asarray(self._run(self._sample, self.batch([ready[i] for i in part]), jnp.uint32(seed)))
            out |= {i: row[: tokens(self.processor, ready[i].request.size)] for i, row in zip(part, found)}
        return [out[i] for i in range(len(ready))]

    def decode(
        self, latents: Sequence[Float[np.ndarray, "_ C"]], sizes: Sequence[Size]
    ) -> list[UInt8[np.ndarray, "_ _ 3"] | None]:
        """8-bit images of latents, of those sizes in pixels; a compilation a size. None where some pixels are not
        finite: rounded they would look like a picture."""
        out: dict[int, np.ndarray | None] = {}
        for part in _batches(((s, i) for i, s in enumerate(sizes)), self.settings.rows):
            size, rows, tile = sizes[part[0]], np.stack([latents[i] for i in part]), self.settings.tile
            if tile and max(size) > tile:
                levels, finite = self._tiled(rows, size)
            else:
                levels, finite = map(np.asarray, self._run(self.decoder(size), self.placed(rows)))
            out |= {i: image if fine else None for i, image, fine in zip(part, levels, finite)}
        return [out[i] for i in range(len(latents))]

    def decoder(self, size: Size, rounded: bool = True) -> Callable[[Any, Float[Array, "B N C"]], Any]:
        """The jitted (state, latents) -> images [B, H, W, 3] of that size: as the editor makes them, or
        their `checked_levels`."""
        if (size, rounded) not in self._decode:

            def decode(state, latents):
                pixels = nnx.merge(self.graphdef, state).decode(latents, *size)
                return checked_levels(pixels) if rounded else pixels

            self._decode[size, rounded] = self._jit(decode)
        return self._decode[size, rounded]

    def _tiled(
        self, latents: Float[np.ndarray, "B N C"], size: Size
    ) -> tuple[UInt8[np.ndarray, "B H W 3"], Bool[np.ndarray, " B"]]:
        """`checked_levels` of images that are decoded tile by tile."""
        many, count = self.processor.multiple, len(latents)
        h, w = size[0] // many, size[1] // many

        def decode(part: Float[np.ndarray, "B h w C"]) -> np.ndarray:
            rows = self.placed(part.reshape(count, -1, part.shape[-1]))
            size = (part.shape[1] * many, part.shape[2] * many)
            return np.asarray(self._run(self.decoder(size, rounded=False), rows))

        grid = latents[:, : h * w].reshape(count, h, w, -1)
        pixels = decode_tiled(decode, grid, self.settings.tile // many)
        levels, finite = map(np.asarray, checked_levels(jnp.asarray(pixels)))
        return levels, finite

    def placed(self, arrays: Any) -> Any:
        """Arrays of rows on the devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, arrays)
        return jax.device_put(arrays, sharding.batch_shardings(arrays, self.mesh))

    def _run(self, function: Callable, *args: Any) -> Any:
        if self.mesh is None:
            return function(self.state, *args)
        with jax.set_mesh(self.mesh):
            return function(self.state, *args)

    def _latents(self, editor: Editor, batch: Batch, seed: Array) -> Float[Array, "B N C"]:
        keys = item_keys(seed, Purpose.INITIAL, 0, batch.item, batch.member)
        noise = normal(keys, (batch.mask.shape[1], self.processor.channels))
        s = self.settings
        return sample(editor.velocity, s.sampler, noise, batch.times, batch.condition, mask=batch.mask).final

    def _encoded_images(self, images: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
        out = {}
        for part in _batches(((x.shape, key) for key, x in images.items()), self.settings.rows):
            rows = self.placed(np.stack([images[k] for k in part]))
            out |= dict(zip(part, np.asarray(self._run(self._encode, rows))))
        return out


def _rounded(n: int) -> int:
    """The next number of the form 4..8 x 2^k."""
    unit = 1 << max(n.bit_length() - 3, 0)
    return -(-n // unit) * unit


def _batches(entries: Iterable[tuple[K, V]], rows: int) -> Iterable[list[V]]:
    """Values of equal keys, `rows` at a time; the last of a key is repeated where there are fewer."""
    groups: dict[K, list[V]] = defaultdict(list)
    for key, value in entries:
        groups[key].append(value)
    for values in groups.values():
        for start in range(0, len(values), rows):
            part = values[start : start + rows]
            yield part + part[-1:] * (rows - len(part))
