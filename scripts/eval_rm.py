"""Evaluate a reward model on a benchmark; writes eval.json and report.html.

    python scripts/eval_rm.py --benchmark editworld --model runs/demo/model --untrained edit_rl_jax/assets/tiny_vl \\
        --output runs/demo
    python scripts/eval_rm.py --benchmark editreward_bench --data EditReward-Bench --model EditScore/EditScore-7B \\
        --prompts upstream --passes 4 --output runs/bench

`editworld`, the built-in world: pairs of edits of one (source, instruction) whose oracle scores differ by at least 3 of
25, equally many of every task x error kind x severity third, in scenes with held-out combinations of attributes. Ties
and answers that cannot be read are wrong. Beside the accuracy stand the same base's before training, and controls that
should not work: images blanked, instructions shuffled, the plain pixel distance to the source. With --passes K a table
compares Avg@1, 2, 4, ..., K on the same answers; --expected measures expected scores. A judge with other dimensions
than the world's is measured by its overall figure.

Evaluations of the same pairs side by side, with paired gains over the first (modes of a verifier, before and after):

    python scripts/eval_rm.py --compare runs/think runs/verify runs/think_verify runs/gcpo --output runs/modes

A verifier's reward fitted to pairs, people's or the world's: how much the final score and each category of verdicts
weigh. It prints the flags for it, and cross-fitted accuracies beside the score's; judgements are remembered in
OUTPUT/cache.jsonl:

    python scripts/eval_rm.py --fit data/pairs --model runs/rrm/model --output runs/fit    # or --fit editworld

`editreward_bench`, EditScore's EditReward-Bench, from a folder of its arrow or parquet files or a hub id: strict
accuracy in each dimension, as a mean over the tasks and pooled. Scores are remembered in OUTPUT/cache.jsonl by content
and settings; `--predictions FILE` evaluates recorded scores (JSON lines: `key`, `prompt_following`, `consistency`,
`overall`, or lines of score.py with a `key`) without a model.

`preferences`, pairs of one's own of which people prefer one (a dataset by prepare_data.py, its split `validation`
unless --split says another): how often the judge orders them so.

    python scripts/eval_rm.py --benchmark preferences --data data/pairs --model runs/judge/model --output runs/mine

Other public benchmarks, with a judge or `--predictions FILE`, whose items are the data's or `--labels FILE`'s:

    python scripts/eval_rm.py --benchmark genai_bench --data GenAI-Bench/image_edition --model runs/judge/model \
        --output runs/genai
    python scripts/eval_rm.py --benchmark genai_bench --labels votes.jsonl --predictions verdicts.jsonl --output runs/x

`editreward_bench_tiger` (strict K-way and by pairs), `genai_bench` (four verdicts, and ties merged), `aurora_bench`
(pairs and ratings), `imagenhub` (ratings), `editreward_compass` (IA, VC, VQ), `mmrb2_edit` (both ways round). What is
missing, malformed, doubled or in conflict is named and counted, and wrong; docs/benchmarks.md says what is measured.
"""

import argparse
import json
import sys
from pathlib import Path

from edit_rl_jax.cli import judge_flags
from edit_rl_jax.data.tfds_builder import EditSource
from edit_rl_jax.editworld import dataset
from edit_rl_jax.evals.judges import editscore_bench, editworld, fitting, preferences, public, side_by_side
from edit_rl_jax.evals.judges.pairs import summary
from edit_rl_jax.evals.judges.ties import Ties
from edit_rl_jax.ranges import flag
from edit_rl_jax.rewards.base import Edit
from edit_rl_jax.rewards.cache import Cached


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--benchmark", choices=["editworld", "preferences", "editreward_bench", *public.BENCHMARKS])
    what.add_argument(
        "--compare",
        nargs="+",
        metavar="DIR",
        help="outputs of --benchmark editworld or preferences, the first one's gains 0",
    )
    what.add_argument("--fit", metavar="DIR", help="dataset of preferences, or editworld: weigh a verifier's figures")
    judge_flags.add_arguments(parser, argv)
    parser.set_defaults(rows=None, max_new_tokens=None)
    parser.add_argument(
        "--output", required=True, metavar="DIR", help="of eval.json and report.html, compare.json, fit.json"
    )
    world = parser.add_argument_group("editworld")
    world.add_argument("--untrained", metavar="DIR", help="model to compare with, asked the same questions")
    world.add_argument("--pairs", type=flag(int, "[1, 1000000]"), default=528, help="at least so many (default 528)")
    world.add_argument("--split", help="default test: held-out combinations; preferences: validation; of --fit train")
    world.add_argument("--resolution", type=flag(int, "[8, 4096]"), default=84, help="pixels a side (default 84)")
    world.add_argument("--no-controls", action="store_true", help="leave the controls out")
    bench = parser.add_argument_group("public benchmarks")
    bench.add_argument("--data", metavar="DIR", help="folder of the dataset, or its hub id")
    bench.add_argument("--revision", help="of the dataset, to load from the hub or to write down")
    bench.add_argument("--predictions", metavar="JSONL", help="recorded scores or verdicts, instead of a model")
    bench.add_argument("--labels", metavar="JSONL", help="people's labels; with --predictions also instead of --data")
    held = "chosen on other pairs (default), on the same ones as upstream does (flatters), or a number"
    kinds = "held-out|oracle|NUMBER"
    bench.add_argument("--tie-threshold", type=_threshold, metavar=kinds, default="held-out", help=held)
    bench.add_argument("--upstream", action="store_true", help="add figures by the released code's own rules")
    args = parser.parse_args(argv)
    if args.compare:
        return args
    own = {None: "train", "preferences": "validation"}  # None: of --fit
    args.split = args.split or own.get(args.benchmark, "test")
    if args.benchmark in ("editreward_bench", "preferences") and not args.data:
        parser.error(f"{args.benchmark} needs --data")
    if args.benchmark in public.BENCHMARKS and not (args.data or args.labels and args.predictions):
        parser.error(f"{args.benchmark} needs --data, or --labels with --predictions")
    if args.labels and args.benchmark not in public.BENCHMARKS:
        parser.error(f"{args.benchmark} takes no --labels")
    if args.untrained and not args.model:
        parser.error("--untrained is compared with --model")
    if args.benchmark in ("editworld", "preferences") and args.predictions:
        parser.error(f"{args.benchmark} judges by itself: no --predictions")
    if args.fit and (args.predictions or args.labels or args.data or args.untrained):
        parser.error("--fit judges pairs of its own: no --predictions, --labels, --data or --untrained")
    if args.fit and getattr(args, "reward", "score") != "score":
        parser.error("--fit finds the weights of a reward: no --reward")
    if judge_flags.given(args) + (args.predictions is not None) != 1:
        parser.error("give one of --model, --server, --endpoint, --predictions")
    world = "editworld" in (args.benchmark, args.fit)
    for name, value in {"rows": 32, "max_new_tokens": getattr(args.options, "max_new_tokens", 512)}.items():
        value = editworld.defaults(args.options)[name] if world else value
        setattr(args, name, getattr(args, name) or (None if args.server else value))
    return args


def _threshold(text: str) -> str | float:
    return text if text in ("held-out", "oracle") else flag(float, "[0, inf)")(text)


def main(argv=None) -> int:
    args = parse(argv)
    try:
        return evaluate(args)
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def judge_of(args):
    """The judge of the flags; --seed also draws pairs and breaks ties here."""
    return judge_flags.from_arguments(args, own=("seed",))


def evaluate(args) -> int:
    if args.compare:
        rows = side_by_side.table(args.compare)
        Path(args.output).mkdir(parents=True, exist_ok=True)
        (Path(args.output) / "compare.json").write_text(json.dumps(rows, indent=2) + "\n")
        print(side_by_side.text(rows))
    elif args.fit:
        judge = Cached(judge_of(args), f"{args.output}/cache.jsonl")
        seed = getattr(args, "seed", 0)
        about = {"data": args.fit, "split": args.split, "model": args.model or args.server}
        if args.fit == "editworld":
            about |= {"at_least": args.pairs, "resolution": args.resolution, "seed": seed}
            drawn = dataset.pairs(args.split, args.pairs, seed, args.resolution)
            pairs = [(Edit.of_record(p.better), Edit.of_record(p.worse), str(p.better.group)) for p in drawn]
        else:
            source = EditSource(args.fit, args.split)
            pairs, about = fitting.preferred(source), about | {"data_hash": source.data_hash}
        about |= {"settings": judge.settings()}
        print(fitting.summary(fitting.run(judge, pairs, args.output, about, seed)))
    elif args.benchmark == "editworld":
        if args.untrained:
            how = dict(base=args.base, mesh=judge_flags.mesh_of(args), verify=not args.no_verify)
            judge, before = editworld.load(args.model, args.untrained, args.judge, judge_flags.options_of(args), **how)
        else:
            judge, before = judge_of(args), None
        about = {"model": args.model or args.server or args.endpoint, "settings": judge.settings()}
        drawn = dict(pairs=args.pairs, split=args.split, resolution=args.resolution, seed=getattr(args, "seed", 0))
        drawn |= dict(controls=not args.no_controls, about=about)
        print(summary(editworld.run(judge, args.output, untrained=before, **drawn)))
    elif args.benchmark == "preferences":
        judge, source = Cached(judge_of(args), f"{args.output}/cache.jsonl"), EditSource(args.data, args.split)
        about = {"data": args.data, "split": args.split, "data_hash": source.data_hash}
        about |= {"model": args.model or args.server or args.endpoint, "settings": judge.settings()}
        print(summary(preferences.run(judge, source, args.output, about)))
    else:
        judge, about = None, None
        if not args.predictions:
            judge = Cached(judge_of(args), f"{args.output}/cache.jsonl")
            about = {"model": args.model or args.server or args.endpoint, **judge.settings()}
        options = dict(revision=args.revision, judge=judge, about=about, predictions=args.predictions)
        if args.benchmark in public.BENCHMARKS:
            ties = Ties(args.tie_threshold, getattr(args, "seed", 0), args.upstream)
            options |= dict(data=args.data, labels=args.labels, ties=ties)
            print(public.summary(public.run(args.benchmark, args.output, **options)))
            print(f"{args.output}/eval.json, {args.output}/report.html")
            return 0
        print(editscore_bench.summary(editscore_bench.run(args.output, args.data, **options)))
    found = ("compare.json",) if args.compare else ("fit.json",) if args.fit else ("eval.json", "report.html")
    print(", ".join(f"{args.output}/{name}" for name in found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
