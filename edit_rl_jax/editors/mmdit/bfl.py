"""Black Forest Labs' own files of FLUX's transformer and autoencoder, as tensors under diffusers' names, and back.

Theirs fuse the linears that read one input (queries, keys, values, and the feed-forward of single blocks) into one
matrix, row by row, and have shift before scale in the last modulation.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edit_rl_jax.nn import weights
from edit_rl_jax.nn.safetensors_io import Tensor, WeightsError, listing, write_file
from edit_rl_jax.nn.weights import Naming

PREFIX = "model.diffusion_model."
"""Before all names in some repackaged files."""
LAST = "final_layer.adaLN_modulation.1"


def _table() -> dict[str, tuple[tuple[str, ...], tuple[int, ...]]]:
    """BFL's name, `{}` for the layer -> (diffusers' names, their shares of the rows)."""
    linears = {"img_in": "x_embedder", "txt_in": "context_embedder", "final_layer.linear": "proj_out"}
    linears[LAST] = "norm_out.linear"
    embedders = {"time_in": "timestep_embedder", "guidance_in": "guidance_embedder", "vector_in": "text_embedder"}
    for ours, theirs in embedders.items():
        for i, part in enumerate(("in_layer", "out_layer"), 1):
            linears[f"{ours}.{part}"] = f"time_text_embed.{theirs}.linear_{i}"
    found: dict[str, tuple[tuple[str, ...], tuple[int, ...]]] = {k: ((v,), (1,)) for k, v in linears.items()}
    norms: dict[str, str] = {}
    block = "transformer_blocks.{}."
    streams = {
        "img": ("", "to_{}", "to_out.0", "norm_{}"),
        "txt": ("_context", "add_{}_proj", "to_add_out", "norm_added_{}"),
    }
    for stream, (suffix, projection, out, norm) in streams.items():
        home = "double_blocks.{}." + stream
        found[f"{home}_mod.lin"] = ((f"{block}norm1{suffix}.linear",), (1,))
        found[f"{home}_attn.qkv"] = (tuple(f"{block}attn.{projection.format(x)}" for x in "qkv"), (1, 1, 1))
        found[f"{home}_attn.proj"] = ((f"{block}attn.{out}",), (1,))
        found[f"{home}_mlp.0"] = ((f"{block}ff{suffix}.net.0.proj",), (1,))
        found[f"{home}_mlp.2"] = ((f"{block}ff{suffix}.net.2",), (1,))
        norms |= {
            f"{home}_attn.norm.{x}_norm.scale": f"{block}attn.{norm.format(x[0])}.weight" for x in ("query", "key")
        }
    home, block = "single_blocks.{}.", f"single_{block}"
    found[f"{home}modulation.lin"] = ((f"{block}norm.linear",), (1,))
    inner = tuple(f"{block}{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"))
    found[f"{home}linear1"] = (inner, (1, 1, 1, 4))
    found[f"{home}linear2"] = ((f"{block}proj_out",), (1,))
    norms |= {f"{home}norm.{x}_norm.scale": f"{block}attn.norm_{x[0]}.weight" for x in ("query", "key")}
    each = {f"{k}.{leaf}": (tuple(f"{n}.{leaf}" for n in names), shares)
            for k, (names, shares) in found.items() for leaf in ("weight", "bias")}  # fmt: skip
    return each | {k: ((v,), (1,)) for k, v in norms.items()}


TABLE = _table()


@dataclasses.dataclass(frozen=True)
class Swapped(Tensor):
    """A tensor whose halves of rows stand in the other order."""

    def read(self, index=()) -> np.ndarray:
        return np.roll(super().read(), self.shape[0] // 2, axis=0)[index]


def transformer(tensors: list[Tensor]) -> list[Tensor]:
    """Gives a transformer's tensors under diffusers' names, split; what has another name already stays as it is."""
    return [part for t in tensors for part in _parts(t)]


def _parts(t: Tensor) -> list[Tensor]:
    name = t.name.removeprefix(PREFIX)
    layer = re.search(r"(?<=\.)\d+(?=\.)", name) if "_blocks." in name else None
    key = name if layer is None else f"{name[: layer.start()]}{{}}{name[layer.end() :]}"
    if key not in TABLE:
        return [t]
    names, shares = TABLE[key]
    names = [n.format(layer[0] if layer else "") for n in names]
    if name.startswith(LAST):
        return [Swapped(names[0], t.file, t.shape, t.dtype, t.offset)]
    rows, left = divmod(t.shape[0], sum(shares))
    if left:
        raise WeightsError(f"{t.file}: {t.name} has {t.shape[0]} rows, not a multiple of {sum(shares)}")
    out, at = [], t.offset
    for n, share in zip(names, shares):
        out.append(Tensor(n, t.file, (share * rows, *t.shape[1:]), t.dtype, at))
        at += out[-1].nbytes
    return out


Entry = tuple[str, Any, tuple[int, ...], Callable[[], np.ndarray]]
"""A tensor to be written: see `safetensors_io.write_file`."""


def _entries(state, naming: Naming, dtype: Any) -> dict[str, Entry]:
    """The base weights of a state under their names in `naming`. Raises WeightsError for those that are not finite, and
    for adapters."""
    weights.check_finite(state, dtype)
    paths, variables, _ = weights.flatten(state)
    if adapters := [".".join(p) for p in paths if p[-1] in weights.LORA]:
        raise WeightsError(f"not base weights, merge or save them as an adapter: {listing(adapters)}")
    found = {}
    for path, v in zip(paths, variables):
        for layer, n in enumerate(naming.sources(path, v.shape)):
            give = partial(weights.file_value, path, v, layer if naming.layers(path) else None)
            found[n] = (n, np.dtype(dtype or v.dtype), naming.file_shape(path, v), give)
    return found


def _write(file: str | Path, entries: list[Entry]) -> Path:
    if jax.process_count() > 1:  # every process takes part in gathering
        entries = [(n, d, s, partial(np.asarray, give())) for n, d, s, give in entries]
    if jax.process_index() == 0:
        write_file(Path(file), entries)
    return Path(file)


def save_transformer(state, naming: Naming, file: str | Path, dtype: Any = None) -> Path:
    """Writes base weights of a transformer as BFL's one file; every process must call, the first one writes. What a
    relative of FLUX has beside (Step1X-Edit's connector) keeps its names.

    Raises WeightsError for weights that are not finite or not base weights.
    """
    found, entries = _entries(state, naming, dtype), []
    own = dict(found)
    for key, (names, _) in TABLE.items():
        pattern = re.escape(names[0]).replace(r"\{\}", r"\d+")
        for layer in range(sum(1 for n in found if re.fullmatch(pattern, n))):
            parts = [found[n.format(layer)] for n in names]
            own = {n: entry for n, entry in own.items() if n not in {p[0] for p in parts}}
            shape = (sum(p[2][0] for p in parts), *parts[0][2][1:])
            turn = shape[0] // 2 if key.startswith(LAST) else 0
            give = lambda parts=parts, turn=turn: np.roll(np.concatenate([p[3]() for p in parts]), turn, axis=0)
            entries.append((key.format(layer), parts[0][1], shape, give))
    return _write(file, [*entries, *own.values()])


_VAE = (
    (r"\.down\.(\d+)\.block\.", r".down_blocks.\1.resnets."),
    (r"\.down\.(\d+)\.downsample\.", r".down_blocks.\1.downsamplers.0."),
    (r"\.up\.(\d+)\.block\.", r".up_blocks.\1.resnets."),
    (r"\.up\.(\d+)\.upsample\.", r".up_blocks.\1.upsamplers.0."),
    (r"\.mid\.block_1\.", ".mid_block.resnets.0."),
    (r"\.mid\.block_2\.", ".mid_block.resnets.1."),
    (r"\.mid\.attn_1\.norm\.", ".mid_block.attentions.0.group_norm."),
    (r"\.mid\.attn_1\.([qkv])\.", r".mid_block.attentions.0.to_\1."),
    (r"\.mid\.attn_1\.proj_out\.", ".mid_block.attentions.0.to_out.0."),
    (r"\.nin_shortcut\.", ".conv_shortcut."),
    (r"coder\.norm_out\.", "coder.conv_norm_out."),
)


def autoencoder(tensors: list[Tensor]) -> list[Tensor]:
    """Gives an autoencoder's tensors under diffusers' names: levels of the decoder counted from the other end, the
    attention's 1 x 1 convolutions as matrices."""
    ups = [int(m[1]) for t in tensors if (m := re.match(r"decoder\.up\.(\d+)\.", t.name))]
    out = []
    for t in tensors:
        name = re.sub(r"^decoder\.up\.(\d+)\.", lambda m: f"decoder.up.{max(ups) - int(m[1])}.", t.name)
        for pattern, replacement in _VAE:
            name = re.sub(pattern, replacement, name)
        attention = ".attn_1." in t.name and t.shape[2:] == (1, 1)
        out.append(dataclasses.replace(t, name=name, shape=t.shape[:2] if attention else t.shape))
    return out


def save_autoencoder(state, naming: Naming, file: str | Path, dtype: Any = None) -> Path:
    """Writes an autoencoder's weights as BFL's one file (`ae.safetensors`); otherwise as `save_transformer`."""
    found, entries = _entries(state, naming, dtype), []
    ups = max(int(m[1]) for n in found if (m := re.match(r"decoder\.up_blocks\.(\d+)\.", n)))
    for name, kind, shape, give in found.values():
        square = ".attentions.0.to_" in name and len(shape) == 2
        name = re.sub(r"\.up_blocks\.(\d+)\.", lambda m: f".up_blocks.{ups - int(m[1])}.", name)
        for pattern, theirs in _BACK:
            name = re.sub(pattern, theirs, name)
        whole = (lambda give=give: give()[..., None, None]) if square else give
        entries.append((name, kind, (*shape, 1, 1) if square else shape, whole))
    return _write(file, entries)


_BACK = (
    (r"\.(down|up)_blocks\.(\d+)\.resnets\.", r".\1.\2.block."),
    (r"\.(down|up)_blocks\.(\d+)\.(down|up)samplers\.0\.", r".\1.\2.\3sample."),
    (r"\.mid_block\.resnets\.0\.", ".mid.block_1."),
    (r"\.mid_block\.resnets\.1\.", ".mid.block_2."),
    (r"\.mid_block\.attentions\.0\.group_norm\.", ".mid.attn_1.norm."),
    (r"\.mid_block\.attentions\.0\.to_([qkv])\.", r".mid.attn_1.\1."),
    (r"\.mid_block\.attentions\.0\.to_out\.0\.", ".mid.attn_1.proj_out."),
    (r"\.conv_shortcut\.", ".nin_shortcut."),
    (r"coder\.conv_norm_out\.", "coder.norm_out."),
)
