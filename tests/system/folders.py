"""Damages every file of exported model folders, loads each as the commands do, and prints a table by kind.

    python -m tests.system.folders

A damage is found and named (one line with the file's name), or harmless (what is loaded equals the undamaged), or else
a fault: silent (something else is loaded), unnamed, or a traceback. Two passes: with the SHA-256 of the export, and
without (an old export, or another maker's folder), where only what is malformed can be found.
"""

import collections
import hashlib
import json
import os
import shutil
import struct
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from edit_rl_jax.editors.omnigen2 import tiny as tiny_editor
from edit_rl_jax.editors.omnigen2 import weights as omnigen2
from edit_rl_jax.nn import model_files
from edit_rl_jax.rewards.editscore.judge import EditScore
from edit_rl_jax.rewards.editscore.prompts import TINY
from edit_rl_jax.training import interfaces, on_mesh
from edit_rl_jax.training.program import build_program
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL
from edit_rl_jax.vlm.tokenizer import load_tokenizer
from tests.training import micro, toy

NAMED, HARMLESS = "found and named", "harmless"
Damage = tuple[str, Callable[[Path], None]]  # what is done, and what does it to the file
LONG = 10**30


# -- The folders -------------------------------------------------------------------------------------------------------


def exports(home: Path) -> dict[str, Path]:
    """A full model, an adapter on it and an editor, written by the exporters, with random weights."""
    toy.save_tokenizer(home / "tokenizer")
    tokenizer, rng = load_tokenizer(home / "tokenizer"), np.random.default_rng(0)
    out = {}
    for kind, trainable in (("full", "full"), ("adapter", "lora")):
        lora = dict(model__init_from=str(out["full"]), model__config="") if out else {}
        config = micro.config(model__trainable=trainable, model__lora__rank=2, objective="editscore", **lora)
        program = build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]))
        flat = {k: jnp.asarray(rng.normal(0, 0.1, v.shape), v.dtype) for k, v in program.trainable.items()}
        export = interfaces.model(config).export
        out[kind] = export(program, flat, home / kind, tokenizer=tokenizer, prompts=TINY, facts={})
    out["editor"] = tiny_editor.save_random(home / "editor")
    (out["editor"] / "scheduler").mkdir(exist_ok=True)
    model_files.stamp(out["editor"], {})
    return out


def abstract(cfg: Config) -> nnx.State:
    """The state of a model without arrays."""
    return nnx.state(nnx.eval_shape(lambda: Qwen25VL(cfg, rngs=nnx.Rngs(0))))


def _digest(tree: Any) -> str:
    found = hashlib.sha256()
    for x in jax.tree.leaves(tree):
        x = np.frombuffer(x, np.uint8) if isinstance(x, bytes) else np.asarray(x)
        found.update(f"{x.shape}{x.dtype}".encode() + x.tobytes())
    return found.hexdigest()


def load_judge(folder: Path) -> tuple:
    """All that decides the scores of a model folder."""
    judge = EditScore.load(folder, merge=False)
    text = judge.tokenizer.encode("<|im_start|>Make it red, 12!<|im_end|>\n")
    return judge.cfg, _digest(judge.engine.state), judge.prompts, judge.images, tuple(text)


def load_editor(folder: Path) -> tuple:
    """All that decides the edits of an editor's folder."""
    editor = omnigen2.from_folder(folder)
    text = tuple(load_tokenizer(folder / "processor").encode("Make it red, 12!"))
    return editor.cfg, _digest(nnx.state(editor)), omnigen2.schedule(folder, 4), text


LOADERS = {"full": load_judge, "adapter": load_judge, "editor": load_editor}


# -- The damages -------------------------------------------------------------------------------------------------------


def anything(file: Path) -> Iterator[Damage]:
    """Of any file."""
    size = file.stat().st_size
    yield "removed", Path.unlink
    yield "empty", partial(Path.write_bytes, data=b"")
    yield "a folder in its place", _folder
    yield "zeros in its place", partial(Path.write_bytes, data=bytes(size))
    for part in (0.1, 0.5, 0.99):
        yield "cut short", partial(_cut, size=int(size * part))


def text(file: Path) -> Iterator[Damage]:
    """Of a JSON file as a whole."""
    for content in ("null", "[]", "5", '"text"', "{}", "{", "[" * 5000 + "]" * 5000, '{"a":' * 5000 + "1" + "}" * 5000):
        yield f"JSON {content[:6]}", partial(Path.write_text, data=content)
    whole = file.read_bytes()
    yield "not UTF-8", partial(Path.write_bytes, data=whole.replace(b'"', b'"\xff', 1))
    yield "a NUL", partial(Path.write_bytes, data=whole[:10] + b"\0" + whole[10:])
    yield "a trailing comma", partial(Path.write_bytes, data=whole.rstrip()[:-1] + b",}")
    yield "a second object", partial(Path.write_bytes, data=whole + b"{}")
    for first in list(json.loads(whole))[:1]:
        double = b"{" + json.dumps(first).encode() + b": null," + whole.lstrip()[1:]
        yield "a key twice", partial(Path.write_bytes, data=double)


VALUES: dict[str, Any] = {
    "null": None,
    "list": [],
    "text": "seven",
    "object": {"a": 1},
    "negative": -3,
    "true": True,
    "huge integer": LONG,
    "huge float": 1e300,
    "NaN": float("nan"),
    "deep": None,
}
MALFORMED = ("list", "text", "object", "negative", "huge integer", "NaN", "deep")  # of a number


def entries(file: Path, numbers_only: bool = False, values=tuple(VALUES)) -> Iterator[Damage]:
    """Of each entry of a JSON object, and of those of the objects in it; of at most 20 an object."""
    content = json.loads(file.read_bytes())
    places = [(k,) for k in list(content)[:20]]
    places += [(k, n) for k in list(content)[:20] if isinstance(content[k], dict) for n in list(content[k])[:20]]
    for place in places:
        value = content
        for k in place:
            value = value[k]
        if numbers_only and (not isinstance(value, int | float) or isinstance(value, bool)):
            continue
        if not numbers_only:
            yield "an entry missing", partial(_set, place=place, what="missing")
        for what in values:
            if not numbers_only or (place[-1], what) != ("shift_factor", "negative"):  # which it may be
                yield f"an entry {what}", partial(_set, place=place, what=what)


def _set(file: Path, place: tuple, what: str) -> None:
    content = json.loads(file.read_bytes())
    where = content
    for k in place[:-1]:
        where = where[k]
    if what == "missing":
        del where[place[-1]]
    else:
        where[place[-1]] = "DEEP" if what == "deep" else VALUES[what]
    file.write_text(json.dumps(content).replace('"DEEP"', "[" * 5000 + "]" * 5000))


def tensors(file: Path) -> Iterator[Damage]:
    """Of the bytes and of the header of a safetensors file."""
    size = file.stat().st_size
    for i in range(12):
        yield "a bit of the weights", partial(_flip, at=size - 1 - i * size // 30)
    for i in (0, 1, 7, 8, 9, 60):
        yield "a bit of the header", partial(_flip, at=i)
    yield from headers(file)


def headers(file: Path) -> Iterator[Damage]:
    """Malformed headers of a safetensors file."""
    yield "header longer than the file", partial(_patch, at=0, data=struct.pack("<Q", 2**40))
    yield "header of 0 bytes", partial(_patch, at=0, data=struct.pack("<Q", 0))
    yield "bytes after the end", partial(_append, data=b"\0" * 64)
    for content in (b"null", b"[]", b"5", b"[" * 5000 + b"]" * 5000, b'{"a":' * 5000 + b"1" + b"}" * 5000):
        yield "another header", partial(_header, change=content)
    for what, value in {"null": None, "list": [], "text": "x", "deep": "DEEP"}.items():
        yield f"a tensor {what}", partial(_tensor, change=value)
        yield f"metadata {what}", partial(_tensor, change={} if value is None else value, name="__metadata__")
    for key in ("dtype", "shape", "data_offsets"):
        yield "a tensor's field missing", partial(_field, key=key, value=None, drop=True)
        for value in (None, 5, "x", {}, [], [-1, -2], [1.5, 2], [True, 1], [LONG, LONG], ["1", "2"], [0] * 100):
            yield f"a tensor's {key}", partial(_field, key=key, value=value)
    for value in ("f32", "F8_E4M3", "I64", "float32", "F64", "\n"):
        yield "another dtype", partial(_field, key="dtype", value=value)
    for value in ([2**32, 2**32], [2**62, 4], [0], [1, 1]):
        yield "another shape", partial(_field, key="shape", value=value)
    for by in ((-4, -4), (4, 4), (0, 4), (-8, 0), (10**9, 10**9)):
        yield "offsets moved", partial(_move, by=by)
    yield "two tensors share their bytes", partial(_share)
    yield "a hole", partial(_hole)
    yield "a name of two lines", partial(_tensor, change=None, name="a\nb")
    yield "a tensor twice", partial(_twice)


def numbers(file: Path) -> Iterator[Damage]:
    """Weights that are not finite, in a file that is whole."""
    for value in (np.nan, np.inf):
        yield "a weight not finite", partial(_poison, value=value)


def _folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _cut(file: Path, size: int) -> None:
    os.truncate(file, size)


def _patch(file: Path, at: int, data: bytes) -> None:
    whole = file.read_bytes()
    file.write_bytes(whole[:at] + data + whole[at + len(data) :])


def _append(file: Path, data: bytes) -> None:
    file.write_bytes(file.read_bytes() + data)


def _flip(file: Path, at: int) -> None:
    _patch(file, at, bytes([file.read_bytes()[at] ^ 16]))


def _header(file: Path, change: Callable[[dict], None] | bytes) -> None:
    """Rewrites the header; offsets count from its end, so the weights stay where they are."""
    whole = file.read_bytes()
    n = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + n])
    if isinstance(change, bytes):
        raw = change
    else:
        raw = (change(header) or json.dumps(header)).replace('"DEEP"', "[" * 5000 + "]" * 5000).encode()
    file.write_bytes(struct.pack("<Q", len(raw)) + raw + whole[8 + n :])


def _names(header: dict) -> list[str]:
    return sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])


def _tensor(file: Path, change: Any, name: str = "") -> None:
    _header(file, lambda h: h.__setitem__(name or _names(h)[1], change))


def _field(file: Path, key: str, value: Any, drop: bool = False) -> None:
    _header(file, lambda h: h[_names(h)[1]].pop(key) and None if drop else h[_names(h)[1]].__setitem__(key, value))


def _move(file: Path, by: tuple[int, int]) -> None:
    def change(h):
        info = h[_names(h)[1]]
        info["data_offsets"] = [a + b for a, b in zip(info["data_offsets"], by)]

    _header(file, change)


def _share(file: Path) -> None:
    def change(h):
        same = collections.defaultdict(list)
        for n in _names(h):
            same[str(h[n]["shape"])].append(n)
        a, b = next(v for v in same.values() if len(v) > 1)[:2]
        h[b]["data_offsets"] = h[a]["data_offsets"]

    _header(file, change)


def _hole(file: Path) -> None:
    _header(file, lambda h: h.__delitem__(_names(h)[1]))


def _twice(file: Path) -> None:
    _header(file, lambda h: "{" + f"{json.dumps(_names(h)[1])}: {json.dumps(h[_names(h)[1]])}, " + json.dumps(h)[1:])


def _poison(file: Path, value: float) -> None:
    import safetensors.numpy

    found = safetensors.numpy.load_file(file)
    name = sorted(found)[len(found) // 2]
    found[name].reshape(-1)[-1] = value
    safetensors.numpy.save_file(found, file, metadata={"format": "pt"})


# -- The trial ---------------------------------------------------------------------------------------------------------


def damages(folder: Path, hashed: bool) -> Iterator[tuple[str, str, Callable[[Path], None]]]:
    """(file, kind of damage, what does it) over every file of a folder but the card. hashed: all of them; else those
    that anyone can see."""
    for file in sorted(p for p in folder.rglob("*") if p.is_file() and p.name != "README.md"):
        name, kinds = file.relative_to(folder).as_posix(), [] if not hashed else list(anything(file))
        if file.suffix == ".json":
            if not hashed and file.name == "model_index.json":  # nobody reads it
                continue
            kinds += list(text(file))
            kinds += list(entries(file) if hashed else entries(file, numbers_only=True, values=MALFORMED))
        elif file.suffix == ".safetensors":
            kinds += list(tensors(file)) if hashed else [*headers(file), *numbers(file)]
        for kind, do in kinds:
            if not hashed and (file.name, kind) == (model_files.METADATA, "JSON {}"):  # a folder of another maker
                continue
            yield name, kind, do


def unstamp(folder: Path) -> None:
    """Makes an export one of the time before hashes."""
    stored = model_files.stored_metadata(folder)
    (folder / model_files.METADATA).write_text(json.dumps(stored))
    if (file := folder / "preprocessor_config.json").exists():
        file.write_text(json.dumps({k: v for k, v in json.loads(file.read_text()).items() if k != "made_by"}))


def verdict(loader, original: tuple, folder: Path, file: str) -> tuple[str, str]:
    """(verdict, message) of loading a damaged folder."""
    try:
        found = loader(folder)
    except (OSError, ValueError) as e:
        if "\n" in str(e).strip():
            return "more than a line", str(e)
        return NAMED if Path(file).name in str(e) else "not named", str(e)
    except BaseException as e:
        return "TRACEBACK", f"{type(e).__name__}: {e}"
    return HARMLESS if found == original else "SILENT", ""


def trial(home: Path, kind: str, source: Path, hashed: bool, every: int = 1, offset: int = 0) -> Iterator[tuple]:
    """(file, damage, verdict, message) of each damage, or of every n-th, to the folder of that kind."""
    clean = home / f"{kind}_clean"
    if not clean.exists():
        shutil.copytree(source, clean)
        if not hashed:
            unstamp(clean)
    loader, work = LOADERS[kind], home / f"{kind}_damaged"
    original = loader(clean)
    for i, (file, what, do) in enumerate(damages(clean, hashed)):
        if i % every != offset:
            continue
        shutil.rmtree(work, ignore_errors=True)
        shutil.copytree(clean, work)
        do(work / file)
        yield file, what, *verdict(loader, original, work, file)


def main(argv: list[str]) -> int:
    jax.config.update("jax_platforms", "cpu")
    every = int(argv[0]) if argv else 1  # of the damages, one in so many
    faults, total = [], 0
    for hashed in (True, False):
        table = collections.defaultdict(collections.Counter)
        with tempfile.TemporaryDirectory() as folder:
            home = Path(folder)
            for kind, source in exports(home / "exports").items():
                (home / str(hashed)).mkdir(exist_ok=True)
                step = every * (8 if kind == "editor" else 1)  # an editor takes a second to load
                for file, what, found, message in trial(home / str(hashed), kind, source, hashed, step):
                    total += 1
                    table[kind, Path(file).name, what][found] += 1
                    if found not in (NAMED, HARMLESS):
                        faults.append((kind, file, what, found, message))
                        print("FAULT", *faults[-1], file=sys.stderr, flush=True)
        print(
            f"\n{'with' if hashed else 'without'} hashes\n\n| folder | file | damages | {NAMED} | {HARMLESS} | else |"
        )
        sums = collections.defaultdict(collections.Counter)
        for (kind, file, _), counts in table.items():
            sums[kind, file] += counts
        for (kind, file), n in sums.items():
            rest = n.total() - n[NAMED] - n[HARMLESS]
            print(f"| {kind} | {file} | {n.total()} | {n[NAMED]} | {n[HARMLESS]} | {rest} |")
        kinds = collections.defaultdict(collections.Counter)
        for (_, _, what), counts in table.items():
            kinds[what] += counts
        print(f"\n| damage | times | {NAMED} | {HARMLESS} | else |")
        for what, n in kinds.items():
            print(f"| {what} | {n.total()} | {n[NAMED]} | {n[HARMLESS]} | {n.total() - n[NAMED] - n[HARMLESS]} |")
    print(f"\n{total} damages, {len(faults)} faults")
    return len(faults)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
