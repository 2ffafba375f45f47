"""Serve a reward model over HTTP; requests of all clients are judged in common batches.

    export EDIT_RL_TOKEN=$(openssl rand -hex 16)
    python scripts/serve_reward.py --model runs/demo/model --port 8300
    python scripts/score.py --server http://127.0.0.1:8300 --input pairs.jsonl --output scores.jsonl

Needs `pip install ".[serve]"`. It binds to loopback unless --host says otherwise (put TLS in front of it then) and
wants the bearer token of $EDIT_RL_TOKEN or --token-file. `edit_rl_jax/rewards/serving/server.py` says what it answers.
At / it serves a page on which a judge is tried by hand: open the address that is printed in a browser.
SIGTERM and Ctrl-C let requests in flight finish for 30 seconds and refuse the others.
"""

import argparse
import dataclasses
import os
import sys
from pathlib import Path

from edit_rl_jax.cli import judge_flags
from edit_rl_jax.ranges import flag


def parse(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    judge_flags.add_arguments(parser, argv)
    parser.add_argument("--host", default="127.0.0.1", help="address to bind to (default 127.0.0.1)")
    parser.add_argument("--port", type=flag(int, "[0, 65535]"), default=8300, help="default 8300; 0 takes a free one")
    parser.add_argument("--token-file", metavar="FILE", type=Path, help=f"instead of ${judge_flags.TOKEN}")
    limits = parser.add_argument_group("limits")
    count, seconds = flag(int, "[1, 1e12]"), flag(float, "(0, 1e6]")
    limits.add_argument("--max-body", type=count, default=64 * 2**20, help="bytes of a request (default 64 MiB)")
    limits.add_argument("--max-items", type=count, default=64, help="edits a request (default 64)")
    limits.add_argument("--max-pixels", type=count, default=16_000_000, help="of an image (default 16,000,000)")
    limits.add_argument("--read-seconds", type=seconds, default=30.0, help="for a request to arrive (default 30)")
    limits.add_argument("--answer-seconds", type=seconds, default=600.0, help="for it to be judged (default 600)")
    limits.add_argument("--max-queue", type=count, default=4096, help="edits that wait (default 4096)")
    limits.add_argument("--batch", type=count, default=256, help="edits that are judged together (default 256)")
    return parser.parse_args(argv)


def main(argv=None) -> int:
    args = parse(argv)
    token = args.token_file.read_text().strip() if args.token_file else os.environ.get(judge_flags.TOKEN, "")
    if not token:
        sys.exit(f"no token: set ${judge_flags.TOKEN} or give --token-file")
    try:
        from edit_rl_jax.rewards.serving import server
    except ImportError as error:
        sys.exit(f'{error}: pip install "edit-rl-jax[serve]"')
    limits = server.Limits(
        body=args.max_body,
        items=args.max_items,
        pixels=args.max_pixels,
        read=args.read_seconds,
        answer=args.answer_seconds,
        queue=args.max_queue,
        batch=args.batch,
    )
    try:
        judge = judge_flags.from_arguments(args)
        app = server.create_app(judge, token, limits)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    print(f"limits {dataclasses.asdict(limits)}\nserving on http://{args.host}:{args.port}", flush=True)
    server.server(app, host=args.host, port=args.port, limits=limits).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
