"""Shares what editors are as kinds of models (`training.interfaces`): fine-tuned from an `EditorFolder`, or small and
from scratch."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from edit_rl_jax.editors import lora_files
from edit_rl_jax.editors.folders import TEXT, EditorFolder
from edit_rl_jax.editors.mmdit.blocks import TARGETS
from edit_rl_jax.editors.rows import EditRows
from edit_rl_jax.editors.rows import EditShape as Bucket
from edit_rl_jax.names import ConfigError, model_folder
from edit_rl_jax.nn import exports
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn.model_files import read_config, section, verify
from edit_rl_jax.nn.params import LoRA, LoRAConfig
from edit_rl_jax.nn.peft import check_only_lora
from edit_rl_jax.nn.weights import check_finite, load, local_folder
from edit_rl_jax.ranges import knob
from edit_rl_jax.vlm.tokenizer import check_tokenizer


@dataclasses.dataclass(frozen=True)
class Adapter(LoRA):
    """Says how large the LoRA is and what it adapts."""

    targets: str = knob("attention", TARGETS)


def check_text(config: Any) -> None:
    """Raises ConfigError for a bucket that does not hold a text of `model.text` tokens."""
    for bucket in config.data.get("buckets", ()):
        if bucket[0] < config.model.text:
            raise ConfigError(
                f"config key 'data.buckets': {bucket[0]} text tokens are fewer than model.text={config.model.text}"
            )


def check_encoders(config: Any) -> None:
    """Raises ConfigError where the text encoders should be trained beside a LoRA."""
    if config.model.train_text and config.model.trainable == "lora":
        raise ConfigError("config key 'model.train_text' needs model.trainable=full: a LoRA is the transformer's alone")


def check_sees(config: Any, name: str) -> None:
    """Raises ConfigError where an editor that always sees the image should learn without it."""
    flow = config.get("flow", {})
    if flow.get("drop_text", 0) and flow.get("drop_references", 0):
        raise ConfigError(
            f"config key 'flow.drop_references': {flow.drop_references}; {name} always sees the image: set it to 0"
        )


def chat_tokenizer(config: Any, base: Path | None, cfg: Any, *, load: Callable[[Path], Any], name: str) -> Any:
    """Loads the base's tokenizer with the text around its chat. Raises ConfigError without a base, and for a tokenizer
    that is not the language model's."""
    if base is None:
        raise ConfigError(f"config key 'model.init_from': {name} is trained from a folder, which has a tokenizer")
    found = load(base)
    check_tokenizer(found.text, cfg.text_encoder)
    return found


def model_config(config: Any, *, files: EditorFolder, released: str) -> Any:
    """Reads the configurations of `model.init_from` (the released model needs no download), or those in the JSON
    {network: configuration} of `model.config`; with `model.vae`, that folder's autoencoder."""
    m = config.model
    if m.init_from == released and not Path(released).exists():
        return files.configurations(text=m.text)
    if m.init_from:
        return files.configs(files.local_folder(m.init_from, m.revision or None), m.text)
    given, where = read_config(m.config)
    given = {part: section(given, part, where) for part in files.networks}
    given |= {"vae": m.vae} if m.get("vae") else {}
    found = {part: cls.from_hf(given[part]) for part, (cls, _) in files.networks.items()}
    return files.configurations(**found, text=m.text)


def options(config: Any, dtype: Any) -> dict[str, Any]:
    """Gives the options with which every editor is made for training."""
    m = config.model
    return {
        "lora": LoRAConfig(m.lora.rank, m.lora.alpha) if m.trainable == "lora" else None,
        "trainable": m.trainable,
        "dtype": dtype,
        "remat": m.remat,
        "attention": m.attention or None,
    }


def batch_format(config: Any, cfg: Any, tokenizer: Any) -> EditRows:
    """Makes the format of the batches. Raises ConfigError."""
    try:
        pixels = config.get("flow", {}).get("reference_pixels", 0)
        return EditRows(cfg.processor, tokenizer, [Bucket(*b) for b in config.data.buckets], pixels)
    except ValueError as e:
        raise ConfigError(f"config key 'data.buckets': {e}") from e


def initial_weights(program: Any, base: Path | None, *, files: EditorFolder) -> tuple[st.Flat, st.Flat]:
    """Makes (trainable, frozen): everything from the base, with a fresh or a given LoRA; without one, random but for
    `model.vae`.

    Raises WeightsError for files that do not fit, and for what a LoRA run trains but could not export; ConfigError for
    an adapter that is not what the config says.
    """
    m, key = program.config.model, jax.random.key(program.config.seed)
    if m.trainable == "lora":
        check_only_lora(program.trainable_state)
    if base is None:
        trainable, frozen = program.init(key)
        if folder := m.get("vae"):
            verify(folder)
            vae = load(Path(folder), program.with_shardings("frozen")["vae"], files.networks["vae"][1])
            frozen |= st.flatten(nnx.State({"vae": vae}))
        return trainable, frozen
    abstract = program.with_shardings("trainable")
    frozen = st.flatten(files.load(base, program.with_shardings("frozen")))
    if m.trainable == "full":
        return st.flatten(files.load(base, abstract)), frozen
    if not m.init_adapter:
        return program.init_trainable(key), frozen
    home = m.init_adapter if "://" not in m.init_adapter else model_folder(m, "init_adapter", local_folder)
    verify(home)
    found = files.read_lora(home, m.lora.alpha)  # some files do not say their alpha
    if found.rank != m.lora.rank:
        raise ConfigError(f"config key 'model.init_adapter': rank {found.rank}; model.lora.rank is {m.lora.rank}")
    if files.targets and TARGETS.index(files.targets(found.layers)) > TARGETS.index(m.lora.targets):
        raise ConfigError(
            f"config key 'model.init_adapter': it adapts more than model.lora.targets={m.lora.targets!r} says"
        )
    adapter = lora_files.load(home, abstract["transformer"], found)
    return st.flatten(nnx.State({"transformer": adapter})), frozen


def export(
    program: Any,
    trainable: st.Flat,
    folder: Path,
    *,
    files: EditorFolder,
    card: Callable[..., str],
    tokenizer: Any,
    prompts: Any,
    facts: Any,
    revision: str = "",
    frozen: st.Flat | None = None,
    **_: Any,
) -> Path:
    """Writes the released folder layout, or the LoRA files; with card and metadata. Every process must call. Raises
    WeightsError naming weights that are not finite."""
    config, m = program.config, program.config.model
    state = st.unflatten(program.trainable_state, trainable)
    with exports.writing(folder, exports.metadata(config, prompts, **({TEXT: m.text} if "text" in m else {}))) as part:
        if m.trainable == "lora":
            check_finite(state["transformer"])
            files.save_lora(state["transformer"], m.lora.rank, m.lora.alpha, part, m.init_from or None)
        else:
            how: dict[str, Any] = {"dtype": jnp.dtype(m.save_dtype)}
            if m.init_from:
                how["files_from"] = files.local_folder(m.init_from, m.revision or None)
                how["parts"] = ("transformer", *(files.encoders if m.get("train_text") else ()))
            else:
                both = (state, st.unflatten(program.frozen_state, frozen))
                state = nnx.from_flat_state([pair for half in both for pair in nnx.to_flat_state(half)])
                shifted = "flow" in config and config.flow.shift in ("linear", "sqrt")
                how["scheduler"] = {} if shifted else files.unshifted  # a fixed shift is the training's alone
            files.save(state, program.model_config, part, **how)
        if jax.process_index() == 0:
            if m.trainable == "full" and (not m.init_from or m.get("tokenizer")):
                files.save_tokenizer(tokenizer, part)
            (part / "README.md").write_text(card(config, prompts, facts, revision))
    return folder
