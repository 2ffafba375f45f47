"""Keep the best of several stored edits of each input by reward, and say what more candidates are worth.

    python scripts/best_of_n.py --candidates edits.jsonl --model runs/demo/model --output runs/best

A line of the candidates is a JSON object with `source`, `instruction` and `candidates` (paths, from the file's folder)
and, if it is known, `truth`: a number for each candidate, by an oracle or by people. OUTPUT gets `picks.jsonl` (a line
an input, in order), `eval.json` with the curve over N (unbiased: the mean over all subsets), `montage.png` and
`report.html`. Scores are remembered in OUTPUT/cache.jsonl, so that a killed run goes on.
"""

import argparse
import sys

from edit_rl_jax.evals import best_of_n
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.cache import Cached


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", required=True, metavar="JSONL")
    parser.add_argument("--output", required=True, metavar="DIR")
    judges.add_arguments(parser)
    args = parser.parse_args(argv)
    if judges.given(args) != 1:
        parser.error("give one of --model, --server, --endpoint")
    return args


def main(argv=None) -> int:
    args = parse(argv)
    try:
        best_of_n.read(args.candidates)  # a malformed line is named before a model is loaded
        judge, settings = judges.from_arguments(args)
        cached = Cached(judge, settings, f"{args.output}/cache.jsonl")
        about = {"model": args.model or args.server or args.endpoint, **settings}
        figures = best_of_n.run(args.candidates, args.output, cached, about)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(best_of_n.summary(figures))
    print(f"{args.output}/picks.jsonl, {args.output}/eval.json, {args.output}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
