"""Contact sheets: python -m edit_rl_jax.editworld sheet.png [--split test] [--task move] [--seed 0] [--rows 8]

A row is one edit: its source, then a candidate of every kind at rising severity; the instructions and the oracle's
verdicts are printed.
"""

import argparse

from PIL import Image

from edit_rl_jax.editworld import oracle, render
from edit_rl_jax.editworld.edits import KINDS, TASKS, candidate, random_edit
from edit_rl_jax.editworld.scene import SPLITS, rng


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("output", help="PNG file to write")
    parser.add_argument("--split", choices=SPLITS, default="train")
    parser.add_argument("--task", choices=TASKS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=8)
    args = parser.parse_args()
    images, white = [], render.quantise(render.background("sky", render.NATIVE) * 0 + 255)
    for row in range(args.rows):
        gen = rng("sheet", args.split, args.seed, row)
        edit = random_edit(gen, args.split, args.task)
        print(f"{row}: {edit.instruction} [{edit.task}]")
        images.append(render.render(edit.source))
        for kind in KINDS:
            severity = (row % 3 + 1) / 3
            made = candidate(gen, edit, kind, severity, args.split)
            images.append(white if made is None else made.render())
            if made is not None:
                v = oracle.score(images[-1], edit)
                print(f"   {kind:13s} {severity:.2f}  SC {v.sc}  PQ {v.pq}  overall {v.overall:.1f}")
    Image.fromarray(render.contact_sheet(images, len(KINDS) + 1)).save(args.output)


if __name__ == "__main__":
    main()
