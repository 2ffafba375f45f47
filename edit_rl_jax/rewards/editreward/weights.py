"""Weights of the model with heads, in and out.

A whole model is written in the released layout: `model.safetensors` with the base's names, the heads as
`rm_heads.head_0.0.weight` ..., and a table that ends with the reward token's row. A LoRA run is written as a PEFT
adapter and, beside it, `reward_heads.safetensors` with the heads and that row.
"""

import dataclasses
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax.names import portable
from edit_rl_jax.nn import exports, peft, weights
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.safetensors_io import WeightsError, open_folder
from edit_rl_jax.rewards.editreward.model import Reward, names, of
from edit_rl_jax.rewards.editreward.prompts import TOKEN
from edit_rl_jax.sharding import laid_by_rows, shardings
from edit_rl_jax.vlm import export as vlm_export
from edit_rl_jax.vlm import family
from edit_rl_jax.vlm.export import LICENCES, image_settings
from edit_rl_jax.vlm.loading import ModelFolder, lora_of

HEADS, ROW = "rm_heads", "reward_row"
RELEASED = {"fusion": "mean", "positions": "1d"}  # of a folder that says nothing: released weights
STEM = "reward_heads"  # of the file beside an adapter
card = functools.partial(exports.card, title="A reward model of image edits by preferences", licences=LICENCES)


def naming(cfg: Any) -> weights.Naming:
    """The names of an architecture's model with heads in the released layout."""
    return names(family.of(cfg).NAMING)


def part(state: nnx.State, keep: Callable[[Sequence[str]], bool]) -> nnx.State:
    """The leaves of a state whose paths `keep` wants."""
    return nnx.State.from_flat_path({p: v for p, v in nnx.to_flat_state(state) if keep(p)})


def joined(*states: nnx.State) -> nnx.State:
    """One state with the leaves of all; the last one's, where they have the same."""
    return nnx.State.from_flat_path({p: v for s in states for p, v in nnx.to_flat_state(s)})


def added(path: Sequence[str]) -> bool:
    """Whether a leaf is one of the heads' or the row."""
    return path[0] in (HEADS, ROW)


def has_heads(folder: Path) -> bool:
    """Whether a model folder's files hold heads. Raises WeightsError for files that cannot be read."""
    return any(t.name.startswith(f"{HEADS}.") for t in open_folder(folder))


def table(state: nnx.State) -> tuple[tuple[str, ...], Any]:
    """Path and variable of the token table."""
    return next((p, v) for p, v in nnx.to_flat_state(state) if p[-1] == "embedding")


def load_base(folder: Path, state: nnx.State, cfg: Any) -> nnx.State:
    """Loads every base weight of a state, and the heads where the folder has them; the row is the table's.

    Without heads there the heads are handed back as they came. Raises WeightsError as `nn.weights.load`.
    """
    heads = has_heads(folder)
    wanted = lambda p: p[0] != ROW and (heads or not added(p))
    loaded = weights.load(folder, part(state, wanted), naming(cfg))
    return joined(state, loaded)


def load(found: ModelFolder, *, dtype: Any = None, merge: bool = True, mesh: Any = None, attention: Any = None) -> Any:
    """Loads a model folder of the released layout, or an adapter folder with heads, onto the first device or a mesh.

    dtype: default fp32 on CPU, bf16 elsewhere. merge: folds the adapter in. Raises WeightsError naming the file.
    """
    cfg, kind = found.cfg, family.of(found.cfg)
    if (token := found.tokenizer.convert_tokens_to_ids(TOKEN)) in (
        None,
        getattr(found.tokenizer, "unk_token_id", None),
    ):
        raise WeightsError(f"{found.home}: its tokenizer has no {TOKEN}: not a model with heads")
    dtype = dtype or (jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16)
    reward = Reward(token, row=found.adapter is not None)
    make = lambda lora: of(cfg)(
        cfg, rngs=nnx.Rngs(0), reward=reward, lora=lora, dtype=dtype, attention=attention, remat="none"
    )
    split = lambda lora: nnx.split(nnx.eval_shape(lambda: make(lora)))
    graphdef, state = split(lora_of(found.adapter[1], kind) if found.adapter else None)
    if mesh is not None:
        state = jax.tree.map(
            lambda x, s: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=s), state, shardings(state, mesh)
        )
    if found.adapter is None:
        return nnx.merge(graphdef, laid_by_rows(weights.load(found.home, state, naming(cfg))))
    folder, adapter = found.adapter
    base = peft.load(folder, part(state, lambda p: not added(p)), kind.NAMING)
    passed = rf"{HEADS}\.|{kind.NAMING.optional}"  # a base's own heads: the adapter's stand in their place
    base = weights.load(found.home, base, dataclasses.replace(kind.NAMING, optional=passed))
    heads = weights.load(folder, part(state, added), dataclasses.replace(naming(cfg), stem=STEM))
    if merge:
        graphdef, base = split(None)[0], peft.merge(base, adapter.scale)
    return nnx.merge(graphdef, laid_by_rows(joined(base, heads)))


def export(
    program: Any,
    trainable: st.Flat,
    folder: Path,
    *,
    tokenizer: Any,
    prompts: Any,
    facts: Mapping[str, Any],
    frozen: st.Flat,
    revision: str = "",
    **_: Any,
) -> Path:
    """Writes all that was trained: the whole model, or adapter and heads; with tokenizer, processor, metadata and card.

    Every process must call; the first writes. Raises WeightsError naming weights that are not finite.
    """
    config, cfg = program.config, program.model_config
    state = st.unflatten(program.trainable_state, trainable)
    budget = {"min_pixels": config.data.min_pixels, "max_pixels": config.data.max_pixels}
    heads = {"fusion": config.heads.fusion, "positions": config.heads.positions}
    stored = exports.metadata(config, prompts, images=budget, heads=heads)
    with exports.writing(folder, stored) as to:
        if config.model.trainable == "full":
            whole = joined(state, st.unflatten(program.frozen_state, frozen))
            _save_whole(whole, cfg, to, len(tokenizer), tokenizer.convert_tokens_to_ids(TOKEN), config.model.save_dtype)
        else:
            lora, base = config.model.lora, portable(config.model.init_from) or None
            adapter_state = part(state, lambda p: not added(p))
            adapter = peft.make_adapter(adapter_state, family.of(cfg).NAMING, lora.rank, lora.alpha, base)
            if revision and ":" not in revision:
                adapter.config["revision"] = revision
            weights.check_finite(state)
            peft.save(adapter_state, adapter, to)
            weights.save(part(state, added), None, to, dataclasses.replace(naming(cfg), stem=STEM))
        if jax.process_index() == 0:
            vlm_export.write_side_files(to, tokenizer, image_settings(config, cfg), cfg)
            (to / "README.md").write_text(card(config, prompts, facts, revision))
    return folder


def _save_whole(state: nnx.State, cfg: Any, folder: Path, rows: int, token: int, dtype: str) -> None:
    """Writes the released layout: the row stands in the table, and table and head end with the tokenizer's entries."""
    flat = dict(nnx.to_flat_state(state))
    path, v = table(state)
    row = flat.pop((ROW,)).get_value()
    filled = jax.jit(lambda t, r: t.at[token].set(r.astype(t.dtype)), out_shardings=v.get_value().sharding)
    flat[path] = _cut(v.replace(filled(v.get_value(), row)), rows, 0)
    if (head := ("lm_head", "kernel")) in flat:
        flat[head] = _cut(flat[head], rows, 1)
    save = family.of(cfg).save
    save(nnx.State.from_flat_path(flat), cfg, folder, dtype=jnp.dtype(dtype), naming=naming(cfg))
    if jax.process_index() == 0:
        file = folder / "config.json"
        config = json.loads(file.read_text())
        for section in (config, config.get("text_config", {})):
            section.update({k: rows for k in section if k == "vocab_size"})
        file.write_text(json.dumps(config, indent=2) + "\n")


def _cut(v: nnx.Variable, rows: int, axis: int) -> nnx.Variable:
    """The variable with so many real rows along an axis (the rest counts as padding)."""
    shape = tuple(rows if i == axis else n for i, n in enumerate(v.get_metadata().get("valid") or v.shape))
    out = v.copy()
    out.set_metadata(valid=shape)
    return out
