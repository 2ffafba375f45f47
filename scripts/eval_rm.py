"""Evaluate a reward model on a benchmark; writes eval.json and report.html.

    python scripts/eval_rm.py --benchmark editworld --model runs/demo/model --untrained edit_rl_jax/assets/tiny_vl \\
        --output runs/demo

`editworld`, the built-in world: pairs of edits of one (source, instruction) whose oracle scores differ by at least 3 of
25, equally many of every task x error kind x severity third, in scenes with held-out combinations of attributes. Ties
and answers that cannot be read are wrong. Beside the accuracy stand the same base's before training, and controls that
should not work: images blanked, instructions shuffled, the plain pixel distance to the source.
"""

import argparse
import sys

from edit_rl_jax.evals import editworld
from edit_rl_jax.evals.pairs import summary


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, choices=["editworld"])
    parser.add_argument("--model", required=True, metavar="DIR", help="model or adapter folder, or hub id")
    parser.add_argument("--base", metavar="DIR", help="base of an adapter, where it is not where the adapter says")
    parser.add_argument("--untrained", metavar="DIR", help="model to compare with, asked the same questions")
    parser.add_argument("--output", required=True, metavar="DIR", help="folder of eval.json and report.html")
    parser.add_argument("--pairs", type=int, default=528, help="at least so many (default 528)")
    parser.add_argument("--split", default="test", help="of the built-in world (default test: held-out combinations)")
    parser.add_argument("--resolution", type=int, default=84, help="pixels a side of the built-in world (default 84)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=128, help="prompts a batch (default 128)")
    parser.add_argument("--max-new-tokens", type=int, default=128, help="an answer (default 128)")
    parser.add_argument("--no-controls", action="store_true", help="leave the controls out")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    figures = editworld.run(
        args.model,
        args.output,
        base=args.base,
        untrained=args.untrained,
        pairs=args.pairs,
        split=args.split,
        resolution=args.resolution,
        seed=args.seed,
        rows=args.rows,
        max_new_tokens=args.max_new_tokens,
        controls=not args.no_controls,
    )
    print(summary(figures))
    print(f"{args.output}/eval.json, {args.output}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
