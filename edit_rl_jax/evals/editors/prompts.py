"""Reads the prompt texts of upstream's judges from files that the user has, checked by their SHA-256.

They are not ours to pass on: `viescore/vie_prompts.py` of GEdit-Bench (the same in VIEScore),
`Benchmark/Basic/prompts.json` and `Benchmark/UGE/UGE_bench.py` of ImgEdit. A file's content says which it is, not its
name.
"""

import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType

from edit_rl_jax import json_files
from edit_rl_jax.data.source_texts import constants
from edit_rl_jax.evals.editors.cases import Item
from edit_rl_jax.rewards.editscore.upstream import CONTEXT, RULES, TWO_IMAGES

SHA256 = {
    "010234af186eb0a70fcb99047cd32ad1da01bed59ca1a95a01335426417cf838": "vie_prompts.py",
    "f9468dc848776ee0a6c2e2c31e678c7224e9cb61b013747c8c52d4a05627b5a0": "prompts.json",
    "f179b88b5f46d8acc2736d38af1ad4e0570a3d2d30148ca3ea02bf85f2960391": "UGE_bench.py",
}


@dataclasses.dataclass(frozen=True)
class Texts:
    """Prompt texts by key (`Benchmark.questions`), and the SHA-256 of the files that they are of."""

    texts: Mapping[str, str]
    sha256: Mapping[str, str]

    def of(self, key: str, instruction: str) -> str:
        """Returns a question about an instruction."""
        return self.texts[key].replace("<instruction>", instruction).replace("<edit_prompt>", instruction)


def load(bench: ModuleType, part: str, files: Sequence[str | Path], check: bool = True) -> Texts:
    """Reads the texts that a part of a benchmark needs. check: refuse a file that is not upstream's.

    Raises OSError, and ValueError for a file of another content or where a text is missing.
    """
    texts: dict[str, str] = {}
    found: dict[str, str] = {}
    for path in map(Path, files):
        data = path.read_bytes()
        name = hashlib.sha256(data).hexdigest()
        if check and name not in SHA256:
            known = ", ".join(f"{n} {h}" for h, n in SHA256.items())
            raise ValueError(f"{path} has sha256 {name}: no prompts that are known ({known})")
        kind = SHA256.get(name, path.name)
        found[kind] = name
        texts |= _KINDS.get(kind, _basic)(data, str(path))
    parts = bench.PARTS if part == "all" else (part,)
    keys = {k for p in parts for g in bench.GROUPS[p] for k in bench.questions(Item("", "", p, g, "")).values()}
    if missing := sorted(keys - set(texts)):
        raise ValueError(f"{', '.join(map(str, files)) or 'no file'}: there is no prompt for {', '.join(missing)}")
    return Texts(texts, found)


def _vie(data: bytes, where: str) -> dict[str, str]:
    found = constants(data)
    context, rule = CONTEXT.removesuffix("_reasoning_first"), "{}: no {}"
    if missing := {context, TWO_IMAGES, *RULES.values()} - set(found):
        raise ValueError(rule.format(where, ", ".join(sorted(missing))))
    sc, pq = ([context, TWO_IMAGES, RULES["sc"]], [context, RULES["pq"]])
    return {q: "\n".join(found[n] for n in names) for q, names in (("sc", sc), ("pq", pq))}


def _basic(data: bytes, where: str) -> dict[str, str]:
    found = json_files.loads(data, where)
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise ValueError(f"{where}: an object of texts by type is wanted")
    return found


def _uge(data: bytes, where: str) -> dict[str, str]:
    found = constants(data)
    if "prompt" not in found:
        raise ValueError(f"{where}: no prompt")
    return {"uge": found["prompt"]}


_KINDS = {"vie_prompts.py": _vie, "prompts.json": _basic, "UGE_bench.py": _uge}
