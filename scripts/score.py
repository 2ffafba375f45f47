"""Score edits with a reward model: one triple by flags, or a file of them.

    python scripts/score.py --model runs/demo/model --source a.png --edited b.png --instruction "make the ball red"
    python scripts/score.py --model runs/demo/model --input pairs.jsonl --output scores.jsonl --passes 4

A line of the input is a JSON object with `source`, `edited` (paths, from the file's folder) and `instruction`; a line
of the output is the input's line with `scores`. All scores are on 0-25. An edit that cannot be read or judged has
`"valid": false`, the reason under `problem`, and null for every score; the exit status is 0 all the same, and 1 where
the only triple was not valid.
"""

import argparse
import json
import sys
from pathlib import Path

from edit_rl_jax.generation.sampler import Sampling, greedy
from edit_rl_jax.rewards.editscore.reward import EditScore, Judgement


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="DIR", help="model or adapter folder, or hub id")
    parser.add_argument("--base", metavar="DIR", help="base of an adapter, where it is not where the adapter says")
    parser.add_argument("--prompts", metavar="NAME", help="prompt texts; default: those stored with the model")
    one = parser.add_argument_group("one triple")
    one.add_argument("--source", metavar="IMAGE", type=Path)
    one.add_argument("--edited", metavar="IMAGE", type=Path)
    one.add_argument("--instruction", metavar="TEXT")
    many = parser.add_argument_group("a file of triples")
    many.add_argument("--input", metavar="JSONL", type=Path)
    many.add_argument("--output", metavar="JSONL", type=Path)
    how = parser.add_argument_group("generation")
    how.add_argument("--passes", type=int, default=1, help="answers a question, averaged; 1 is greedy unless sampled")
    how.add_argument("--temperature", type=float, help="default 0 (greedy) for one pass, 0.7 for more")
    how.add_argument("--top-k", type=int, default=20)
    how.add_argument("--top-p", type=float, default=0.9)
    how.add_argument("--max-new-tokens", type=int, default=512)
    how.add_argument("--rows", type=int, default=32, help="prompts a batch")
    how.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    triple = (args.source, args.edited, args.instruction)
    if (args.input is None) == all(t is None for t in triple):
        parser.error("give either --source, --edited and --instruction, or --input")
    if args.input is None and any(t is None for t in triple):
        parser.error("one triple needs --source, --edited and --instruction")
    if (args.input is None) != (args.output is None):
        parser.error("--input and --output go together")
    return args


def main(argv=None) -> int:
    args = parse(argv)
    temperature = (0.7 if args.passes > 1 else 0.0) if args.temperature is None else args.temperature
    sampling = greedy(args.max_new_tokens)
    if temperature > 0:
        sampling = Sampling(temperature, args.top_k, args.top_p, args.max_new_tokens)
    reward = EditScore.load(
        args.model,
        base=args.base,
        prompts=args.prompts,
        sampling=sampling,
        passes=args.passes,
        rows=args.rows,
        seed=args.seed,
    )
    if args.input is None:
        (judged,) = judge(reward, [{k: str(getattr(args, k)) for k in ("source", "edited", "instruction")}], Path())
        print(json.dumps(judged.to_json(), indent=2, ensure_ascii=False))
        return 0 if judged.valid else 1
    lines = read(args.input)
    judged = judge(reward, lines, args.input.parent)
    with args.output.open("w") as out:
        for line, one in zip(lines, judged):
            out.write(json.dumps({**line, "scores": one.to_json()}, ensure_ascii=False) + "\n")
    valid = [j.overall for j in judged if j.valid]
    mean = f", mean overall {sum(valid) / len(valid):.2f} of 25" if valid else ""
    print(f"{len(judged)} edits, {len(judged) - len(valid)} without a score{mean}: {args.output}")
    return 0


def read(path: Path) -> list[dict]:
    """The lines of a JSONL file. A malformed one stops the program, named."""
    lines = []
    for number, text in enumerate(path.read_text().splitlines(), 1):
        if not text.strip():
            continue
        try:
            line = json.loads(text)
            missing = [k for k in ("source", "edited", "instruction") if not isinstance(line.get(k), str)]
        except (json.JSONDecodeError, AttributeError) as error:
            sys.exit(f"{path}:{number}: not a JSON object: {error}")
        if missing:
            sys.exit(f"{path}:{number}: no text under {', '.join(missing)}")
        lines.append(line)
    return lines


def judge(reward: EditScore, lines: list[dict], folder: Path) -> list[Judgement]:
    """Judges the lines in order; a missing file is a judgement that is not valid."""
    triples, out = [], {}
    for i, line in enumerate(lines):
        try:
            images = [(folder / line[k]).read_bytes() for k in ("source", "edited")]
            triples.append((i, (*images, line["instruction"])))
        except OSError as error:
            out[i] = Judgement(problem=f"{error.filename}: {error.strerror}")
    out |= dict(zip((i for i, _ in triples), reward.score([t for _, t in triples])))
    return [out[i] for i in range(len(lines))]


if __name__ == "__main__":
    sys.exit(main())
