"""Score edits with a reward model: one triple by flags, or a file of them.

    python scripts/score.py --model runs/demo/model --source a.png --edited b.png --instruction "make the ball red"
    python scripts/score.py --model runs/demo/model --input pairs.jsonl --output scores.jsonl --passes 4

A line of the input is a JSON object with `source` (a path from the file's folder, or a list of several), `edited` and
`instruction`; parquet may hold the images themselves. A line of the output is the input's line with `scores`: the
dimensions by name with value, spread and scale, and `overall` (EditScore's are on 0-25). An edit that cannot be read or
judged has `"valid": false`, the reason under `problem`, and null for `overall`; the exit status is 0 all the same, and
1 where the only edit was not valid. A server that refuses the token, the address or the model, or does not answer at
all, ends the run with status 1 and a line that says so: nothing is written for edits that it did not judge. The same
command again goes on where one stopped; under other settings it refuses.
"""

import argparse
import json
import sys
from pathlib import Path

from edit_rl_jax.cli import judge_flags
from edit_rl_jax.ranges import flag
from edit_rl_jax.rewards import score_file
from edit_rl_jax.rewards.serving.service import ServiceError


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judge_flags.add_arguments(parser, argv)
    one = parser.add_argument_group("one triple")
    one.add_argument("--source", metavar="IMAGE", nargs="+", help="one, or several where the judge takes them")
    one.add_argument("--edited", metavar="IMAGE", type=Path)
    one.add_argument("--instruction", metavar="TEXT")
    many = parser.add_argument_group("a file of triples")
    many.add_argument("--input", metavar="FILE", type=Path, help=".jsonl or .parquet")
    many.add_argument("--output", metavar="JSONL", type=Path)
    many.add_argument(
        "--chunk", type=flag(int, "[1, 1000000]"), default=128, help="edits that are scored and written together"
    )
    many.add_argument("--overwrite", action="store_true", help="begin anew where the output exists")
    args = parser.parse_args(argv)
    if judge_flags.given(args) != 1:
        parser.error("give one of --model, --server, --endpoint")
    triple = (args.source, args.edited, args.instruction)
    if (args.input is None) == all(t is None for t in triple):
        parser.error("give either --source, --edited and --instruction, or --input")
    if args.input is None and any(t is None for t in triple):
        parser.error("one triple needs --source, --edited and --instruction")
    if (args.input is None) != (args.output is None):
        parser.error("--input and --output go together")
    return args


def so_far(args) -> str:
    """What a run that a service ended has written."""
    if args.input is None or not args.output.exists():
        return ""
    done = args.output.read_bytes().count(b"\n")
    return f"; {done} of {score_file.count(args.input)} edits are done, the same command goes on from there"


def main(argv=None) -> int:
    args = parse(argv)
    try:
        if args.input is not None:
            score_file.count(args.input)  # a malformed line is named before a model is loaded
        judge = judge_flags.from_arguments(args)
        if args.input is None:
            line = {"source": args.source, "edited": str(args.edited), "instruction": args.instruction}
            (judged,) = score_file.judge_entries(judge, [(line, score_file.read_edit(line, Path()))])
            print(json.dumps(judged.to_json(), indent=2, ensure_ascii=False))
            return 0 if judged.valid else 1
        options = dict(chunk=args.chunk, overwrite=args.overwrite)
        edits, invalid, mean = score_file.score_file(judge, args.input, args.output, **options)
    except ServiceError as error:
        sys.exit(f"{error}{so_far(args)}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    mean = f", mean overall {mean:.4g}" if mean is not None else ""
    print(f"{edits} edits, {invalid} without a score{mean}: {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
