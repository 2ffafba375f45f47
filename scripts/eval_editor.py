"""Measure an editor on a benchmark: the built-in world, GEdit-Bench, ImgEdit-Bench, KontextBench.

    python scripts/eval_editor.py --benchmark editworld --model edit_rl_jax/assets/tiny_editor --output runs/eval_editor

`editworld`: an oracle scores the pixels of every edit. Prints the success rate with its 95% interval over scenes, by
task and by dimension; OUTPUT gets `eval.json`, `samples.png` and `report.html`. Scenes are held out: their combinations
of attributes are in no training data. Edits there take 20 steps without guidance, 64 side by side, unless flags say
otherwise. With a judge (or --oracle) it is a benchmark as the others are:

    python scripts/eval_editor.py --benchmark gedit_bench --data GEdit-Bench --images results/my_editor \\
        --judge-endpoint https://host/v1 --judge-endpoint-model gpt-4.1-2025-04-14 --judge-questions vie_prompts.py \\
        --output runs/g
    python scripts/eval_editor.py --benchmark imgedit_bench --data Benchmark/Basic --model my/editor \\
        --judge-model runs/judge/model --output runs/i
    python scripts/eval_editor.py --benchmark gedit_bench --predictions results/my_editor/gpt4o --output runs/p

Edits come from an editor (--model: made into OUTPUT/images, in upstream's layout), from a folder in that layout
(--images), or their judgements are recorded (--predictions). The judge is any of the project's (--judge-model,
--judge-server, --judge-endpoint), or with --judge-questions an end point that is asked upstream's own questions, from
files of theirs, at temperature 0. Answers are kept in OUTPUT by content, so that a killed run goes on. OUTPUT gets
`eval.json`, `judgements.jsonl` (which --predictions reads) and `report.html`; many outputs make a page by
leaderboard.py. What failed is counted, and the figure stands with and without it; docs/benchmarks.md says more.
"""

import argparse
import os
import sys
from pathlib import Path

from edit_rl_jax import json_files
from edit_rl_jax.cli import editor_flags, judge_flags
from edit_rl_jax.evals.editors import editworld, figures, judged, prompts
from edit_rl_jax.evals.editors.asking import EndPointJudge
from edit_rl_jax.evals.editors.world import by_oracle
from edit_rl_jax.ranges import INT32_OR_0, flag
from edit_rl_jax.rewards.cache import Cached
from edit_rl_jax.rewards.serving.chat import Chat


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--benchmark", choices=tuple(judged.BENCHMARKS), required=True)
    parser.add_argument("--output", required=True, metavar="DIR")
    world = parser.add_argument_group("editworld")
    how = dict(type=flag(int, "[1, 1000000]"), default=512)
    world.add_argument("--prompts", dest="scenes", metavar="N", help="scenes with an instruction each", **how)
    world.add_argument("--samples", type=flag(int, "[1, 1000]"), default=1, help="edits of each, for its own figures")
    world.add_argument("--split", choices=("test", "validation", "train"), default="test")
    world.add_argument("--data-seed", type=flag(int, INT32_OR_0), default=0, help="of the scenes")
    world.add_argument("--oracle", action="store_true", help="judge by it as by any judge, for leaderboards")
    bench = parser.add_argument_group("judged benchmarks")
    bench.add_argument("--data", metavar="DIR", help="folder or file of the data set, or its hub id")
    bench.add_argument("--revision", help="of the data set, to load from the hub or to write down")
    bench.add_argument("--part", default="", help="en, cn (zh), basic, uge, all; default: the benchmark's first")
    bench.add_argument("--images", metavar="DIR", help="edits in upstream's layout, instead of an editor")
    bench.add_argument(
        "--predictions", metavar="FILE", help="recorded: judgements.jsonl, or what upstream's scripts wrote"
    )
    bench.add_argument("--name", help="of the editor, in tables; default: the last part of its path")
    bench.add_argument("--judge-name", help="of the judge, in tables; default: likewise")
    asked = parser.add_argument_group("an end point that is asked upstream's questions")
    files = "vie_prompts.py of GEdit-Bench; prompts.json, UGE_bench.py of ImgEdit"
    asked.add_argument("--judge-questions", dest="questions", nargs="+", metavar="FILE", help=files)
    asked.add_argument("--max-tokens", type=flag(int, "[1, 1000000]"), default=1400, help="of an answer")
    asked.add_argument("--no-seed", action="store_true", help="send none: some end points refuse it")
    more = 'further fields of each request, null takes one out: \'{"max_tokens": null, "top_p": 1}\''
    asked.add_argument("--request", metavar="JSON", default="{}", help=more)
    asked.add_argument("--at-once", type=flag(int, "[1, 1024]"), default=16, help="questions in flight")
    asked.add_argument("--per-minute", type=flag(float, "[0, 1e6]"), default=0.0, help="requests at most; 0: no limit")
    asked.add_argument("--tries", type=flag(int, "[1, 100]"), default=6, help="of one request, with waits that double")
    asked.add_argument("--timeout", type=flag(float, "(0, 3600]"), default=180.0, help="seconds of one try")
    dollars = dict(type=flag(float, "[0, 1e6]"), nargs=2, metavar=("IN", "OUT"))
    asked.add_argument("--prices", help="US dollars for a million tokens read, and written", **dollars)
    editor_flags.add_arguments(parser)
    judge_flags.add_arguments(parser, argv, before="judge-")
    editor_flags.editworld_defaults(parser, argv)
    args = parser.parse_args(argv)
    if (args.editor is None) + (args.images is None) + (args.predictions is None) != 2:
        parser.error("one of --model, --images, --predictions is wanted")
    args.judges = judge_flags.given(args) + args.oracle
    if args.benchmark == "editworld":
        args.data = f"{args.split}-{args.data_seed}-{args.scenes}"
        args.part = args.split
    elif not args.data and not args.predictions:
        parser.error(f"{args.benchmark} needs --data")
    if args.oracle and args.benchmark != "editworld":
        parser.error("the oracle knows editworld only")
    wanted = 0 if args.predictions else 1
    if args.judges != wanted and not (args.benchmark == "editworld" and args.editor and not args.judges):
        parser.error(
            "predictions are judged already"
            if args.predictions
            else "one judge is wanted: --judge-model, --judge-server, or --judge-endpoint with --judge-endpoint-model"
        )
    if args.questions and not (args.endpoint and args.endpoint_model):
        parser.error("--judge-questions are put to --judge-endpoint, and its --judge-endpoint-model")
    return args


def _object(text: str) -> dict:
    found = json_files.loads(text, "--request")
    if not isinstance(found, dict):
        raise ValueError(f"--request: an object is wanted, not {text:.60}")
    return found


def main(argv=None) -> int:
    args = parse(argv)
    try:
        if args.judges or args.predictions:
            print(figures.summary(evaluate(args)))
        else:
            print(editworld.summary(by_pixels(args)))
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"report: {args.output}/report.html")
    return 0


def sampler_of(args):
    sampler, settings = editor_flags.from_arguments(args)
    if args.benchmark == "editworld":
        sampler.settings = editworld.shaped(sampler.settings, sampler.processor)
        settings["max_pixels"] = sampler.settings.max_pixels
    return sampler, settings


def by_pixels(args) -> dict:
    sampler, settings = sampler_of(args)
    how = dict(n=args.scenes, split=args.split, seed=args.data_seed, samples=args.samples)
    about = {"model": args.editor, "editor": settings}
    return editworld.run(sampler, args.output, edit_seed=args.edit_seed, about=about, **how)


def name_of(path: str) -> str:
    """A folder's name, with that of its parent where it is one that all exports and folders of edits have."""
    path = Path(path).resolve()
    return f"{path.parent.name}/{path.name}" if path.name in ("model", "images", "gpt4o") else path.name


def evaluate(args) -> dict:
    named = args.editor or args.images or args.predictions
    how = dict(editor=args.name or name_of(named), part=args.part, revision=args.revision, data=args.data)
    if args.predictions:
        how |= dict(judge=args.judge_name or "recorded", images=args.images, predictions=args.predictions)
        return judged.run(args.benchmark, args.output, **how)
    bench, home, about = judged.benchmark(args.benchmark), Path(args.output), {}
    if args.questions:
        fields = {"temperature": 0.0, "max_tokens": args.max_tokens} | ({"seed": None} if args.no_seed else {})
        fields |= _object(args.request)
        options = dict(timeout=args.timeout, tries=args.tries, per_minute=args.per_minute)
        key = os.environ.get(judge_flags.KEY, "")
        chat = Chat(args.endpoint, args.endpoint_model, key, fields, **options)
        part = bench.ALIASES.get(args.part, args.part) or bench.PARTS[0]
        texts, prices = prompts.load(bench, part, args.questions), args.prices and tuple(args.prices)
        answers = dict(at_once=args.at_once, prices=prices)
        judge = EndPointJudge(bench, chat, texts, home / "answers.jsonl", **answers)
        how |= dict(judge=args.judge_name or args.endpoint_model, judging=judge.judge, spent=judge.spent)
        about["judge"] = judge.settings()
    elif args.oracle:
        how |= dict(judge="oracle", judging=by_oracle)
    else:
        judge = Cached(judge_flags.from_arguments(args), home / "cache.jsonl")
        name = args.judge_name or args.endpoint_model or (name_of(args.model) if args.model else args.server)
        how |= dict(judge=name, judging=judged.by_judge(bench, judge))
        about["judge"] = judge.settings()
    if args.editor:
        sampler, about["editor"] = sampler_of(args)
        args.images = home / "images"
        part = args.part or bench.PARTS[0]
        made = (args.benchmark, sampler, args.data, args.images, about["editor"], part, args.edit_seed)
        judged.make_images(*made, revision=args.revision)
    return judged.run(args.benchmark, home, images=args.images, about=about, **how)


if __name__ == "__main__":
    sys.exit(main())
