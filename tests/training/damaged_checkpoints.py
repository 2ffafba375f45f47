"""Damages checkpoints in every way that storage and users do, and says what training's restore makes of each.

    python tests/training/damaged_checkpoints.py        (CPU, about half a minute; prints a table by kind)

A verdict is "named" (a warning or an error of one line says which checkpoint, and what is used instead is whole),
"harmless" (the newest is restored, bit for bit), "SILENT" (anything else was restored) or "TRACEBACK" (printed by a
thread, too).
"""

import collections
import contextlib
import json
import logging
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from edit_rl_jax import sharding  # noqa: E402
from edit_rl_jax.training.checkpoint import CheckpointError, Checkpoints  # noqa: E402
from edit_rl_jax.training.terminal import patient_output  # noqa: E402

STEPS = (10, 20, 30)
META = "meta/metadata"
VERDICTS = ("named", "harmless", "SILENT", "TRACEBACK")
Damage = tuple[str, str, Callable[[Path], object]]  # kind, what, function of the folder of checkpoints


def trees(seed: int) -> dict:
    """Weights and optimizer of a step."""
    mesh = sharding.make_mesh({"fsdp": 1}, jax.devices()[:1])
    rng, place = np.random.default_rng(seed), jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    put = lambda x: jax.device_put(x, place)
    kernel = rng.normal(size=(16, 32)).astype(np.float32)
    half = rng.normal(size=(8, 8)).astype(jax.numpy.bfloat16)
    return {
        "trainable": {"a.kernel": put(kernel), "b.kernel": put(half)},
        "opt_state": (put(np.int32(seed)), {"mu": put(kernel * 2)}),
    }


def host(step: int) -> tuple[dict, dict]:
    """(data, extra) of a step, as a run saves them."""
    data = {"epoch": 1, "position": step, "carry": [[step, 0], [step, 1]], "unreported": [], "given": 2, "index": step}
    return data, {"guard": {"total": 3, "in_row": 0}}


def write(folder: Path) -> None:
    """Checkpoints of STEPS."""
    saver = Checkpoints(folder, keep=len(STEPS))
    for step in STEPS:
        saver.save(step, trees(step), *host(step))
    saver.close()


def _of_files(folder: Path) -> Iterator[Damage]:
    files = sorted(p.relative_to(folder / "30") for p in (folder / "30").rglob("*") if p.is_file())
    rng = random.Random(0)
    for number, name in enumerate(files):
        size = (folder / "30" / name).stat().st_size

        def change(edit: Callable[[bytearray], object], name: Path = name) -> Callable[[Path], object]:
            def damage(at: Path) -> None:
                data = bytearray((at / "30" / name).read_bytes())
                edit(data)
                (at / "30" / name).write_bytes(data)

            return damage

        def flip(bit: int) -> Callable[[bytearray], object]:
            return lambda data: data.__setitem__(bit // 8, data[bit // 8] ^ (1 << bit % 8))

        def block(start: int) -> Callable[[bytearray], object]:
            return lambda data: data.__setitem__(slice(start, start + 64), bytes(len(data[start : start + 64])))

        for bit in (0, 8 * size - 1, *(rng.randrange(8 * size) for _ in range(6))):
            yield "a bit", f"{name}, bit {bit}", change(flip(bit))
        yield "zeros", f"{name}", change(block(rng.randrange(size)))
        yield "cut", f"{name} in half", change(lambda data: data.__delitem__(slice(len(data) // 2, None)))
        yield "cut", f"{name}, last byte", change(lambda data: data.pop())
        yield "longer", f"{name}", change(lambda data: data.extend(b"\0" * 16))
        yield "empty", f"{name}", change(lambda data: data.clear())
        yield "missing", f"{name}", lambda at, name=name: (at / "30" / name).unlink()
        yield "a folder", f"{name}", lambda at, name=name: ((at / "30" / name).unlink(), (at / "30" / name).mkdir())

        def another(at: Path, number: int = number, name: Path = name) -> None:
            others = sorted(p for p in (at / "20").rglob("*") if p.is_file())
            (at / "30" / name).write_bytes(others[min(number, len(others) - 1)].read_bytes())

        yield "another step's file", f"{name}", another


def _of_host(folder: Path) -> Iterator[Damage]:
    def edit(change: Callable[[dict], object]) -> Callable[[Path], object]:
        def damage(at: Path) -> None:
            meta = json.loads((at / "30" / META).read_text())
            found = change(meta)
            (at / "30" / META).write_text(json.dumps(meta if found is None else found))

        return damage

    meta = json.loads((folder / "30" / META).read_text())
    places = [("step",), ("sha256",), ("extra", "guard", "total"), ("extra", "guard", "in_row")]
    places += [("data", key) for key in meta["data"]] + [("checksums", key) for key in meta["checksums"]]
    for *path, key in places:

        def put(value: object, path: list = path, key: str = key) -> Callable[[dict], object]:
            def change(meta: dict) -> None:
                inner = meta
                for name in path:
                    inner = inner[name]
                inner[key] = value(inner[key]) if callable(value) else value

            return change

        more = lambda old: old + 1 if isinstance(old, int) else [*old, [1, 1]] if isinstance(old, list) else old[::-1]
        for what, value in (("changed", more), ("null", None), ("text", str), ("other", -7)):
            yield "host: a value", f"{'.'.join([*path, key])} {what}", edit(put(value))
    for key in meta:
        yield "host: a field", f"{key} deleted", edit(lambda meta, key=key: meta.__delitem__(key))
        yield "host: a field", f"{key} renamed", edit(lambda meta, key=key: meta.__setitem__(key + "s", meta.pop(key)))
        yield "host: a field", f"{key} doubled", edit(lambda meta, key=key: meta.__setitem__(key + "2", meta[key]))
    for text in ("null", "[]", "3", '"x"', "{}", "[" * 50_000, '{"step": NaN}', "\0\0\0", "{", "\xff"):
        damage = lambda at, text=text: (at / "30" / META).write_bytes(text.encode("latin-1"))
        yield "host: malformed", text[:12], damage


def _of_folders(folder: Path) -> Iterator[Damage]:
    def move(a: str, b: str) -> Callable[[Path], object]:
        return lambda at: (at / a).rename(at / b)

    def swap(a: str, b: str) -> Callable[[Path], object]:
        return lambda at: ((at / a).rename(at / "x"), (at / b).rename(at / a), (at / "x").rename(at / b))

    def replace(a: str, b: str) -> Callable[[Path], object]:
        return lambda at: (shutil.rmtree(at / b), shutil.copytree(at / a, at / b))

    def make(name: str, how: Callable[[Path], object]) -> Callable[[Path], object]:
        return lambda at: (shutil.rmtree(at / name, ignore_errors=True), how(at / name))

    kind = "steps swapped"
    yield kind, "10 is 40", move("10", "40")
    yield kind, "30 is 40", move("30", "40")
    yield kind, "20 and 30", swap("20", "30")
    yield kind, "10 and 30", swap("10", "30")
    yield kind, "20 as 30", replace("20", "30")
    yield kind, "30 as 40 too", lambda at: shutil.copytree(at / "30", at / "40")
    for part in ("meta", "state", "state/ocdbt.process_0", "state/d"):
        yield kind, f"{part} of 20 in 30", replace(f"20/{part}", f"30/{part}")
        yield kind, f"{part} of 20 and 30", swap(f"20/{part}", f"30/{part}")
    yield kind, "30 is 0030", move("30", "0030")
    kind = "other things in place"
    for name in ("30", "30/state", "30/meta", "30/state/d", "20"):
        yield kind, f"{name} a file", make(name, lambda path: path.write_text("x"))
        yield kind, f"{name} empty", make(name, Path.mkdir)
        yield kind, f"{name} gone", make(name, lambda path: None) if "/" in name else make(name, Path.touch)
        yield kind, f"{name} a loop", make(name, lambda path: path.symlink_to(path.name))
    yield kind, "everything a file", lambda at: (shutil.rmtree(at), at.write_text("x"))
    yield kind, "everything a loop", lambda at: (shutil.rmtree(at), at.symlink_to(at.name))
    kind = "beside the steps"
    damaged = lambda at: (at / "30" / META).write_text("{")
    yield kind, "damaged-30 taken", lambda at: ((at / "damaged-30").mkdir(), damaged(at))
    yield kind, "damaged-30 a file", lambda at: ((at / "damaged-30").touch(), damaged(at))
    yield kind, "damaged-30, -2", lambda at: ((at / "damaged-30").touch(), (at / "damaged-30-2").mkdir(), damaged(at))
    yield kind, "half a save", lambda at: shutil.copytree(at / "30/state", at / "40.orbax-checkpoint-tmp/state")
    yield kind, "half a save, a file", lambda at: (at / "40.orbax-checkpoint-tmp").touch()
    yield kind, "notes", lambda at: ((at / "notes").mkdir(), (at / "a.txt").touch(), (at / "-5").mkdir())
    yield kind, "notes in a step", lambda at: ((at / "30/notes").mkdir(), (at / "30/meta/a.txt").touch())
    yield kind, "all damaged", lambda at: [(at / str(step) / META).unlink() for step in STEPS]


def damages(folder: Path) -> list[Damage]:
    """All of them, for checkpoints that `write` left in `folder`."""
    return [*_of_files(folder), *_of_host(folder), *_of_folders(folder)]


def _inventory(folder: Path) -> collections.Counter:
    """How often each file's content is there; temporary folders of saves are no checkpoints."""
    paths = [p for p in folder.rglob("*") if p.is_file() and "tmp" not in p.relative_to(folder).as_posix()]
    return collections.Counter(p.read_bytes() for p in paths)


@contextlib.contextmanager
def _listening(said: list[str]) -> Iterator[None]:
    """Collects what is logged; "TRACEBACK ..." for one that Python prints of what nobody waits for."""
    handler, hook = logging.Handler(), sys.unraisablehook
    handler.emit = lambda record: said.append(record.getMessage())
    logger = logging.getLogger("edit_rl_jax.training.checkpoint")
    sys.unraisablehook = lambda found: said.append(f"TRACEBACK {found.exc_value}")
    logger.addHandler(handler)
    try:
        with patient_output():  # as a job runs
            yield
    finally:
        logger.removeHandler(handler)
        sys.unraisablehook = hook


def verdict(original: Path, damage: Callable[[Path], object]) -> tuple[str, str]:
    """(one of VERDICTS, what was said)."""
    said: list[str] = []
    with tempfile.TemporaryDirectory() as home:
        folder = Path(home) / "checkpoints"
        shutil.copytree(original, folder)
        damage(folder)
        held = _inventory(folder)
        try:
            with _listening(said):
                saver = Checkpoints(folder, keep=len(STEPS))
                wanted = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), trees(0))
                found = saver.restore(wanted)
                saver.close()
        except (CheckpointError, OSError) as e:  # what `training.session.run` makes one line of
            return ("named" if "\n" not in str(e) and str(folder) in str(e) else "TRACEBACK"), str(e)
        except Exception as e:
            return "TRACEBACK", f"{type(e).__name__}: {e}"
        if any(line.startswith("TRACEBACK") for line in said):
            return "TRACEBACK", "; ".join(said)
        if found is None:
            return "SILENT", "no checkpoint found"
        step, state, data, extra = found
        whole = (data, extra) == host(step) and step in STEPS
        for x, y in zip(*map(jax.tree.leaves, (state, trees(step)))):
            whole = whole and np.asarray(x).tobytes() == np.asarray(y).tobytes()
        if not whole:
            return "SILENT", f"step {step} is not as it was saved"
        if held - _inventory(folder):
            return "SILENT", "a file is lost"
        if step == STEPS[-1] and not any("damaged" in line for line in said):
            return "harmless", ""
        named = any("damaged" in line and "\n" not in line for line in said)
        return ("named" if named else "SILENT"), "; ".join(said)


def table(original: Path, chosen: list[Damage]) -> tuple[str, list[str]]:
    """(counts by kind as text, a line for each damage that is silent or ends in a traceback)."""
    counts: dict[str, collections.Counter] = {}
    bad = []
    for kind, what, damage in chosen:
        found, said = verdict(original, damage)
        counts.setdefault(kind, collections.Counter())[found] += 1
        if found in ("SILENT", "TRACEBACK"):
            bad.append(f"{kind}: {what}: {found}: {said[:300]}")
    rows = [*counts.items(), ("all", sum(counts.values(), collections.Counter()))]
    lines = [f"{'damage':<24}{'tried':>7}" + "".join(f"{v:>11}" for v in VERDICTS)]
    lines += [f"{kind:<24}{sum(c.values()):>7}" + "".join(f"{c[v]:>11}" for v in VERDICTS) for kind, c in rows]
    return "\n".join(lines), bad


def main() -> int:
    for name in ("absl", "asyncio"):  # as `training.session.run` does
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("edit_rl_jax.training.checkpoint").propagate = False
    with tempfile.TemporaryDirectory() as home, patient_output():
        folder = Path(home) / "original"
        write(folder)
        text, bad = table(folder, damages(folder))
        print("\n".join([text, *bad]))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
