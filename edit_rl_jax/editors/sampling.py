"""Edits by any `Editor`: images and an instruction in, an image out; fixed shapes, randomness of its own an edit.

Text is encoded, references are resized and encoded (by the posterior's mean), everything is padded to a bucket, and
all steps run in one compiled call; then latents are decoded. At one bucket an edit is bit-identical in any company: its
noise comes from (seed, item, member) and its row of the batch knows no other row.
"""

import dataclasses
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Float, Int, UInt8
from PIL import Image

from edit_rl_jax import sharding
from edit_rl_jax.data.images import floor_resize, resize
from edit_rl_jax.editors.base import Bucket, Editor, Size
from edit_rl_jax.editors.vae.tiling import decode_tiled
from edit_rl_jax.flow import guidance
from edit_rl_jax.flow.keys import Purpose, item_keys, normal
from edit_rl_jax.flow.sampling import Sampler, sample
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.vlm.tokenizer import Tokenizer

LANCZOS, BILINEAR = Image.Resampling.LANCZOS, Image.Resampling.BILINEAR
K = TypeVar("K")
V = TypeVar("V")


class EditError(ValueError):
    """An edit that cannot be made; names it."""


@dataclasses.dataclass(frozen=True, eq=False)
class Edit:
    """What is asked for.

    images: references, RGB, of any size. size: (height, width) of the result in pixels; None: that of the only image,
    resized as `Settings` says. item, member: number in the data and which of its samples, from which the noise comes.
    """

    instruction: str
    images: tuple[UInt8[np.ndarray, "_ _ 3"], ...] = ()
    size: tuple[int, int] | None = None
    item: int = 0
    member: int = 0
    where: str = "edit"


@dataclasses.dataclass(frozen=True)
class Settings:
    """How edits are made.

    Attributes:
      sampler, schedule: of one number of steps.
      negative, negative_system: what guidance leads away from, and the system text before it (None: the editor's own).
      max_pixels, max_side: larger images are shrunk; smaller ones stay.
      text_length: tokens of text at most.
      tile: images with a longer side are decoded in tiles of at most this side, in pixels, blended where they overlap
        by a quarter, which takes less memory; 0: never. Wanted are multiples of four of the editor's `multiple`.
      rows: edits sampled together; over a mesh, all devices' together.
      buckets: the shapes that may be compiled; the first that holds an edit is taken. (): lengths rounded up by at most
        a quarter, a compilation each.
    """

    sampler: Sampler = Sampler(50, guidance=guidance.Guidance(5.0, 2.0))
    schedule: Schedule = Schedule(50)
    negative: str = ""
    negative_system: str | None = None
    max_pixels: int = 1024 * 1024
    max_side: int = 1024
    text_length: int = 1024
    tile: int = 0
    rows: int = 1
    buckets: tuple[Bucket, ...] = ()

    def __post_init__(self):
        if self.sampler.steps != self.schedule.steps:
            raise ValueError(f"a sampler of {self.sampler.steps} steps, a schedule of {self.schedule.steps}")
        if self.sampler.window:
            raise ValueError("edits are made without noisy steps")


class Ready(NamedTuple):
    """An edit on the host, encoded. size: of the result in pixels, a multiple; final: to be resized to in the end."""

    bucket: Bucket
    size: tuple[int, int]
    final: tuple[int, int]
    references: tuple[Size, ...]
    latents: Float[np.ndarray, "S C"]
    text: Float[np.ndarray, "T F"]
    negative: Float[np.ndarray, "T F"]
    item: int
    member: int


class Batch(NamedTuple):
    """Edits of one bucket: what `flow.sampling.sample` and `rl.rollout` take."""

    condition: Any  # stacked branches [B, branches, ...]
    times: Float[np.ndarray, "B N1"]
    mask: Bool[np.ndarray, "B N"]
    item: Int[np.ndarray, " B"]
    member: Int[np.ndarray, " B"]


class EditorSampler:
    """An editor that is asked for edits.

    Args:
      editor: with its weights, on one device or over `mesh`; `state` holds them and may be replaced between calls.
      tokenizer: of its text encoder; None where only `batch` and what follows it is wanted.
      compiler_options: of `jax.jit`.
    """

    def __init__(
        self,
        editor: Editor,
        tokenizer: Tokenizer | None,
        settings: Settings = Settings(),
        mesh: Mesh | None = None,
        compiler_options: Mapping[str, Any] | None = None,
    ):
        self.tokenizer, self.settings, self.mesh = tokenizer, settings, mesh
        self.graphdef, self.state = nnx.split(editor)
        self.editor = nnx.merge(self.graphdef, jax.eval_shape(lambda state: state, self.state))  # without weights
        self._jit = partial(jax.jit, compiler_options=compiler_options)
        merged = lambda f: self._jit(lambda state, *args: f(nnx.merge(self.graphdef, state), *args))
        self._text = merged(lambda m, tokens, segments: m.encode_text(tokens, segments).astype(jnp.float32))
        self._encode = merged(lambda m, levels: m.encode_images(levels.astype(jnp.float32) / 127.5 - 1))
        self._sample = merged(self._latents)
        self._decode: dict[tuple[tuple[int, int], bool], Callable] = {}  # by size: it is a constant of the program
        if settings.tile % (4 * self.editor.multiple):
            raise ValueError(f"a tile of {settings.tile} pixels: wanted are multiples of {4 * self.editor.multiple}")

    def edit(self, edits: Sequence[Edit], seed: int = 0) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """The edited images, in order. Raises EditError or ImageError for one that cannot be made (see `prepare`)."""
        ready = self.prepare(edits)
        latents = self.latents(ready, seed)
        images = self.decode(latents, [r.size for r in ready])
        return [resize(x, *r.final, BILINEAR) for x, r in zip(images, ready)]

    def check(self, edit: Edit) -> tuple[list[int], tuple[Size, ...], tuple[int, int], Bucket]:
        """(tokens, references' sizes in tokens, the result's in pixels, bucket) of an edit, without a device.

        Raises ImageError for an image that is too narrow, EditError for text that is too long, for no size where there
        is not one image, and for what no bucket or layout holds.
        """
        s, many = self.settings, self.editor.multiple
        fit = lambda size: floor_resize(*size, many, s.max_pixels, s.max_side, edit.where)
        tokens = self._tokens(self.editor.chat(edit.instruction))
        if len(tokens) > s.text_length:
            raise EditError(f"{edit.where}: {len(tokens)} tokens of text are more than {s.text_length}")
        sizes = [fit(x.shape[:2]) for x in edit.images]
        if edit.size is None and len(sizes) != 1:
            raise EditError(f"{edit.where}: {len(sizes)} images do not say the result's size: give it")
        size = sizes[0] if edit.size is None else floor_resize(*edit.size, many, s.max_pixels, max(edit.size))
        references = tuple((h // many, w // many) for h, w in sizes)
        noise = (size[0] // many, size[1] // many)
        bucket = self._bucket(edit, max(len(tokens), len(self._negative)), references, noise[0] * noise[1])
        try:
            self.editor.layout([len(tokens)], [references], [noise], bucket)
        except ValueError as error:  # more references than the editor takes
            raise EditError(f"{edit.where}: {error}") from None
        return tokens, references, size, bucket

    def prepare(self, edits: Sequence[Edit]) -> list[Ready]:
        """Encodes text and images; equal texts, and images that are the same object, once. Raises as `check`."""
        many = self.editor.multiple
        checked = [self.check(e) for e in edits]
        texts = self._encoded_texts((b.text, tuple(t)) for own, _, _, b in checked for t in (own, self._negative))
        pictures = {id(x): (x, ref) for e, (_, refs, *_) in zip(edits, checked) for x, ref in zip(e.images, refs)}
        resized = {k: resize(x, h * many, w * many, LANCZOS) for k, (x, (h, w)) in pictures.items()}
        encoded, none = self._encoded_images(resized), np.zeros((0, self.editor.channels), np.float32)
        return [
            Ready(
                bucket=bucket,
                size=size,
                final=edit.size or size,
                references=references,
                latents=np.concatenate([none, *(encoded[id(x)] for x in edit.images)]),
                text=texts[bucket.text, tuple(tokens)],
                negative=texts[bucket.text, tuple(self._negative)],
                item=edit.item,
                member=edit.member,
            )
            for edit, (tokens, references, size, bucket) in zip(edits, checked)
        ]

    def batch(self, ready: Sequence[Ready]) -> Batch:
        """The arrays of edits of one bucket, branches of guidance included."""
        (bucket,) = {r.bucket for r in ready}
        many, down, n = self.editor.multiple, self.editor.downscale, self.settings.sampler.guidance.branches
        sizes = [(r.size[0] // many, r.size[1] // many) for r in ready]

        def branch(texts, with_references: bool):
            references = [r.references if with_references else () for r in ready]
            condition = dict(self.editor.layout([len(t) for t in texts], references, sizes, bucket))
            condition["text"] = padded(texts, bucket.text)
            if bucket.references:
                condition["references"] = padded(
                    [r.latents[: len(r.latents) * with_references] for r in ready], bucket.references
                )
            return condition

        full, negative = [r.text for r in ready], [r.negative for r in ready]
        branches = [branch(full, True), branch(negative, True), branch(negative, False)]
        branches = {1: branches[:1], 2: branches[::2], 3: branches}[n]
        cells = [(r.size[0] // down) * (r.size[1] // down) for r in ready]
        number = lambda name: np.asarray([getattr(r, name) for r in ready], np.int32)
        return Batch(
            jax.tree.map(lambda *x: np.stack(x, 1), *branches),
            self.settings.schedule.times(cells),
            branches[0]["noise_segments"] > 0,
            number("item"),
            number("member"),
        )

    def latents(self, ready: Sequence[Ready], seed: int = 0) -> list[Float[np.ndarray, "N C"]]:
        """Sampled latents, without padding, in order. Edits of one bucket run together, `settings.rows` at a time."""
        out: dict[int, np.ndarray] = {}
        for part in _batches(((r.bucket, i) for i, r in enumerate(ready)), self.settings.rows):
            batch = self.batch([ready[i] for i in part])
            found = self._run(self._sample, self.placed(batch), jnp.uint32(seed))
            out |= {i: row[mask] for i, row, mask in zip(part, found, batch.mask)}
        return [out[i] for i in range(len(ready))]

    def decode(
        self, latents: Sequence[Float[np.ndarray, "_ C"]], sizes: Sequence[tuple[int, int]]
    ) -> list[UInt8[np.ndarray, "_ _ 3"]]:
        """8-bit images of latents, of those sizes in pixels; a compilation a size."""
        out: dict[int, np.ndarray] = {}
        for part in _batches(((s, i) for i, s in enumerate(sizes)), self.settings.rows):
            size, rows, tile = sizes[part[0]], np.stack([latents[i] for i in part]), self.settings.tile
            if tile and max(size) > tile:
                found = self._tiled(rows, size)
            else:
                found = self._run(self.decoder(size), self.placed(rows))
            out |= dict(zip(part, found))
        return [out[i] for i in range(len(latents))]

    def decoder(self, size: tuple[int, int], rounded: bool = True) -> Callable[[Any, Float[Array, "B N C"]], Array]:
        """The jitted (state, latents) -> images [B, H, W, 3] of that size: 8-bit, or as the editor makes them."""
        if (size, rounded) not in self._decode:

            def decode(state, latents):
                pixels = nnx.merge(self.graphdef, state).decode(latents, *size)
                return levels(pixels) if rounded else pixels

            self._decode[size, rounded] = self._jit(decode)
        return self._decode[size, rounded]

    def _tiled(self, latents: Float[np.ndarray, "B N C"], size: tuple[int, int]) -> UInt8[np.ndarray, "B H W 3"]:
        """8-bit images, decoded tile by tile."""
        many, count = self.editor.multiple, len(latents)
        h, w = size[0] // many, size[1] // many

        def decode(part: Float[np.ndarray, "B h w C"]) -> np.ndarray:
            tokens = self.placed(part.reshape(count, -1, part.shape[-1]))
            return self._run(self.decoder((part.shape[1] * many, part.shape[2] * many), rounded=False), tokens)

        grid = latents[:, : h * w].reshape(count, h, w, -1)
        return np.asarray(levels(jnp.asarray(decode_tiled(decode, grid, self.settings.tile // many))))

    def placed(self, arrays: Any) -> Any:
        """Arrays of rows on the devices."""
        if self.mesh is None:
            return jax.tree.map(jnp.asarray, arrays)
        return jax.device_put(arrays, sharding.batch_shardings(arrays, self.mesh))

    def _run(self, function: Callable, *args: Any) -> np.ndarray:
        if self.mesh is None:
            return np.asarray(function(self.state, *args))
        with jax.set_mesh(self.mesh):
            return np.asarray(function(self.state, *args))

    def _latents(self, editor: Editor, batch: Batch, seed: Array) -> Float[Array, "B N C"]:
        keys = item_keys(seed, Purpose.INITIAL, 0, batch.item, batch.member)
        noise = normal(keys, (batch.mask.shape[1], self.editor.channels))
        s = self.settings
        return sample(editor.velocity, s.sampler, noise, batch.times, batch.condition, mask=batch.mask).final

    @cached_property
    def _negative(self) -> list[int]:
        s = self.settings
        return self._tokens(self.editor.chat(s.negative, s.negative_system))[: s.text_length]

    def _tokens(self, text: str) -> list[int]:
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def _bucket(self, edit: Edit, text: int, references: Sequence[Size], noise: int) -> Bucket:
        need = Bucket(text, sum(h * w for h, w in references), noise)
        holds = lambda b: b.text >= need.text and b.references >= need.references and b.noise >= need.noise
        if not self.settings.buckets:
            return Bucket(*map(_rounded, dataclasses.astuple(need)))
        found = next((b for b in self.settings.buckets if holds(b)), None)
        if found is None:
            raise EditError(f"{edit.where}: no bucket of {self.settings.buckets} holds {need}")
        return found

    def _encoded_texts(self, keys: Iterable[tuple[int, tuple[int, ...]]]) -> dict[Any, np.ndarray]:
        out = {}
        for part in _batches(((key[0], key) for key in dict.fromkeys(keys)), self.settings.rows):
            tokens, segments = np.zeros((2, len(part), part[0][0]), np.int32)
            for b, (_, ids) in enumerate(part):
                tokens[b, : len(ids)], segments[b, : len(ids)] = ids, 1
            found = self._run(self._text, *self.placed((tokens, segments)))
            out |= {key: row[: len(key[1])] for key, row in zip(part, found)}
        return out

    def _encoded_images(self, images: dict[Any, np.ndarray]) -> dict[Any, np.ndarray]:
        out = {}
        for part in _batches(((x.shape, key) for key, x in images.items()), self.settings.rows):
            out |= dict(zip(part, self._run(self._encode, self.placed(np.stack([images[k] for k in part])))))
        return out


def levels(pixels: Float[Array, "*shape"]) -> UInt8[Array, "*shape"]:
    """Pixels in [-1, 1] as 8-bit levels."""
    return jnp.round(jnp.clip(pixels.astype(jnp.float32) / 2 + 0.5, 0, 1) * 255).astype(jnp.uint8)


def padded(rows: Sequence[Float[np.ndarray, "_ C"]], length: int) -> Float[np.ndarray, "B length C"]:
    """Rows of different lengths, zero after their end."""
    return np.stack([np.pad(r, ((0, length - len(r)), (0, 0))) for r in rows])


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
