"""Measure an editor on a benchmark: the built-in world, where an oracle scores the pixels of every edit.

    python scripts/eval_editor.py --benchmark editworld --model edit_rl_jax/assets/tiny_editor --output runs/eval_editor

Prints the success rate with its 95% interval over scenes, by task and by dimension; OUTPUT gets `eval.json`,
`samples.png` and `report.html`. Scenes are held out: their combinations of attributes are in no training data.
"""

import argparse
import dataclasses
import sys

from edit_rl_jax.cli import editor_flags
from edit_rl_jax.evals.editors import editworld
from edit_rl_jax.ranges import INT32_OR_0, flag


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=("editworld",), required=True)
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument(
        "--prompts", type=flag(int, "[1, 1000000]"), default=512, help="scenes with an instruction each"
    )
    parser.add_argument("--samples", type=flag(int, "[1, 1000]"), default=1, help="edits of each")
    parser.add_argument("--split", choices=("test", "validation", "train"), default="test")
    parser.add_argument("--data-seed", type=flag(int, INT32_OR_0), default=0, help="of the scenes")
    editor_flags.add_arguments(parser)
    # the built-in world is small, and its editor is trained without guidance in mind
    parser.set_defaults(steps=20, text_guidance=1.0, image_guidance=1.0, edit_rows=64)
    args = parser.parse_args(argv)
    if args.editor is None:
        parser.error("--model is wanted")
    return args


def main(argv=None) -> int:
    args = parse(argv)
    try:
        sampler, settings = editor_flags.from_arguments(args)
        shapes = editworld.buckets(sampler.processor.multiple)
        sampler.settings = dataclasses.replace(sampler.settings, buckets=shapes)
        how = dict(n=args.prompts, split=args.split, seed=args.data_seed, samples=args.samples)
        about = {"model": args.editor, "editor": settings}
        figures = editworld.run(sampler, args.output, edit_seed=args.edit_seed, about=about, **how)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(editworld.summary(figures))
    print(f"report: {args.output}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
