"""Rank a dataset of edits by a judge, and write the best as a dataset, with a manifest of all.

    python scripts/filter_data.py --data data/edits --model runs/rm7b/model --keep 20000 --output data/best
    python scripts/train_editor.py --config configs/editor_omnigen2.py --workdir runs/e --config.data.train=data/best

The judge is one of the project (--model, --server, --endpoint), or scores are there already (--scores FILE: JSON lines
with `key` and `scores`, as score.py writes them, or `score`, a number). Edits are ranked among all, or with --within
among the candidates of one (source, instruction) or one instruction. An edit that the judge could not score is dropped,
counted and named, never ranked; ties are broken by the SHA-256 of the key. One split is filtered, the others are
copied. OUTPUT gets the dataset, `scores.jsonl`, `manifest.jsonl` (a line an edit: hashes, score, rank, kept or why
not), `eval.json`, `histogram.png`, montages of what was kept and dropped, and `report.html`.

The same command goes on where a killed one stopped. Several processes share the scoring: each runs the command with
--shard I/N (I from 0), and a last one without --shard (and without a judge) joins them. For another choice by the same
scores: --scores data/best/scores.jsonl and another output. Without --data, --scores gives the manifest alone.
"""

import argparse
import dataclasses
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import tensorflow_datasets as tfds

from edit_rl_jax import json_files
from edit_rl_jax.cli import judge_flags
from edit_rl_jax.data.records import EditRecord, RecordError
from edit_rl_jax.data.resumable import check_same, check_settings
from edit_rl_jax.data.tfds_builder import EditDataset, EditSource, write_dataset
from edit_rl_jax.evals.filtering import pages, ranking, scoring
from edit_rl_jax.ranges import flag
from edit_rl_jax.rewards.serving.service import ServiceError


def shard(text: str) -> tuple[int, int]:
    index, _, number = text.partition("/")
    if not (index.isdecimal() and number.isdecimal() and int(index) < int(number)):
        raise argparse.ArgumentTypeError(f"I/N with I from 0 to N - 1 is wanted, not {text!r}")
    return int(index), int(number)


def figure(text: str) -> float:
    """A score, which may be negative (EditReward's are not bounded)."""
    return flag(float, "[-1e30, 1e30]")(text)


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", metavar="DIR", help="dataset of edits, by prepare_data.py")
    parser.add_argument("--output", metavar="DIR", type=Path, required=True)
    parser.add_argument("--split", default="train", help="that is filtered (default: train); others are copied")
    choice = parser.add_argument_group("what is kept")
    many = choice.add_mutually_exclusive_group()
    many.add_argument("--keep", type=flag(int, "[1, 1e12]"), metavar="N", help="so many (--within: of each group)")
    many.add_argument("--keep-share", type=flag(float, "(0, 1]"), metavar="F", help="this share, rounded up")
    choice.add_argument("--min-score", type=figure, metavar="X", help="nothing of a lower score")
    choice.add_argument("--within", choices=tuple(ranking.WITHIN), default="global", help="(default: %(default)s)")
    choice.add_argument(
        "--by", default="overall", metavar="NAME", help="overall (default), or a dimension of the judge"
    )
    parser.add_argument("--scores", metavar="JSONL", type=Path, help="scores that are there, instead of a judge")
    parser.add_argument("--shard", type=shard, metavar="I/N", help="only score, and only this part of the dataset")
    parser.add_argument("--chunk", type=flag(int, "[1, 100000]"), default=128, help="edits scored and written together")
    judge_flags.add_arguments(parser, argv)
    args = parser.parse_args(argv)
    judges = judge_flags.given(args) + (args.scores is not None)
    if not args.data and (judges != 1 or not args.scores):
        parser.error("--data is wanted, or --scores for the manifest alone")
    if judges > 1:
        parser.error("give one of --model, --server, --endpoint, --scores")
    if args.shard and (args.scores or not judges):
        parser.error("--shard wants a judge: --model, --server or --endpoint")
    if args.shard is None and args.keep is args.keep_share is args.min_score is None:
        parser.error("say what is kept: --keep, --keep-share or --min-score")
    return args


def scored(args, source: EditSource) -> tuple[list[Path], dict]:
    """Scores what is missing. Returns the files of scores, in order, and the settings that they were made under."""
    about = lambda judge: scoring.described(judge, args.split, source.data_hash, len(source))
    parts, settings = scoring.joined(args.output, len(source)) if args.shard is None and not args.scores else ([], {})
    judge = judge_flags.from_arguments(args) if judge_flags.given(args) else None
    if judge and args.by not in ("overall", *judge.dimensions()):
        raise ValueError(f"--by {args.by}: the judge has overall, {', '.join(judge.dimensions())}")
    if parts:
        wanted = about(judge.settings()) if judge else settings | about({})
        check_settings(parts[0].settings, wanted | {"chunk": settings.get("chunk")}, scoring.ADVICE)
        return [part.file for part in parts], settings
    if judge is None and args.scores is None:
        raise ValueError("a judge is wanted: --model, --server, --endpoint or --scores; or what --shard runs wrote")
    part = scoring.Part.of(args.output, len(source), args.shard)
    stored = scoring.Stored(args.scores) if args.scores else None
    work = stored or scoring.ask(judge)
    settings = about({"scores_sha256": stored.sha256, "scores": len(stored)} if stored else judge.settings()) | {
        "chunk": args.chunk
    }
    scoring.score(source, part, work, settings, chunk=args.chunk)
    return [part.file], settings


def filtered(args, source: EditSource, keep: np.ndarray, tie: np.ndarray, about: dict) -> str:
    """Writes the dataset: of the split what is kept, in its order, and the other splits as they are."""
    home = args.output / EditDataset.name
    for left in home.glob("incomplete.*") if home.is_dir() else ():  # by a run that was killed
        shutil.rmtree(left)

    def best() -> Iterator[EditRecord]:
        for i in np.flatnonzero(keep).tolist():
            record = source[i]
            if scoring.hash64(record.key) != int(tie[i]):
                raise ValueError(f"{args.data}: record {i} is {record.key!r}, the scores are of another")
            yield record

    whole = lambda split: map(split.__getitem__, range(len(split)))
    others = [name for name in source.notes.get("data_hash", {}) if name != args.split]
    splits = {args.split: best()} | {name: whole(EditSource(args.data, name)) for name in others}
    notes = {k: v for k, v in source.notes.items() if k != "data_hash"}
    return write_dataset(args.output, splits, notes=notes | {"filtered": [*notes.get("filtered", []), about]})


def main(argv=None) -> int:
    args = parse(argv)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        return run(args)
    except BlockingIOError:
        sys.exit(f"{args.output}: another process writes there")
    except ServiceError as error:
        sys.exit(f"{error}; the same command goes on from what is scored")
    except RecordError as error:
        sys.exit(f"error: {error}")
    except (OSError, ValueError) as error:
        sys.exit(str(error))


def run(args) -> int:
    args.output.mkdir(parents=True, exist_ok=True)
    choice = ranking.Choice(args.within, args.by, args.keep, args.keep_share, args.min_score)
    source = EditSource(args.data, args.split) if args.data else None
    files, settings = scored(args, source) if source else ([args.scores], {"scores": str(args.scores)})
    if args.shard:
        print(f"{files[0]}: scored; a last run without --shard joins all")
        return 0
    about = {"choice": dataclasses.asdict(choice), "scored_by": settings}
    if (args.output / EditDataset.name / str(EditDataset.VERSION)).exists():  # it is written last
        before = json_files.read_object(args.output / "eval.json")
        check_same({**before["choice"], **before["scored_by"]}, {**about["choice"], **settings}, scoring.ADVICE)
        print(pages.summary(before))
        return 0
    table, rank, keep = ranking.write_manifest(args.output, files, choice)
    unused = {}
    if args.scores and source:
        gone = (f"not in {args.scores.name}", scoring.other(args.scores))
        matched = len(source) - sum(table.problems[problem] for problem in gone)
        unused = {"scores_of_other_edits": settings["judge.scores"] - matched}
    figures = pages.write(args.output, table, rank, keep, about | unused, source)
    print(pages.summary(figures))
    if args.keep and args.within == "global" and figures["n_kept"] < args.keep:
        print(f"{args.keep} were wanted")
    if not figures["n_kept"]:
        raise ValueError(f"nothing is kept; {args.output}/report.html shows the scores")
    if source:
        print(filtered(args, source, keep, table.tie, about))
    print(f"{args.output}/manifest.jsonl, {args.output}/eval.json, {args.output}/report.html")
    return 0


if __name__ == "__main__":
    sys.exit(main())
