"""Makes a dataset (ArrayRecord) of edits or preferences from your files or from the built-in world.

  your rows        python scripts/prepare_data.py --input pairs.jsonl --output data/mine
  EditScore's      python scripts/prepare_data.py --input reward.json --output data/editscore --validation 0.02
  EditReward's     python scripts/prepare_data.py --input train.json --output data/editreward --validation 0.02
  the world        python scripts/prepare_data.py --world 5000 --output data/world
  its preferences  python scripts/prepare_data.py --world 5000 --preferences --noise 0.2 --output data/preferences
  its verifier's   python scripts/prepare_data.py --world 5000 --verifier --output data/verifier

Rows (.jsonl, .parquet): "source" and "edited" (paths relative to the file, or bytes in parquet), "instruction", and as
wanted "sc": [0-25, 0-25], "pq": [0-25, 0-25], "sc_reasoning", "pq_reasoning", "task", "key", "group". Rows of the
ShareGPT layout ("conversations", "images") are told by their keys; their instruction stands after a label such as
"Editing instruction:", or in a column "instruction".

A preference is a row of two edits of one source, told by its columns, and a dataset holds either edits or preferences:
  your rows        "source", "first", "second", "instruction", "prefers": 1, -1 or 0 (a tie), and as wanted
                   "scores": {"instruction_following": [1-4, 1-4], "visual_quality": [1-4, 1-4]}
  train.json       "path_src", "path1" (preferred), "path2", "prompt", "model1_dim1_score" (instruction following),
                   "model1_dim2_score" (visual quality), "model1_overall_score", "model2_...", "tie_case"; equal overall
                   scores are a tie
  EditReward-Data  (parquet) "source_img", "left_output_image", "right_output_image", "instruction",
                   "left_instruction_following_score", "left_quality_aesthetic_score", "right_...", "vote_type"
  benchmark pairs  "source_image", "candidate_1", "candidate_2", "instruction", "ranking", "comparison_type"
The shares of wins and ties are printed. With --disentangle-ties a tie in which each edit is better in one dimension
becomes two preferences, one for each edit; a tie whose labels are all equal stays one.

A row of a verifier's edit has "source", "edited", "instruction", "principles": [{"question", "category": "Follow",
"Keep" or "Quality"}], and "reply" (the text to learn), "verdicts": [0 or 1 for each principle] or both, and as wanted
"score" (0-10). make_verifier_data.py makes such data of edits.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import itertools
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import tensorflow_datasets as tfds

from edit_rl_jax.data import images, preferences, readers, sharegpt
from edit_rl_jax.data.records import EditRecord, PreferenceRecord, Record, RecordError
from edit_rl_jax.data.tfds_builder import EditSource, write_dataset
from edit_rl_jax.ranges import INT32_OR_0, flag


def parse(argv: list[str] | None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    origin = p.add_mutually_exclusive_group(required=True)
    origin.add_argument("--input", type=Path, nargs="+", metavar="FILE", help="rows: .jsonl, .json or .parquet")
    origin.add_argument(
        "--world", type=flag(int, "[1, 1e9]"), metavar="N", help="N training records of the built-in world"
    )
    add = p.add_argument
    add("--output", type=Path, required=True, metavar="DIR", help="folder of the dataset (must not hold one)")
    add("--image-root", type=Path, metavar="DIR", help="image paths are relative to it (default: the file's folder)")
    help = "ShareGPT rows: its first group is the instruction in the human turn (default: what follows the label)"
    add("--instruction-pattern", metavar="REGEX", help=help)
    help = "stop at the first bad row, or leave bad rows out and count them (default: %(default)s)"
    add("--on-bad-record", choices=("error", "skip"), default="error", help=help)
    help = "share of (source, instruction) groups that becomes the split 'validation' (default: none)"
    add("--validation", type=flag(float, "[0, 1)"), default=0.0, metavar="F", help=help)
    help = "an image whose header claims more megapixels is a bad row (default: %(default)g)"
    add("--max-mpx", type=flag(float, "(0, 1e6)"), default=images.MAX_PIXELS / 1e6, metavar="M", help=help)
    add("--no-decode", action="store_true", help="check image headers only: faster, misses truncated files")
    add("--limit", type=flag(int, "[1, 1e12]"), metavar="N", help="read at most N rows of each file")
    help = "preferences: a tie with opposite advantages becomes two opposite preferences"
    add("--disentangle-ties", action="store_true", help=help)
    kind = p.add_mutually_exclusive_group()
    kind.add_argument("--preferences", action="store_true", help="the world's records are pairs of edits")
    kind.add_argument("--verifier", action="store_true", help="they are edits with principles, verdicts and a reply")
    help = (
        "of the world's preferences: chance that a label is drawn at random, in training records (default: %(default)g)"
    )
    add("--noise", type=flag(float, "[0, 1]"), default=0.0, metavar="P", help=help)
    add("--seed", type=flag(int, INT32_OR_0), default=0, help="of the world (default: %(default)s)")
    add(
        "--resolution",
        type=flag(int, "[8, 4096]"),
        default=84,
        help="of the world's images, pixels (default: %(default)s)",
    )
    return p.parse_args(argv)


def names_of(files: list[Path]) -> list[str]:
    """What stands for each file in keys and messages: its name, with the folders where two files have one name."""
    count = collections.Counter(f.name for f in files)
    above = os.path.commonpath([os.path.dirname(os.path.abspath(f)) for f in files])
    return [f.name if count[f.name] == 1 else os.path.relpath(f, above) for f in files]


def held_out(record: Record, share: float) -> bool:
    """By the group's hash, so that candidates of one edit never lie on both sides."""
    return int.from_bytes(hashlib.sha256(record.group.encode()).digest()[:4], "little") < share * 2**32


def splits_of(make: Callable[[], Iterable[Record]], share: float) -> dict[str, Iterator[Record]]:
    """Two lazy passes over the same rows: images never all stand in memory."""
    if not share:
        return {"train": iter(make())}
    return {
        "train": (r for r in make() if not held_out(r, share)),
        "validation": (r for r in make() if held_out(r, share)),
    }


def main(argv: list[str] | None = None) -> int:
    args = parse(argv)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    skipped, scores, counts = readers.Skipped(), readers.Scores(), preferences.Counts()
    notes: dict = {"skipped": {}, "skipped_rows": {}}

    def counted(records: Iterable[Record]) -> Iterator[Record]:
        for record in records:
            if isinstance(record, PreferenceRecord):
                counts.add(record)
                yield from preferences.disentangled(record) if args.disentangle_ties else (preferences.flagged(record),)
            elif args.disentangle_ties:
                raise RecordError(record.key, "no preference", "--disentangle-ties, but this is an edit")
            else:
                if isinstance(record, EditRecord):
                    scores.add(record)
                yield record

    def from_files() -> Iterator[Record]:
        for tally in (skipped, scores, counts):
            tally.__init__()  # each split is a pass of its own over the same rows
        files = zip(args.input, names_of(args.input), strict=True)
        rows = (readers.read(f, args.image_root, args.instruction_pattern, name) for f, name in files)
        rows = itertools.chain.from_iterable(itertools.islice(r, args.limit) for r in rows)
        limit, decode = int(args.max_mpx * 1e6), not args.no_decode
        yield from counted(readers.checked(rows, args.on_bad_record, skipped, decode=decode, max_pixels=limit))
        notes.update(skipped=dict(skipped.counts), skipped_rows=skipped.rows, preferences=counts.as_dict())

    if args.world:
        sizes = {"train": args.world, "validation": max(1, args.world // 20), "test": max(1, args.world // 10)}
        worlds = {k: world(args, k, n) for k, n in sizes.items()}
        splits = {k: counted(map(w.__getitem__, range(len(w)))) for k, w in worlds.items()}
        notes["origin"] = f"EditWorld, seed {args.seed}, {args.resolution} pixels"
    else:
        splits = splits_of(from_files, args.validation)
        notes["origin"] = ", ".join(f.name for f in args.input)

    try:
        check_input(args)
        path = write_dataset(args.output, splits, notes=notes)
    except RecordError as e:
        print(f"error: {e}{advice(e, args, skipped)}", file=sys.stderr)
        return 1
    except (OSError, ImportError, ValueError) as e:
        print(f"error: {' '.join(str(e).split())}", file=sys.stderr)
        return 1
    said = ("" if args.world else str(skipped), str(scores), str(counts))
    print("\n".join(filter(None, said)), end="\n" if any(said) else "")
    if args.disentangle_ties:
        n = counts.ties[preferences.OPPOSITE]
        print(f"  {n} opposite ties became {2 * n} preferences")
    summary = {name: len(EditSource(path, name)) for name in splits}
    print(f"{path}: {json.dumps(summary)} records")
    return 0


def world(args: argparse.Namespace, split: str, size: int) -> Sequence[Record]:
    """The built-in world's records of a split; annotators err in training records only."""
    from edit_rl_jax.editworld.dataset import EditRecords
    from edit_rl_jax.editworld.preferences import Preferences

    if args.verifier:
        from edit_rl_jax.editworld.verifier import VerifierRecords

        return VerifierRecords(split, size, args.seed, args.resolution)
    if not args.preferences:
        return EditRecords(split, size, args.seed, args.resolution)
    return Preferences(split, size, args.seed, args.resolution, noise=args.noise if split == "train" else 0.0)


def check_input(args: argparse.Namespace) -> None:
    """Raises ValueError, naming the flag, for a wrong pattern, a file that is none, and a flag without effect."""
    if (args.preferences or args.verifier) and not args.world or args.noise and not args.preferences:
        raise ValueError("--preferences and --verifier are of --world, --noise of --preferences")
    try:
        sharegpt.finder(args.instruction_pattern)
    except ValueError as e:
        raise ValueError(f"--instruction-pattern: {e}") from None
    for file in args.input or ():
        if not file.is_file():
            raise ValueError(f"--input: {file} is {'a folder' if file.is_dir() else 'not there'}, a file wanted")


def advice(error: RecordError, args: argparse.Namespace, skipped: readers.Skipped) -> str:
    """What may help against the error that ended the job."""
    if error.reason != "no record":
        return " (--on-bad-record=skip leaves such rows out and counts them)" if args.on_bad_record == "error" else ""
    if "'validation'" in error.where:
        return " (a larger --validation?)"
    return f"\n{skipped}" if skipped.counts else f" (no row in {', '.join(map(str, args.input))})"


if __name__ == "__main__":
    sys.exit(main())
