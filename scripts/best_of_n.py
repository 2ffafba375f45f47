"""Keep the best of several edits of each input by reward, and say what more candidates are worth.

    python scripts/best_of_n.py --candidates edits.jsonl --model runs/demo/model --output runs/best
    python scripts/best_of_n.py --editor OmniGen2/OmniGen2 --input asked.jsonl --samples 8 --model runs/demo/model \\
        --output runs/best

A line of the candidates is a JSON object with `source`, `instruction` and `candidates` (paths, from the file's folder)
and, if it is known, `truth`: a number for each candidate, by an oracle or by people. OUTPUT gets `picks.jsonl` (a line
an input, in order), `eval.json` with the curve over N (unbiased: the mean over all subsets), `montage.png` and
`report.html`. Scores are remembered in OUTPUT/cache.jsonl, so that a killed run goes on. With --editor the candidates
are sampled first, into OUTPUT/edits (see edit.py, whose input and flags these are).
"""

import argparse
import sys
from pathlib import Path

from edit_rl_jax.cli import editor_flags, judge_flags
from edit_rl_jax.editors import edit_file
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.ranges import flag
from edit_rl_jax.rewards.cache import Cached


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", metavar="JSONL")
    parser.add_argument("--input", metavar="JSONL", help="with --editor: instructions and sources")
    parser.add_argument("--samples", type=flag(int, "[1, 1000]"), default=8, help="with --editor: edits of each input")
    parser.add_argument("--output", required=True, metavar="DIR")
    judge_flags.add_arguments(parser, argv)
    editor_flags.add_arguments(parser, beside_judge=True)
    args = parser.parse_args(argv)
    if (args.editor is None) == (args.candidates is None) or (args.editor is None) != (args.input is None):
        parser.error("give either --candidates, or --editor and --input")
    if judge_flags.given(args) != 1:
        parser.error("give one of --model, --server, --endpoint")
    return args


def sampled(args) -> str:
    """The file of candidates that the editor made."""
    source, home = Path(args.input), Path(args.output) / "edits"
    if not all(isinstance(line.get("source"), str) for line in edit_file.lines(source)):
        raise ValueError(f"{source}: every line wants one `source`")
    sampler, settings = editor_flags.from_arguments(args)
    settings |= {"samples": args.samples}
    edit_file.edit_file(sampler, source, home, settings, samples=args.samples, seed=args.edit_seed)
    return str(home / edit_file.RESULTS)


def main(argv=None) -> int:
    args = parse(argv)
    try:
        if args.editor:
            args.candidates = sampled(args)
        best_of_n.read(args.candidates)  # a malformed line is named before a model is loaded
        cached = Cached(judge_flags.from_arguments(args), f"{args.output}/cache.jsonl")
        about = {"model": args.model or args.server or args.endpoint, **cached.settings()}
        figures = best_of_n.run(args.candidates, args.output, cached, about)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(best_of_n.summary(figures))
    print(f"{args.output}/picks.jsonl, {args.output}/eval.json, {args.output}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
