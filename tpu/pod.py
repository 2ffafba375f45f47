#!/usr/bin/env python3
"""Asks for a Cloud TPU slice, runs one command on all its hosts, and keeps the run alive until it has finished.

    python3 tpu/pod.py watch my.toml        all of it: ask, set up, probe, launch, resume after preemption, delete
    python3 tpu/pod.py watcher my.toml      the same from a small VM of its own, which deletes itself at the end

`tpu/example.toml` is a cluster's file. Needs Python 3.11 and `gcloud` here, and not the package.
Exit status of `watch`: 0 finished, 1 gave up (the first cause is named), 3 stopped by `stop`, 130 interrupted. The
slice is deleted in the end; only `stop` and --keep leave it.
"""

import argparse
import contextlib
import shlex
import subprocess
import sys

from cluster import Cluster, Pod, Problem, say
from watch import watch, watcher


def main(argv=None):
    argv = list(sys.argv[1:] if argv is None else argv)
    mine, rest = (argv[: argv.index("--")], argv[argv.index("--") + 1 :]) if "--" in argv else (argv, [])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = "watch watcher create setup launch status logs ssh stop delete".split()
    parser.add_argument("verb", choices=verbs, help="setup: bring, probe and launch; launch: only that")
    parser.add_argument("cluster", help="the cluster's file; `-- COMMAND` takes the place of its command")
    parser.add_argument("--run-id", default="", help="takes the place of the file's run_id")
    parser.add_argument("--dry-run", action="store_true", help="print every command and run none")
    parser.add_argument("--keep", action="store_true", help="watch: leave the slice in the end")
    parser.add_argument("--archive", help="bring this .tar.gz instead of the checkout's committed state")
    parser.add_argument("--node", default="0", help="logs, ssh: which slice")
    parser.add_argument("--worker", default="0", help="logs, ssh: which host of the slice, or all")
    parser.add_argument("--lines", type=int, default=50, help="logs: how many; 0: follow")
    args = parser.parse_args(mine)
    cluster = Cluster.read(args.cluster, args.run_id, () if args.verb == "ssh" else rest)
    pod = Pod(cluster, args.dry_run, args.archive)
    at = [f"--node={args.node}", f"--worker={args.worker}"]
    try:
        if args.verb == "watch":
            return watch(pod, args.keep)
        if args.verb == "watcher":
            return watcher(pod)
        if args.verb in ("logs", "ssh"):
            lines = f"-n {args.lines}" if args.lines else "-F"
            command = f"tail {lines} ~/runs/{cluster.run_id}.log" if args.verb == "logs" else shlex.join(rest)
            print(shlex.join(pod.ssh(command, at))) if pod.dry else None
            return 0 if pod.dry else subprocess.call(pod.ssh(command, at))
        if args.verb == "create":
            pod.create()
        elif args.verb == "setup":
            pod.start()
        elif args.verb == "launch":
            pod.launch()
        elif args.verb == "stop":
            pod.all_hosts("stopped", ("stop",))
        elif args.verb == "delete":
            with contextlib.suppress(Problem):  # most clusters have none
                pod.gcloud("compute", "instances", "delete", f"{cluster.name}-watcher", *pod.where, "--quiet")
            pod.delete()
        else:
            for name, (state, reason) in pod.own().items():
                print(name, state, reason)
            print(*pod.look())
    except Problem as problem:
        say(f"{args.verb}: {problem}")
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
