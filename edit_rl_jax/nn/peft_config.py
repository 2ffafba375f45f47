"""Reads what an `adapter_config.json` of PEFT says: the layers it adapts, each one's rank and alpha.

The matching is PEFT 0.21's (`check_target_module_exists`, `get_pattern_key`). Strict: an option that would change the
arithmetic and is not a low-rank matrix of a linear layer (DoRA, trained biases, ...) is an error that names it.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax import json_files
from edit_rl_jax.nn.safetensors_io import WeightsError, listing

ALL = "all-linear"
DEFAULT = 8  # of PEFT's `r` and `lora_alpha`
# entries that are read below, or do not change what a finished adapter computes; the last ones are ms-swift's
_READ = set(
    "alpha_pattern auto_mapping base_model_name_or_path corda_config ensure_weight_tying eva_config exclude_modules "
    "fan_in_fan_out inference_mode init_lora_weights layers_pattern layers_to_transform loftq_config lora_alpha "
    "lora_dropout lora_ga_config megatron_core merge_weights peft_type peft_version qalora_group_size r rank_pattern "
    "revision runtime_config target_modules task_type use_rslora lora_dtype lorap_emb_lr lorap_lr_ratio".split()
)
_NEUTRAL = (None, False, {}, [], "", "none")
_WHY = {
    "alora_invocation_tokens": "it is on for a part of the text only",
    "bias": "it has trained biases",
    "layer_replication": "it repeats layers of the base",
    "lora_bias": "it has trained biases",
    "modules_to_save": "it has whole layers of its own",
    "target_parameters": "it adapts parameters that are not linear layers",
    "trainable_token_indices": "it has embeddings of its own",
    "use_dora": "DoRA also changes the length of the base's weights",
}
_INITS = ("gaussian", "eva", "orthogonal", "mica")  # beside these, PEFT's change the base or are unknown
_CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def read(path: Path) -> dict[str, Any]:
    """Reads an `adapter_config.json` and checks it as `check` does. Raises WeightsError naming file and entry."""
    try:
        config = json_files.read_object(path)
    except json_files.JSONError as e:
        raise WeightsError(str(e)) from None
    if config.get("peft_type") != "LORA":
        raise WeightsError(f"{path}: peft_type {config.get('peft_type')!r}: only LORA is read")
    check(config, path)
    return config


def check(config: Mapping[str, Any], path: Path) -> None:
    """Raises WeightsError if a config has an option that is not plain LoRA, or an entry of a wrong type."""
    bad = {k for k, v in config.items() if k not in _READ and v not in _NEUTRAL}
    if bad:
        one = lambda k: f"{k}={config[k]!r}"[:200] + (f" ({_WHY[k]})" if k in _WHY else "")
        raise WeightsError(f"{path}: unsupported options: {listing(map(one, bad))}")
    init = config.get("init_lora_weights", True)
    if init not in (True, False, None) and str(init).lower() not in _INITS:
        why = "unknown to PEFT"
        if str(init).lower().startswith(_CHANGES_BASE):
            why = "it changed the base's weights too; PEFT's path_initial_model_for_weight_conversion converts it"
        raise WeightsError(f"{path}: unsupported options: init_lora_weights={init!r} ({why})")

    def want(key: str, right: bool, what: str) -> None:
        if not right:
            raise WeightsError(f"{path}: {key} is {config.get(key)!r:.200}, not {what}")

    names = lambda v: isinstance(v, list) and all(isinstance(s, str) and s for s in v)
    patterns = lambda key: config.get(key) or {}
    target, layers = config.get("target_modules"), config.get("layers_to_transform")
    want("target_modules", bool(target) and (isinstance(target, str) or names(target)), "a name, names or a pattern")
    want("r", _rank(config.get("r", DEFAULT)), "a positive whole number")
    want("lora_alpha", _number(config.get("lora_alpha", DEFAULT)), "a number")
    want("use_rslora", config.get("use_rslora") in (None, True, False), "true or false")
    for key, right, what in (("rank_pattern", _rank, "positive whole numbers"), ("alpha_pattern", _number, "numbers")):
        want(key, isinstance(patterns(key), dict) and all(map(right, patterns(key).values())), f"{what} by pattern")
    for key in ("exclude_modules", "layers_pattern"):
        want(key, config.get(key) is None or isinstance(config[key], str) or names(config[key]), "a pattern or names")
    want("layers_to_transform", all(type(i) is int for i in _listed(layers)), "whole numbers")
    if isinstance(target, str) and layers is not None:
        raise WeightsError(f"{path}: layers_to_transform goes with a list of target_modules, not with a pattern")
    if config.get("layers_pattern") and layers is None:
        raise WeightsError(f"{path}: layers_pattern is given without layers_to_transform")
    expressions = [(k, config.get(k)) for k in ("target_modules", "exclude_modules") if isinstance(config.get(k), str)]
    expressions += [(k, f"({p})") for k in ("rank_pattern", "alpha_pattern") for p in patterns(k)]
    expressions += [("layers_pattern", p) for p in _listed(config.get("layers_pattern"))]
    for key, pattern in expressions:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as e:
            raise WeightsError(f"{path}: {key}: {pattern!r:.200} is not a regular expression: {e}") from None


def _rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= 2**20


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e30


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def targets(config: Mapping[str, Any], name: str, *, linear: bool = True) -> bool:
    """Whether PEFT would adapt a module of that name. linear: whether "all-linear" includes it."""
    excluded, target = config.get("exclude_modules"), config["target_modules"]
    if excluded and (re.fullmatch(excluded, name) if isinstance(excluded, str) else _ends(name, excluded)):
        return False
    if isinstance(target, str):
        return linear if target.lower() == ALL else bool(re.fullmatch(target, name))
    if name in target or not _ends(name, target):
        return name in target
    layers = config.get("layers_to_transform")
    if layers is None or layers == []:
        return True
    tried = [rf"(?:^|.*?\.){p}\.(?P<idx>\d+)\." for p in _listed(config.get("layers_pattern")) if p]
    found = next((m for p in tried or [r".*?\.[^.]*\.(?P<idx>\d+)\."] if (m := re.match(p, name))), None)
    return found is not None and found["idx"] is not None and int(found["idx"]) in _listed(layers)


def _ends(name: str, names: list[str]) -> bool:
    return any(name == n or name.endswith(f".{n}") for n in names)


def rank_alpha(config: Mapping[str, Any], name: str) -> tuple[int, float]:
    """The rank of a module, and the alpha for which alpha / rank is its scale (rsLoRA's is alpha / sqrt(rank))."""
    rank = _by_pattern(config.get("rank_pattern"), name, config.get("r", DEFAULT))
    alpha = _by_pattern(config.get("alpha_pattern"), name, config.get("lora_alpha", DEFAULT))
    return rank, float(alpha) * (math.sqrt(rank) if config.get("use_rslora") else 1.0)


def _by_pattern(patterns: Mapping[str, Any] | None, name: str, default: Any) -> Any:
    patterns = patterns or {}
    return next((v for k, v in patterns.items() if re.match(rf"(.*\.)?({k})$", name)), patterns.get(name, default))
