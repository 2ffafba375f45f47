"""Make training data (ArrayRecord) for the verifier: of each edit the best of several replies.

    python scripts/make_verifier_data.py --data data/edits --config verifier_data.toml --output data/verifier
    python scripts/train_rm.py --config configs/rrm.py:7b --workdir runs/rrm --config.data.train=data/verifier

The config says who writes what (docs/verifier.md shows one): the principles of each (source, instruction), candidate
replies about each edit (end points and folders of our own models, by temperature and system text), gold verdicts by a
verifier that sees all candidates, and, as wanted, a filter of hard instructions. The best candidate has the highest
accuracy against the gold verdicts; of equals the higher average, then the higher final score, then the one that comes
first. `--world N` takes edits of the built-in world instead, which have exact principles and the oracle's verdicts.

OUTPUT gets the dataset (the splits of --data, their order and keys), `manifest.SPLIT.jsonl` (a line an edit: its
candidates, gold verdicts, what was chosen, or why the edit was rejected), `principles.jsonl` (a file of sets),
`journal.jsonl` (all that was asked and answered, appended at once) and `eval.json` (counts, failures by kind, tokens
and costs). Nothing that was answered is asked again: the same command goes on where a killed one stopped, and a changed
config asks only for what it changes. Where some requests got no answer the dataset is not written, and the exit status
is 1.

`--principles-only` stops after the principles, of a dataset of any kind (human pairs for GCPO among them) or of prompts
for the RL of editors; the config then needs neither candidates nor a verifier:

    python scripts/make_verifier_data.py --principles-only --data data/pairs --config principles.toml --output data/sets
    python scripts/make_verifier_data.py --principles-only --prompts prompts.jsonl --config principles.toml --output out
"""

import argparse
import dataclasses
import itertools
import json
import shutil
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds

from edit_rl_jax import json_files
from edit_rl_jax.data.errors import ImageError
from edit_rl_jax.data.images import image_size
from edit_rl_jax.data.principles import principles_id
from edit_rl_jax.data.records import EditRecord, PreferenceRecord, RecordError, VerifierRecord, expect
from edit_rl_jax.data.resumable import check_same
from edit_rl_jax.data.tfds_builder import EditSource, VerifierDataset, split_names, write_dataset
from edit_rl_jax.ranges import INT32_OR_0, flag
from edit_rl_jax.rewards.edit_rrm.cold_start import config as configs
from edit_rl_jax.rewards.edit_rrm.cold_start import costs, making
from edit_rl_jax.rewards.edit_rrm.cold_start.journal import kind
from edit_rl_jax.rewards.edit_rrm.writers import Instructed, Instruction
from edit_rl_jax.rewards.serving.service import ServiceError


def parse(argv=None) -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    origin = p.add_mutually_exclusive_group(required=True)
    origin.add_argument("--data", metavar="DIR", help="dataset of edits, by prepare_data.py")
    help = "N training edits of the built-in world, and more for the other splits"
    origin.add_argument("--world", type=flag(int, "[1, 1e9]"), metavar="N", help=help)
    help = "JSON lines of source and instruction, as train_grpo.py reads them (with --principles-only)"
    origin.add_argument("--prompts", type=Path, metavar="FILE", help=help)
    p.add_argument("--principles-only", action="store_true", help="write principles.jsonl, a file of sets, and no data")
    p.add_argument("--config", type=Path, required=True, metavar="FILE", help=".toml or .json: who writes what")
    p.add_argument("--output", type=Path, required=True, metavar="DIR")
    p.add_argument("--split", action="append", metavar="NAME", help="of the data, may be repeated (default: all)")
    p.add_argument("--limit", type=flag(int, "[1, 1e12]"), metavar="N", help="at most N edits of each split")
    p.add_argument(
        "--at-once", type=flag(int, "[1, 4096]"), default=16, help="requests in flight (default: %(default)s)"
    )
    help = "edits whose replies are asked for together (default: %(default)s)"
    p.add_argument("--chunk", type=flag(int, "[1, 100000]"), default=256, help=help)
    p.add_argument("--again", action="store_true", help="ask again for what was refused or could not be read")
    help = "write the dataset though some requests got no answer: their edits are rejected"
    p.add_argument("--without-unanswered", action="store_true", help=help)
    help = "ask nothing: count the requests, their tokens (roughly) and what they cost at the config's prices"
    p.add_argument("--dry-run", action="store_true", help=help)
    p.add_argument("--seed", type=flag(int, INT32_OR_0), default=0, help="of the world (default: %(default)s)")
    p.add_argument("--resolution", type=flag(int, "[8, 4096]"), default=84, help="of its images (default: %(default)s)")
    args = p.parse_args(argv)
    if args.prompts and not args.principles_only:
        p.error("--prompts has no edits to reply about: it goes with --principles-only")
    return args


class Prompts:
    """The lines of a file of prompts. Raises ConfigError for a malformed one, OSError."""

    def __init__(self, file: Path):
        from edit_rl_jax.rl.editors.prompts import Lines  # JAX, which the rest does without

        self._lines = Lines(file, 8, 8)
        self.data_hash, self.notes = self._lines.data_hash, {}

    def __len__(self) -> int:
        return len(self._lines)

    def __getitem__(self, index: int) -> Instruction:
        return Instruction(*self._lines.encoded(index))


class Edits:
    """The edits of a split, the first `limit` of them; each of one of `kinds`."""

    def __init__(self, source, limit: int | None, kinds: tuple[type, ...] = (EditRecord, VerifierRecord)):
        self.source, self.size, self.kinds = source, min(limit or len(source), len(source)), kinds

    def __iter__(self) -> Iterator[Any]:
        return (expect(self.source[i], *self.kinds) for i in range(self.size))

    def chunks(self, size: int) -> Iterator[list[Any]]:
        edits = iter(self)
        while chunk := list(itertools.islice(edits, size)):
            yield chunk


def splits_of(args) -> tuple[dict[str, Edits], dict]:
    """Returns the edits of each split, and what is known of where they come from."""
    if args.world:
        from edit_rl_jax.editworld.verifier import VerifierRecords

        sizes = {"train": args.world, "validation": max(1, args.world // 20), "test": max(1, args.world // 10)}
        made = {k: VerifierRecords(k, n, args.seed, args.resolution) for k, n in sizes.items()}
        notes = {"origin": f"EditWorld, seed {args.seed}, {args.resolution} pixels"}
    elif args.prompts:
        made, notes = {"prompts": Prompts(args.prompts)}, {}
    else:
        made = {name: EditSource(args.data, name) for name in split_names(args.data)}
        notes = {k: v for k, v in next(iter(made.values())).notes.items() if k != "data_hash"}
    unknown = [name for name in args.split or () if name not in made]
    if unknown:
        raise ValueError(f"--split: there is no {unknown[0]!r}; there are {', '.join(made)}")
    kinds = (EditRecord, VerifierRecord, *((PreferenceRecord, Instruction) if args.principles_only else ()))
    return {k: Edits(v, args.limit, kinds) for k, v in made.items() if not args.split or k in args.split}, notes


def main(argv=None) -> int:
    args = parse(argv)
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        return run(args)
    except BlockingIOError:
        sys.exit(f"{args.output}: another process writes there")
    except ServiceError as error:
        sys.exit(f"{error}; the same command goes on from what is answered")
    except RecordError as error:
        sys.exit(f"error: {error}")
    except (OSError, ValueError, KeyError, ImportError) as error:
        sys.exit(" ".join(str(error.args[0] if isinstance(error, KeyError) else error).split()))


def run(args) -> int:
    config = configs.read(args.config, args.principles_only)
    splits, notes = splits_of(args)
    if args.dry_run:
        there = (args.output / making.JOURNAL).exists()
        maker = making.Maker(config, args.output, again=args.again) if there else None
        known = (maker.journal.counts, maker.left) if maker else ()
        found = costs.estimate(config, itertools.chain(*splits.values()), *known)
        print(f"{found['edits']} edits of {found['groups']} instructions; left to ask, roughly:")
        print("\n".join(costs.lines(found)))
        return 0
    about = described(config, splits, args)
    if args.principles_only:
        return write_principles(config, splits, about, args)
    home = args.output / VerifierDataset.name
    if (home / str(VerifierDataset.VERSION)).exists():  # it is written last
        before = json_files.read_object(args.output / "eval.json")
        check_same(before["made_by"], about, "take another folder for the output")
        print(summary(before))
        return 0
    maker = making.Maker(config, args.output, args.at_once, args.again)
    for edits in splits.values():
        for records in edits.chunks(args.chunk):
            maker.gather(records)
    tallies = {split: manifest(maker, split, edits, args.output) for split, edits in splits.items()}
    for split, _ in tallies.items():
        (args.output / f"manifest.{split}.part").replace(args.output / f"manifest.{split}.jsonl")
    tally = making.Tally.joined(tallies.values())
    figures = {"job": "make_verifier_data", **tally.to_json(), **costs.spent(config, maker.journal), "made_by": about}
    (args.output / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
    print(summary(figures))
    waiting = tally.rejected[making.OPEN]
    if waiting and not args.without_unanswered:
        said = f"{waiting} of {tally.edits} edits wait for an answer: the same command asks again,"
        raise ValueError(f"{said} --without-unanswered does without them")
    if not tally.kept:
        raise ValueError(f"nothing is kept; {args.output}/manifest.*.jsonl say why")
    for left in home.glob("incomplete.*") if home.is_dir() else ():  # by a run that was killed
        shutil.rmtree(left)
    best = lambda edits: (made.record for made in map(maker.made, edits) if made.record is not None)
    kept = {split: best(edits) for split, edits in splits.items() if tallies[split].kept}
    print(write_dataset(args.output, kept, notes=notes | {"verifier_data": about}))
    return 0


def readable(edits: Edits, which: range) -> tuple[list[Instructed], list[dict[str, Any]]]:
    """Returns the records with a picture, and a line that says why for each other. Raises RecordError for one of
    another kind."""
    there, lines = [], []
    for i in which:
        try:
            record = expect(edits.source[i], *edits.kinds)
            image_size(record.source, where=record.key)
            there.append(record)
        except ImageError as error:
            lines.append({"key": f"record {i}", "rejected": f"{error.reason}: {error}"})
    return there, lines


def write_principles(config: configs.Config, splits: dict[str, Edits], about: dict, args) -> int:
    """Writes principles.jsonl, a line of principles.SPLIT.jsonl for each record, and principles.json, the counts."""
    maker, found = making.Maker(config, args.output, args.at_once, args.again), {}
    for split, edits in splits.items():
        part = args.output / f"principles.{split}.part"
        with part.open("w", encoding="utf-8") as file:
            for start in range(0, edits.size, args.chunk):
                there, lines = readable(edits, range(start, min(start + args.chunk, edits.size)))
                maker.gather_principles(there)
                found |= {(split, line["key"]): kind(line["rejected"]) for line in lines}
                for record in there:
                    line = maker.line(record)
                    found[principles_id(record.source, record.instruction)] = kind(line["rejected"])
                    lines.append(line)
                file.writelines(json_files.dumps(line) + "\n" for line in lines)
        part.replace(args.output / f"principles.{split}.jsonl")
    tally = Counter(found.values())
    kept = tally.pop("", 0)
    counts = {"instructions": len(found), "kept": kept, "rejected": dict(tally.most_common())}
    figures = {"job": "make_verifier_data", **counts, **costs.spent(config, maker.journal), "made_by": about}
    (args.output / "principles.json").write_text(json.dumps(figures, indent=2) + "\n")
    lines = [f"{kept} of {len(found)} instructions have principles: {args.output / 'principles.jsonl'}"]
    lines += [f"  rejected: {n} {reason}" for reason, n in tally.most_common()]
    print("\n".join([*lines, "asked in all runs:", *costs.lines(figures)]))
    if tally[making.OPEN] and not args.without_unanswered:
        raise ValueError(f"{tally[making.OPEN]} wait for an answer: the same command asks again")
    if not kept:
        raise ValueError(f"there are no principles; {args.output}/principles.*.jsonl say why")
    return 0


def manifest(maker: making.Maker, split: str, edits: Edits, folder: Path) -> making.Tally:
    """Writes a line for each edit of a split, and counts them."""
    tally = making.Tally()
    with (folder / f"manifest.{split}.part").open("w", encoding="utf-8") as file:
        for made in map(maker.made, edits):
            tally.add(made)
            file.write(json_files.dumps(made.line) + "\n")
    return tally


def described(config: configs.Config, splits: dict[str, Edits], args) -> dict:
    """Returns what decides the result, flat, so that a difference names one thing."""
    told = dataclasses.asdict(config)
    told["endpoints"] = {name: {"model": e["model"], "extra": e["extra"]} for name, e in told["endpoints"].items()}
    world = {"world": args.world, "seed": args.seed, "resolution": args.resolution} if args.world else {}
    hashes = {f"data_hash.{name}": getattr(edits.source, "data_hash", "") for name, edits in splits.items()}
    return json.loads(json.dumps({**told, **world, **hashes, "limit": args.limit}))


def summary(figures: dict) -> str:
    """The figures in words."""
    lines = [f"{figures['kept']} of {figures['edits']} edits are kept"]
    lines += [f"  rejected: {n} {reason}" for reason, n in figures["rejected"].items()]
    lines += [f"  candidates of {reason}: {n} not taken" for reason, n in figures["candidates_not_taken"].items()]
    lines += [f"  chosen of {writer}: {n}" for writer, n in figures["chosen_by"].items()]
    shares = [
        (k, v)
        for k, v in (*figures["accuracy"]["chosen"].items(), ("all candidates", figures["accuracy"]["all_candidates"]))
    ]
    told = ", ".join(f"{name} {share:.3f}" for name, share in shares if share is not None)
    lines += [f"  agreement of the chosen with gold verdicts: {told}"] if told else []
    return "\n".join([*lines, "asked in all runs:", *costs.lines(figures)])


if __name__ == "__main__":
    sys.exit(main())
