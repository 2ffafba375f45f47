"""Folders of models and adapters: local ones, snapshots of the hub, and where the base of an adapter is."""

import re
from pathlib import Path

from edit_rl_jax.nn import peft_config, weights
from edit_rl_jax.nn.model_files import METADATA
from edit_rl_jax.nn.peft import CONFIG
from edit_rl_jax.nn.safetensors_io import INDEX

# what a model folder holds beside weights and config.json
SIDE_FILES = (
    "generation_config.json tokenizer.json tokenizer_config.json vocab.json merges.txt special_tokens_map.json "
    "added_tokens.json chat_template.json chat_template.jinja preprocessor_config.json processor_config.json "
    f"video_preprocessor_config.json {METADATA}"
).split()
PACKAGED = re.compile(r"(?:^|/)edit_rl_jax/assets/([^/]+)/?$")  # as `config.portable` writes it, or with the whole path
HUB_ID = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def local_folder(path_or_hub_id: str | Path, revision: str | None = None) -> Path:
    """A local folder as it is, or the snapshot of a hub id: config, safetensors and tokenizer files only, no code."""
    wanted = ["config.json", "*.safetensors", INDEX, "adapter_config.json", *SIDE_FILES]
    return weights.local_folder(path_or_hub_id, revision, wanted)


def base_folder(folder: Path, base: str | Path | None = None) -> Path:
    """Where the base of an adapter folder is: as told, else exactly where the adapter says.

    What it says is a folder (from here, as PEFT reads it, or from the adapter), a model that the package carries, by
    its path in the package, a folder in a bucket, or a hub id. Raises FileNotFoundError that asks for --base where
    there is none, and WeightsError for a malformed config.
    """
    config = peft_config.read(folder / CONFIG)
    said, give = base or config.get("base_model_name_or_path"), "give the base with --base"
    if not said or not isinstance(said, (str, Path)):
        raise FileNotFoundError(f"{folder} names no base model ({said!r}): {give}")
    problem = f"{folder}: its base '{said}'"
    found = [f for f in ([Path(said)] if base else [Path(said), folder / said]) if f.is_dir()]
    if len(found) == 2 and not found[0].samefile(found[1]):
        raise FileNotFoundError(f"{problem} is both {found[0].resolve()} and {found[1].resolve()}: {give}")
    if not found and not base and (packaged := PACKAGED.search(str(said))):
        found = [f for f in [Path(__file__).parents[1] / "assets" / packaged[1]] if f.is_dir()]
    if not found:
        if "://" not in str(said) and not HUB_ID.fullmatch(str(said)):
            raise FileNotFoundError(f"{problem} is not here: {give}")
        try:
            found = [local_folder(said, None if base else config.get("revision"))]
        except Exception as e:  # the hub's and the network's errors have no common base
            reason = (str(e).strip() or type(e).__name__).splitlines()[0]
            where = "its bucket" if "://" in str(said) else "the hub"
            raise FileNotFoundError(f"{problem} is neither here nor to be had from {where}: {give} ({reason})") from e
    if (found[0] / CONFIG).exists() and not (found[0] / "config.json").exists():
        raise FileNotFoundError(f"{problem} is an adapter, not a model: {give}")
    return found[0]
