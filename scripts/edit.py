"""Edit images with an editor: one by flags, or a file of instructions.

    python scripts/edit.py --model OmniGen2/OmniGen2 --image cat.jpg --instruction "make it a dog" --output dog.png
    python scripts/edit.py --model runs/editor/model --input asked.jsonl --output runs/edits --samples 4

A line of the input is a JSON object with `instruction`, `source` (a path from the file's folder, or a list of them)
and, where there is not one source, `size` ([height, width]). OUTPUT gets the images and `edits.jsonl`, the input's
lines with `edited` and all `candidates`: what score.py and best_of_n.py take. A line that cannot be edited has
`"valid": false` and the reason under `problem`; the exit status is 0 all the same. The same command again goes on where
a killed one stopped; under other settings it refuses.

Each editor has rules of its own for sizes and for how many images it takes (docs/edit.md). OmniGen2 takes up to 5 and
enlarges none: they are shrunk to --max-pixels and --max-side, their sides cut to multiples of 16. An edit of one image
has the size at which that is read, unless --keep-size brings it back to the input's. The noise of an edit depends on
--seed, its line number and the sample, not on what is edited beside it.
"""

import argparse
import sys
from pathlib import Path

from edit_rl_jax.cli import editor_flags
from edit_rl_jax.data.images import decode_image, encode_png, resize
from edit_rl_jax.editors import edit_file
from edit_rl_jax.editors.sampling import Edit
from edit_rl_jax.ranges import flag


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    editor_flags.add_arguments(parser)
    parser.add_argument("--output", required=True, type=Path, help="an image's file, or with --input a folder")
    parser.add_argument(
        "--keep-size", action="store_true", help="resize results to the own size of the input whose aspect they have"
    )
    one = parser.add_argument_group("one edit")
    one.add_argument("--image", metavar="IMAGE", action="append", default=[], help="several times for several")
    one.add_argument("--instruction", metavar="TEXT")
    one.add_argument(
        "--size", type=flag(int, "[1, 16384]"), nargs=2, metavar=("HEIGHT", "WIDTH"), help="default: the only image's"
    )
    many = parser.add_argument_group("a file of edits")
    many.add_argument("--input", metavar="JSONL", type=Path)
    many.add_argument("--samples", type=flag(int, "[1, 1000]"), default=1, help="edits of each line")
    many.add_argument(
        "--chunk", type=flag(int, "[1, 1000000]"), default=16, help="lines that are edited and written together"
    )
    many.add_argument("--overwrite", action="store_true", help="begin anew where the output exists")
    args = parser.parse_args(argv)
    if args.editor is None:
        parser.error("--model is wanted")
    if (args.input is None) == (args.instruction is None):
        parser.error("give either --instruction (with --image) or --input")
    if args.input is None and (args.output.suffix != ".png" or not args.output.parent.is_dir()):
        parser.error("--output of one edit is a .png in a folder that exists")
    if args.size and min(args.size) < 1:
        parser.error("--size is positive")
    if args.samples < 1 or (args.samples > 1 and args.input is None):
        parser.error("--samples is at least 1, and more than 1 only with --input")
    return args


def main(argv=None) -> int:
    args = parse(argv)
    try:
        if args.input is not None:
            edit_file.lines(args.input)  # a malformed line is named before a model is loaded
        images = tuple(decode_image(path, where=path) for path in args.image)
        sampler, settings = editor_flags.from_arguments(args)
        if args.input is None:
            size = tuple(args.size) if args.size else (1024, 1024) if not images else None
            edit = Edit(args.instruction, images, size)
            (made,) = sampler.edit([edit], args.edit_seed)
            if args.keep_size and images:
                made = resize(made, *edit_file.kept_size(edit, made.shape[:2]))
            args.output.write_bytes(encode_png(made))
            print(f"{args.output}: {made.shape[1]} x {made.shape[0]}")
            return 0
        how = dict(
            samples=args.samples,
            seed=args.edit_seed,
            chunk=args.chunk,
            keep_size=args.keep_size,
            overwrite=args.overwrite,
        )
        settings |= {"samples": args.samples, "keep_size": args.keep_size}
        total, invalid = edit_file.edit_file(sampler, args.input, args.output, settings, **how)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"{total} edits, {invalid} that could not be made: {args.output / edit_file.RESULTS}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
