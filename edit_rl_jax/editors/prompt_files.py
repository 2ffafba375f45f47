"""Finds a network's own prompt text in the source file of another project that a user has."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from edit_rl_jax.data.source_texts import constants
from edit_rl_jax.nn.safetensors_io import WeightsError


def read_constant(files: Sequence[Path], name: str, sha256: str, advice: str) -> str:
    """Reads a text from the first of these files that there is. Raises WeightsError where there is none (with
    `advice`), and for a file without this text or with another one."""
    file = next((f for f in files if f.is_file()), None)
    if file is None:
        raise WeightsError(f"{files[0]}: no such file: {advice}")
    code = file.read_bytes()
    try:
        text = constants(code).get(name)
    except (SyntaxError, ValueError) as e:
        raise WeightsError(f"{file}: no Python: {e}") from None
    if name.encode() not in code:
        raise WeightsError(f"{file}: no {name} in it")
    if text is None or hashlib.sha256(text.encode()).hexdigest() != sha256:
        raise WeightsError(f"{file}: {name} is not the text that the network was trained with")
    return text
