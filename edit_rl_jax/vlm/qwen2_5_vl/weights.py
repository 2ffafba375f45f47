"""Qwen2.5-VL's names in Hugging Face checkpoints; loading and saving are `nn.weights`'.

The names in the tree are Hugging Face's, so the mapping below is all there is. Both key styles are read (`visual.*`,
`model.layers.*` of hub files; `model.visual.*`, `model.language_model.*` of transformers 5); hub names are written,
as transformers 5 does.
"""

import dataclasses
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edit_rl_jax.nn import model_files
from edit_rl_jax.nn import weights as generic
from edit_rl_jax.nn.model_files import METADATA
from edit_rl_jax.nn.safetensors_io import INDEX, SINGLE, WeightsError, open_folder
from edit_rl_jax.nn.weights import LORA, Naming, flatten, host_value, placements
from edit_rl_jax.vlm.folders import SIDE_FILES, local_folder
from edit_rl_jax.vlm.qwen2_5_vl.config import Config

__all__ = ["INDEX", "LORA", "METADATA", "SINGLE", "WeightsError", "flatten", "host_value", "load", "placements"]
__all__ += ["read_config", "save"]

log = logging.getLogger(__name__)
STACKED = ("blocks", "layers", "deepstack_merger_list")  # the last: Qwen3-VL's


def hf_name(path: Sequence[str]) -> str:
    """transformers 5's name of a leaf, `{}` standing for the layer: ("visual", "blocks", "norm1", "scale") ->
    "model.visual.blocks.{}.norm1.weight"."""
    *modules, leaf = path
    names = []
    for m in modules:
        names += [m, "{}"] if m in STACKED else [m.replace("mlp_", "mlp.")]
    names += ["proj"] if modules[-1] == "patch_embed" else []
    names += ["bias" if leaf == "bias" else "weight"]
    return ".".join(names if modules[0] == "lm_head" else ["model", *names])


def canonical(name: str) -> str:
    """A checkpoint's tensor name in transformers 5's style."""
    name = re.sub(
        r"^(?=(visual|language_model)\.)", "model.", name
    )  # a Qwen2_5_VLModel without its head has no "model."
    return re.sub(r"^model\.(?=(layers|embed_tokens|norm)\.)", "model.language_model.", name)


def hub_name(name: str) -> str:
    """The inverse of `canonical`: the style of the files on the hub."""
    return name.replace("model.language_model.", "model.", 1).replace("model.visual.", "visual.", 1)


TIED = ("lm_head.weight", "model.language_model.embed_tokens.weight")
BUFFERS = r".*\.rotary(_pos)?_emb\.inv_freq$"  # old files hold them; they are computed
NAMING = Naming(
    hf_name,
    stacked=STACKED,
    canonical=canonical,
    written=hub_name,
    optional=BUFFERS,
    tied=(TIED,),
    flat=("patch_embed",),
)
# the decoder alone, of a checkpoint that has the rest too
TEXT_NAMING = dataclasses.replace(NAMING, optional=rf"model\.visual\.|lm_head\.|{BUFFERS}", tied=())


def architecture(source: Any, kind: Any = Config) -> Any:
    """`from_hf` of a config's class, but where a folder's files hold a head that differs from the embedding it is a
    head of its own, whatever config.json says; transformers does the same."""
    cfg, inline = kind.from_hf(source), isinstance(source, Mapping) or str(source).lstrip().startswith("{")
    folder = Path() if inline else Path(source)
    if inline or not cfg.tie_word_embeddings or not ((folder / SINGLE).exists() or (folder / INDEX).exists()):
        return cfg
    found = {canonical(t.name): t for t in open_folder(folder)}
    head, embedding = (found.get(name) for name in TIED)
    if head is None or embedding is None or generic.same(head, embedding):
        return cfg
    log.warning(
        "%s: config.json ties the head to the embedding, but the files hold two that differ: both are used", folder
    )
    return dataclasses.replace(cfg, tie_word_embeddings=False)


def read_config(path_or_hub_id: str | Path, revision: str | None = None) -> Config:
    """The configuration of a folder or hub id, with its weights: see `architecture`."""
    return architecture(local_folder(path_or_hub_id, revision))


def load(path_or_hub_id: str | Path, abstract, shardings=None, *, revision: str | None = None):
    """Loads every base weight of a model from a Hugging Face folder or hub id: see `nn.weights.load`. A tied model
    accepts an `lm_head.weight` that equals its embedding."""
    return generic.load(local_folder(path_or_hub_id, revision), abstract, NAMING, shardings)


def save(
    state,
    cfg,
    folder: str | Path,
    *,
    dtype: Any = None,
    max_shard_bytes: int = 4 * 10**9,
    files_from: str | Path | None = None,
    naming: Naming = NAMING,
) -> Path:
    """Writes a folder that `transformers` loads: see `nn.weights.save`.

    files_from: folder whose tokenizer, processor and generation files are copied along. naming: of a model that has
    more than the family's weights.
    """
    p = cfg.vision
    filters = (p.in_channels, p.temporal_patch_size, p.patch_size, p.patch_size)
    options = {"dtype": dtype, "max_shard_bytes": max_shard_bytes, "unflat": filters}
    kinds = {np.dtype(dtype or v.dtype).name for v in flatten(state)[1]}
    config = {**cfg.to_hf(), "dtype": kinds.pop() if len(kinds) == 1 else "float32"}
    folder = generic.save(state, config, folder, naming, **options)
    if jax.process_index() == 0:
        generic.copy_files(files_from, folder, SIDE_FILES)
        if (folder / METADATA).exists():
            model_files.stamp(folder)
    return folder
