"""An editor from the command line: the flags that all scripts share, and the settings that name its edits."""

import argparse
import dataclasses
import hashlib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from edit_rl_jax.cli.flags import mesh_shape
from edit_rl_jax.editors.registry import editor_files
from edit_rl_jax.editors.sampling import EditorSampler, EditSettings
from edit_rl_jax.flow.guidance import Guidance
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.flow.schedules import Schedule
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.model_files import fingerprint
from edit_rl_jax.ranges import INT32_OR_0, flag
from edit_rl_jax.sharding import make_mesh


def add_arguments(parser: argparse.ArgumentParser, beside_judge: bool = False) -> None:
    """The flags of an editor: which, how it samples, on what. beside_judge: --model, --rows, --seed and --mesh are a
    judge's (`judges.add_arguments`), and the editor's are --editor, --edit-rows, --edit-seed and --edit-mesh."""
    model, edit = ("--editor", "--edit-") if beside_judge else ("--model", "--")
    parser.add_argument(model, metavar="DIR", dest="editor", help="editor folder in its released layout, or hub id")
    parser.add_argument("--editor-kind", default="omnigen2", metavar="NAME", help="a known one, or my_pkg.module")
    parser.add_argument("--lora", metavar="DIR", help="LoRA of its transformer: a PEFT folder or diffusers' file")
    parser.add_argument("--lora-alpha", type=flag(float, "(0, 1e6]"), help="where the LoRA's file does not say it")
    how = parser.add_argument_group("sampling")
    how.add_argument("--steps", type=flag(int, "[1, 1000]"), help="default: the editor's own (50)")
    how.add_argument("--solver", choices=("euler", "dpm2"), default="euler", help="dpm2: DPM-Solver++ of order 2")
    how.add_argument(
        "--base-res",
        type=flag(int, "[1, 16384]"),
        help="side at which times are not shifted; default: the folder's (320)",
    )
    how.add_argument(
        "--text-guidance", type=flag(float, "[1, 1000]"), help="default: the editor's own (5); 1: none at all"
    )
    how.add_argument(
        "--image-guidance", type=flag(float, "[1, 1000]"), help="default: the editor's own (2); 1: by text alone"
    )
    how.add_argument("--guided-range", type=flag(float, "[0, 1]"), nargs=2, default=(0.0, 1.0), metavar=("FROM", "TO"))
    how.add_argument("--negative", default="", metavar="TEXT", help="what guidance leads away from")
    how.add_argument("--negative-system", metavar="TEXT", help="system text before it; default: the editor's own")
    how.add_argument(
        "--max-pixels", type=flag(int, "[1, 1e9]"), default=1024 * 1024, help="of a result, and of what is read"
    )
    how.add_argument(
        "--max-side",
        type=flag(int, "[1, 16384]"),
        help="likewise, the longer side of an input; default: the editor's own (1024)",
    )
    how.add_argument(
        "--reference-pixels",
        type=flag(int, "[0, 1e9]"),
        default=0,
        metavar="N",
        help="shrink inputs to that, not the result: faster; 0: no such limit",
    )
    how.add_argument(
        "--tile",
        type=flag(int, "[0, 16384]"),
        default=0,
        metavar="PIXELS",
        help="decode larger images in tiles of that side",
    )
    how.add_argument(
        "--text-length",
        type=flag(int, "[1, 1000000]"),
        help="tokens of text at most; default: the editor's own (1024)",
    )
    how.add_argument(
        edit + "rows",
        dest="edit_rows",
        type=flag(int, "[1, 1000000]"),
        default=1,
        help="edits sampled side by side; a multiple of the devices they lie on",
    )
    how.add_argument(edit + "seed", dest="edit_seed", type=flag(int, INT32_OR_0), default=0)
    how.add_argument(
        edit + "mesh",
        dest="edit_mesh",
        type=mesh_shape,
        metavar="fsdp=N,tensor=M",
        help="shard the editor over devices",
    )


def editworld_defaults(parser: argparse.ArgumentParser, argv: Sequence[str] | None) -> None:
    """Sets what suits the built-in world where the benchmark is `editworld`: it is small, and its editors are trained
    without guidance in mind."""
    parser.allow_abbrev = False  # what is looked for here would be overlooked
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    peek.add_argument("--benchmark")
    try:
        if peek.parse_known_args(argv)[0].benchmark == "editworld":
            parser.set_defaults(steps=20, text_guidance=1.0, image_guidance=1.0, edit_rows=64)
    except argparse.ArgumentError:  # told when all flags are read
        pass


def from_arguments(args: argparse.Namespace) -> tuple[EditorSampler, dict[str, Any]]:
    """The editor, and the settings that decide its edits, as JSON.

    How many edits are sampled side by side, and on which devices, is not among them: it changes rounding only. Raises
    ConfigError for an unknown kind and what its `from_folder` raises.
    """
    kind = editor_files(args.editor_kind)
    folder = kind.local_folder(args.editor)
    mesh = make_mesh(args.edit_mesh) if args.edit_mesh else None
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    editor = kind.from_folder(folder, lora=args.lora, alpha=args.lora_alpha, mesh=mesh, dtype=dtype)
    own = editor.processor
    steps = args.steps or own.steps
    schedule = kind.schedule(folder, steps)
    check_used(args, own.guidance, schedule)
    if args.base_res:
        schedule = dataclasses.replace(schedule, base_res=args.base_res)
    asked = {"text": args.text_guidance, "image": args.image_guidance} | dict(zip(("start", "stop"), args.guided_range))
    guidance = dataclasses.replace(own.guidance, **{k: v for k, v in asked.items() if v is not None})
    names = ("negative", "negative_system", "max_pixels", "max_side", "reference_pixels", "text_length", "tile")
    given = {k: getattr(args, k) for k in names} | {"max_side": args.max_side or own.max_side}
    given["text_length"] = args.text_length or getattr(own, "most_text", 1024)  # images may be text
    shards = math.prod(mesh.shape.get(axis, 1) for axis in ("data", "fsdp")) if mesh else 1
    rows = -(-args.edit_rows // shards) * shards
    sampling = EditSettings(Denoising(steps, args.solver, guidance), schedule, rows=rows, **given)
    settings = dataclasses.asdict(sampling) | {"seed": args.edit_seed, "kind": args.editor_kind}
    del settings["rows"], settings["buckets"]
    homes = [p for p in sorted(folder.iterdir()) if p.is_dir()] + [folder] * any(folder.glob("*.safetensors"))
    weights = {p.name if p != folder else ".": fingerprint(p) for p in homes}
    settings["weights_sha256"] = weights | ({"lora": _digest(Path(args.lora))} if args.lora else {})
    settings["lora_alpha"] = args.lora_alpha
    if args.lora and Path(args.lora).is_file() and hasattr(own, "text"):  # which is told beside it
        settings["text_tokens"] = own.text
    return EditorSampler(editor, kind.folder_tokenizer(folder), sampling, mesh), json.loads(json.dumps(settings))


def check_used(args: argparse.Namespace, guidance: Guidance, schedule: Schedule) -> None:
    """Refuses flags that the editor's guidance or schedule would not look at. Raises ConfigError."""
    start, stop = args.guided_range
    if start > stop:
        raise ConfigError(f"--guided-range {start} {stop}: no step lies there")
    given = {
        "--image-guidance": ("image", args.image_guidance not in (None, 1)),  # 1: by text alone, as it is then anyway
        "--guided-range": ("start", (start, stop) != (0.0, 1.0)),
        "--negative-system": ("negative_system", args.negative_system is not None),
    }
    refused = [flag for flag, (name, is_given) in given.items() if is_given and name in guidance.unused]
    if refused := refused + ["--base-res"] * bool(args.base_res and schedule.kind != "dynamic"):
        raise ConfigError(f"{', '.join(refused)}: {args.editor_kind} has no use for it")


def _digest(path: Path) -> str:
    """SHA-256 of a LoRA's file, or of the files of its folder."""
    digest = hashlib.sha256()
    for file in (
        [path] if path.is_file() else sorted(p for p in path.iterdir() if p.suffix in (".json", ".safetensors"))
    ):
        digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest()
