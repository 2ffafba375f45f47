"""Keep the best of several edits of each input by reward, and say what more candidates are worth.

    python scripts/best_of_n.py --candidates edits.jsonl --model runs/demo/model --output runs/best
    python scripts/best_of_n.py --editor OmniGen2/OmniGen2 --input asked.jsonl --samples 8 --model runs/demo/model \\
        --output runs/best
    python scripts/best_of_n.py --benchmark gedit_bench --data GEdit-Bench --editor my/editor --samples 8 \\
        --model runs/demo/model --output runs/best

A line of the candidates is a JSON object with `source`, `instruction` and `candidates` (paths, from the file's folder)
and, if it is known, `truth`: a number for each candidate, by an oracle or by people. OUTPUT gets `picks.jsonl` (a line
an input, in order), `eval.json` with the curve over N (unbiased: the mean over all subsets), `montage.png` and
`report.html`. Scores are remembered in OUTPUT/cache.jsonl, so that a killed run goes on. With --editor the candidates
are sampled first, into OUTPUT/edits (see edit.py, whose input and flags these are).

--benchmark takes the inputs from a benchmark of eval_editor.py (--data; of editworld SPLIT-SEED-N): --editor makes
--samples edits of each, into OUTPUT/samples/0, 1, ... in the benchmark's layout, or --images names such folders. What a
candidate is worth is said by --measured, results of eval_editor.py on each folder (another judge's, as in EditScore's
experiment), or on editworld by the oracle; edits there take 20 steps without guidance, 64 side by side, unless flags
say otherwise; means over groups stand beside the means.
"""

import argparse
import sys
from pathlib import Path

from edit_rl_jax.cli import editor_flags, judge_flags
from edit_rl_jax.editors import edit_file
from edit_rl_jax.evals import best_of_n
from edit_rl_jax.evals.editors import candidates, editworld, judged
from edit_rl_jax.ranges import flag
from edit_rl_jax.rewards.cache import Cached


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", metavar="JSONL")
    parser.add_argument("--input", metavar="JSONL", help="with --editor: instructions and sources")
    parser.add_argument("--samples", type=flag(int, "[1, 1000]"), default=8, help="with --editor: edits of each input")
    parser.add_argument("--output", required=True, metavar="DIR")
    bench = parser.add_argument_group("candidates of a benchmark")
    bench.add_argument("--benchmark", choices=tuple(judged.BENCHMARKS))
    bench.add_argument("--data", metavar="DIR", help="folder or file of the data set, or its hub id")
    bench.add_argument("--part", default="", help="en, cn (zh), basic, uge, all; default: the benchmark's first")
    bench.add_argument(
        "--images", metavar="DIR", nargs="+", help="folders of edits, one a sample, instead of an editor"
    )
    bench.add_argument("--measured", metavar="DIR", nargs="+", default=(), help="results on each of them: the truth")
    judge_flags.add_arguments(parser, argv)
    editor_flags.add_arguments(parser, beside_judge=True)
    editor_flags.editworld_defaults(parser, argv)
    args = parser.parse_args(argv)
    if args.benchmark:
        if not args.data or (args.editor is None) == (args.images is None) or args.candidates or args.input:
            parser.error("--benchmark wants --data, and --editor or --images")
        if args.benchmark == "editworld":
            args.part = args.part or args.data.partition("-")[0]
    elif (args.editor is None) == (args.candidates is None) or (args.editor is None) != (args.input is None):
        parser.error("give either --candidates, or --editor and --input")
    elif args.data or args.images or args.measured:
        parser.error("--data, --images and --measured belong to --benchmark")
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


def of_benchmark(args) -> str:
    """The file of candidates of a benchmark's items, made by the editor or found in folders."""
    home, folders = Path(args.output), args.images
    if args.editor:
        sampler, settings = editor_flags.from_arguments(args)
        if args.benchmark == "editworld":
            sampler.settings = editworld.shaped(sampler.settings, sampler.processor)
            settings["max_pixels"] = sampler.settings.max_pixels
        folders = [home / "samples" / str(k) for k in range(args.samples)]
        part = args.part or judged.benchmark(args.benchmark).PARTS[0]
        for member, folder in enumerate(folders):
            how = (args.benchmark, sampler, args.data, folder, settings, part, args.edit_seed, member)
            judged.make_images(*how)
    return str(candidates.write(args.benchmark, args.data, folders, home, args.part, args.measured))


def main(argv=None) -> int:
    args = parse(argv)
    try:
        if args.benchmark:
            args.candidates = of_benchmark(args)
        elif args.editor:
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
