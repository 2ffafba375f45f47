"""Evaluate a reward model on a benchmark; writes eval.json and report.html.

    python scripts/eval_rm.py --benchmark editworld --model runs/demo/model --untrained edit_rl_jax/assets/tiny_vl \\
        --output runs/demo

`editworld`, the built-in world: pairs of edits of one (source, instruction) whose oracle scores differ by at least 3 of
25, equally many of every task x error kind x severity third, in scenes with held-out combinations of attributes. Ties
and answers that cannot be read are wrong. Beside the accuracy stand the same base's before training, and controls that
should not work: images blanked, instructions shuffled, the plain pixel distance to the source.
"""

import argparse
import json
import sys
from pathlib import Path

from edit_rl_jax.editworld import dataset
from edit_rl_jax.evals import pairs as pairs_lib
from edit_rl_jax.generation.sampler import greedy
from edit_rl_jax.rewards.editscore.reward import EditScore
from edit_rl_jax.training.report import write_report


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", required=True, choices=["editworld"])
    parser.add_argument("--model", required=True, metavar="DIR", help="model or adapter folder, or hub id")
    parser.add_argument("--base", metavar="DIR", help="base of an adapter, where it is not where the adapter says")
    parser.add_argument("--untrained", metavar="DIR", help="model to compare with, asked the same questions")
    parser.add_argument("--output", required=True, type=Path, metavar="DIR", help="folder of eval.json and report.html")
    parser.add_argument("--pairs", type=int, default=528, help="at least so many (default 528)")
    parser.add_argument("--split", default="test", help="of the built-in world (default test: held-out combinations)")
    parser.add_argument("--resolution", type=int, default=84, help="pixels a side of the built-in world (default 84)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=128, help="prompts a batch (default 128)")
    parser.add_argument("--max-new-tokens", type=int, default=192)
    parser.add_argument("--no-controls", action="store_true", help="leave the controls out")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    settings = dict(sampling=greedy(args.max_new_tokens), rows=args.rows, seed=args.seed)
    reward = EditScore.load(args.model, base=args.base, **settings)
    untrained = EditScore.load(args.untrained, prompts=reward.prompts, **settings) if args.untrained else None
    pairs = dataset.pairs(args.split, args.pairs, args.seed, args.resolution)
    figures, judged = pairs_lib.evaluate(
        reward, pairs, untrained=untrained, controls=not args.no_controls, seed=args.seed
    )
    figures = {"benchmark": args.benchmark, "split": args.split, "seed": args.seed, "model": str(args.model), **figures}
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    report = write_report(args.output, pairs_lib.samples(pairs, judged))
    print(pairs_lib.summary(figures))
    print(f"{args.output / 'eval.json'}, {report}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
