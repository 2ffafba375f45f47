"""Put results of benchmarks of editors side by side: tables, paired differences, judges, one page.

    python scripts/leaderboard.py runs/gedit_* --output runs/leaderboard

Each folder is an OUTPUT of eval_editor.py. Editors that one judge has seen are compared on the same items (paired
bootstrap), judges that have seen the same edits by rank correlation; one editor judged by one judge twice shows the
judge's drift (the folder that is given first is the old one). OUTPUT gets `leaderboard.json` and `leaderboard.html`, a
page under 5 MB that opens from disk without network, with pictures and each judge's words.
"""

import argparse
import sys

from edit_rl_jax.evals.editors import leaderboard
from edit_rl_jax.ranges import INT32_OR_0, flag


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", metavar="DIR", help="results of eval_editor.py")
    parser.add_argument("--output", required=True, metavar="DIR")
    parser.add_argument("--seed", type=flag(int, INT32_OR_0), default=0, help="of the bootstrap")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    try:
        found = leaderboard.build(args.folders, args.output, args.seed)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(leaderboard.summary(found))
    print(f"{args.output}/leaderboard.html, {args.output}/leaderboard.json")
    return 0


if __name__ == "__main__":
    sys.exit(main())
