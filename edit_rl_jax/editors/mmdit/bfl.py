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


def save_transformer(state, naming: Naming, file: str | Path, dtype: Any = None) -> Path:
    """Writes base weights of a transformer as BFL's one file; every process must call, the first one writes.

    Raises WeightsError for weights that are not finite or not base weights.
    """
    weights.check_finite(state, dtype)
    paths, variables, _ = weights.flatten(state)
    if adapters := [".".join(p) for p in paths if p[-1] in weights.LORA]:
        raise WeightsError(f"not base weights, merge or save them as an adapter: {listing(adapters)}")
    found: dict[str, tuple[tuple[int, ...], Any, Callable[[], np.ndarray]]] = {}
    for path, v in zip(paths, variables):
        for layer, n in enumerate(naming.sources(path, v.shape)):
            at = layer if naming.layers(path) else None
            found[n] = (naming.file_shape(path, v), np.dtype(dtype or v.dtype), _reader(path, v, at))
    entries = []
    for key, (names, _) in TABLE.items():
        for layer in range(sum(1 for n in found if re.fullmatch(re.escape(names[0]).replace(r"\{\}", r"\d+"), n))):
            parts = [found[n.format(layer)] for n in names]
            shape = (sum(p[0][0] for p in parts), *parts[0][0][1:])
            give = lambda parts=parts: np.concatenate([p[2]() for p in parts])
            if key.startswith(LAST):
                give = lambda parts=parts: np.roll(parts[0][2](), len(parts[0][2]()) // 2, axis=0)
            entries.append((key.format(layer), parts[0][1], shape, give))
    if jax.process_count() > 1:  # every process takes part in gathering
        entries = [(n, d, s, partial(np.asarray, give())) for n, d, s, give in entries]
    if jax.process_index() == 0:
        write_file(Path(file), entries)
    return Path(file)


def _reader(path, v, layer: int | None) -> Callable[[], np.ndarray]:
    def give() -> np.ndarray:
        value = weights.host_value(v.get_value() if layer is None else v.get_value()[layer])
        return value.T if path[-1] == "kernel" else value

    return give


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
