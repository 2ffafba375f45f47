"""Keeps a run alive until it has finished: here, or from a small VM that watches in this machine's place."""

import dataclasses
import getpass
import json
import shlex
import signal
import tempfile
import time
from pathlib import Path

from cluster import HERE, HOPELESS, Problem, say


class GaveUp(Exception):
    """Says why the watcher does not go on: the first cause, and the last."""


class Watch:
    """Keeps one run alive. Causes are those since the last new checkpoint; the first of them is what is reported."""

    def __init__(self, pod):
        self.pod, self.c = pod, pod.c
        self.causes, self.step, self.seen = [], None, None
        self.in_a_row = {"start": 0, "silent": 0}

    def count(self, kind, cause):
        """Counts a cause, and gives up when there are too many of them without a new checkpoint."""
        if (kind, cause) != self.seen:
            say(f"{kind}: {cause}")
        step = self.pod.in_bucket("checkpoints/")
        if step != self.step:
            self.causes, self.step = [], step
        self.causes.append((kind, cause))
        own = [k for k, _ in self.causes].count("failed")
        hopeless = kind == "request" and HOPELESS.search(cause)
        if hopeless or own >= self.c.failures or len(self.causes) > self.c.restarts:
            first, last = self.causes[0][1], self.causes[-1][1]
            more = f"; last: {last}" if last != first else ""
            raise GaveUp(f"gave up after {len(self.causes)} without a new checkpoint; first cause: {first}{more}")

    def drop(self, kind, cause):
        self.count(kind, cause)
        self.in_a_row = dict.fromkeys(self.in_a_row, 0)
        self.pod.delete()

    def again(self, kind, cause):
        """Counts what may pass; after `failures` times in a row the slice is dropped for another one."""
        self.in_a_row[kind] += 1
        (self.drop if self.in_a_row[kind] >= self.c.failures else self.count)(kind, cause)

    def act(self):
        """Looks once and does what is to be done: returns the exit status, or None to go on."""
        if self.seen is None:
            self.pod.tidy()
        kind, text = self.pod.look()
        if (kind, text) != self.seen:
            say(f"{kind}: {text}")
            self.seen = kind, text
        if kind != "silent":
            self.in_a_row["silent"] = 0
        if kind in ("waiting", "running"):
            return None
        if kind == "stopped":
            return 3
        if self.pod.in_bucket("finished"):
            say("the run has finished")
            return 0
        if kind == "absent":
            try:
                self.pod.create()
            except Problem as problem:
                self.count("request", str(problem))
        elif kind == "lost":
            self.drop(kind, text)
        elif kind == "silent":
            self.again(kind, text)
        else:
            if kind != "ready":
                self.count(kind, text)
            try:
                self.pod.start()
                self.in_a_row["start"] = 0
            except Problem as problem:
                self.again("start", str(problem))
        return None

    def loop(self):
        problems = []
        while True:
            try:
                status = self.act()
                problems = []
                if status is not None:
                    return status
            except Problem as problem:  # gcloud itself: the network, a service that is down
                say(f"gcloud: {problem}")
                problems.append(str(problem))
                if HOPELESS.search(str(problem)) or len(problems) > self.c.restarts:
                    raise GaveUp(f"gave up: gcloud failed {len(problems)} times; first cause: {problems[0]}") from None
            time.sleep(self.c.period)


def clean(pod, save):
    """Deletes the request, whatever happened; `save` first asks a running job to save and stop."""
    if save:
        say("asking the job to save and stop")
        pod.hosts(("stop",))
    for _ in range(pod.c.restarts):
        try:
            pod.delete()
            if pod.c.name not in pod.own():  # a request that was being made while the watcher was interrupted
                return
        except Problem as problem:
            say(f"could not delete the request: {problem}")
            if HOPELESS.search(str(problem)):
                break
        time.sleep(pod.c.period)
    say(f"DELETE BY HAND, it costs money: gcloud compute tpus queued-resources delete {pod.c.name} --force")


def interrupted(*_):
    raise KeyboardInterrupt


def watch(pod, keep=False):
    """Keeps the run alive until it has finished, and deletes the request in the end: returns the exit status."""
    if pod.dry:  # one life of a run, every command once
        pod.create(), pod.look(), pod.start(), pod.hosts(("status",)), pod.in_bucket("finished"), pod.delete()
        return 0
    watcher, status = Watch(pod), 1
    for sign in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(sign) != signal.SIG_IGN:  # nohup's
            signal.signal(sign, interrupted)
    try:
        status = watcher.loop()
    except GaveUp as reason:
        say(str(reason))
    except KeyboardInterrupt:
        status = 130
    finally:
        for sign in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(sign, signal.SIG_IGN)
        if keep or status == 3:
            say(f"the slice is kept and costs money; `pod.py delete` deletes it: {pod.c.name}")
        else:
            clean(pod, save=status == 130 and (watcher.seen or [""])[0] in ("ready", "running", "alone"))
    return status


def watcher(pod):
    """Makes a small VM that watches in this machine's place, goes on after a restart and deletes itself at the end."""
    c, vm, user = pod.c, f"{pod.c.name}-watcher", getpass.getuser()
    store = f"{c.workdir}/watcher"
    config = [f"{k} = {json.dumps(v)}" for k, v in dataclasses.asdict(c).items()]  # JSON's strings and lists are TOML's
    here = shlex.join(["gcloud", "compute", "instances", "delete", vm, *pod.where, "--quiet"])
    with pod.packed() as archive, tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "cluster.toml").write_text("\n".join(config) + "\n")
        watching = f"python3 pod.py watch cluster.toml --archive {Path(archive).name} 2>&1 | tee -a watch.log"
        work = f"cd && gcloud storage cp '{store}/*' . && {watching}; gcloud storage cp watch.log {c.workdir}/watch.log"
        script = f"#!/bin/bash\nid {user} || useradd --create-home --shell /bin/bash {user}\n"
        script += f"sudo -H -u {user} bash -c {shlex.quote(work)}\n{here}\n"
        (Path(folder) / "startup.sh").write_text(script)
        tools = (HERE / f for f in ("pod.py", "cluster.py", "watch.py", "host.sh"))
        files = [archive, f"{folder}/cluster.toml", *tools]
        pod.gcloud("storage", "cp", *map(str, files), f"{store}/")
        image = ["--machine-type=e2-small", "--image-family=debian-12", "--image-project=debian-cloud"]
        startup = ["--scopes=cloud-platform", f"--metadata-from-file=startup-script={folder}/startup.sh"]
        pod.gcloud("compute", "instances", "create", vm, *pod.where, *image, *startup, "--quiet")
    say(f"{vm} watches; see: gcloud compute instances get-serial-port-output {vm} {' '.join(pod.where)}")
    return 0
