"""Plays Cloud TPU for `tpu/pod.py`: queued resources, nodes, hosts, ssh and a bucket, behind a program named `gcloud`.

A story is a list of lives, one a request: how long it waits, whether it is granted, what goes wrong when the job is
started, and how each launch of the job ends. Time passes with every look at the queue. What the watcher must never do
(ask twice, launch without probing, delete a healthy run, touch what is not its own) is noted in `violations`.
"""

import json
import os
import random
import signal
import socketserver
import threading
from dataclasses import dataclass, field

GCLOUD = """#!/usr/bin/env bash
exec 3<>"/dev/tcp/127.0.0.1/$FAKE_PORT"
printf '%s\\0' "$#" "$@" >&3
IFS= read -r code <&3
while IFS= read -r line; do
  case $line in o*) printf '%s\\n' "${line#o}" ;; e*) printf '%s\\n' "${line#e}" >&2 ;; esac
done <&3
exit "$code"
"""
MISSING = "ERROR: (gcloud) One or more URLs matched no objects."


@dataclass
class Life:
    """One request: states before it is granted, a (state, message) that ends it unserved, and what then happens."""

    waits: list = field(default_factory=list)
    refused: tuple | None = None
    start: list = field(default_factory=list)  # (kind, times) in turn: busy, setup, chips, deaf, alone
    acts: list = field(default_factory=list)  # one a launch: (looks that it runs, how it ends)


class Cloud:
    """Answers gcloud's arguments with (exit status, stdout, stderr), by a story."""

    def __init__(self, lives, *, slices=1, hosts=2, dead=(), glitches=0.0, stop_at=None, denied=False, seed=0):
        self.lives, self.hosts, self.denied, self.stop_at = list(lives), hosts, denied, stop_at
        self.nodes = ["run"] if slices == 1 else [f"run-{i}" for i in range(slices)]
        self.rng, self.glitches, self.process = random.Random(seed), glitches, None
        self.dead = {name: ("me", state) for name, state in dead} | {"theirs": ("you", "SUSPENDED")}
        self.life = self.state = self.act = None
        self.message = self.node_state = ""
        self.jobs, self.probed = {}, False
        self.step, self.listed, self.finished = 0, None, False
        self.first = self.latest = None  # the cause that the watcher is to name if it gives up
        self.commands, self.violations, self.calls, self.serial = set(), [], 0, 0

    def fault(self, text):
        self.latest = text
        return text

    def number(self):
        self.serial += 1
        return f"#{self.serial}#"

    def workers(self):
        return [f"{node}-w-{i}" for node in self.nodes for i in range(self.hosts)]

    def __call__(self, args):
        self.calls += 1
        if self.calls == self.stop_at:
            os.kill(self.process.pid, signal.SIGINT)
        if args[0] != "storage" and self.rng.random() < self.glitches and "--command" not in " ".join(args):
            return 1, "", self.fault("ERROR: (gcloud) There was a problem: network is unreachable")
        words = [a for a in args if not a.startswith("--")]
        flags = dict(a[2:].partition("=")[::2] for a in args if a.startswith("--"))
        if words[0] == "alpha":
            words.pop(0)
        if words[:3] == ["compute", "tpus", "queued-resources"]:
            return getattr(self, words[3])(*words[4:], **{k.replace("-", "_"): v for k, v in flags.items()})
        if words[:4] == ["compute", "tpus", "tpu-vm", "list"]:
            return 0, json.dumps(self.node_list()), ""
        if words[:2] == ["storage", "ls"]:
            return self.ls(words[2])
        return 2, "", f"ERROR: (gcloud) unrecognized arguments: {' '.join(args)}"

    # ---- the queue

    def list(self, **flags):
        self.tick()
        rows = [(name, owner, state, "") for name, (owner, state) in self.dead.items()]
        rows += [("run", "me", self.state, self.message)] if self.state else []
        if self.state in ("FAILED", "SUSPENDED", "SUSPENDING", "STATE_UNSPECIFIED"):
            self.fault(f"the request is {self.state}")
        return 0, json.dumps([self.row(*row) for row in rows]), ""

    def row(self, name, owner, state, message):
        state = {"state": state} | ({"failedData": {"error": {"message": message}}} if message else {})
        spec = [{"nodeId": name, "node": {"labels": {"edit-rl-owner": owner}}}]
        return {"name": f"projects/p/locations/z/queuedResources/{name}", "tpu": {"nodeSpec": spec}, "state": state}

    def tick(self):
        if self.state is None:
            return
        if self.life.waits:
            self.state = self.life.waits.pop(0)
        elif self.state == "SUSPENDING":
            self.state = "SUSPENDED"
        elif self.life.refused:
            self.state, self.message = self.life.refused
        elif self.state in ("WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "ACCEPTED"):
            self.state = "ACTIVE"
        elif self.state == "ACTIVE" and self.act and set(self.jobs.values()) == {"running"}:
            looks, end = self.act
            self.act = (looks - 1, end)
            if looks > 0:
                self.step += 1
            else:
                self.end(end)

    def end(self, how):
        everyone, one = self.workers(), self.rng.choice(self.workers())
        self.act = None
        if how == "finish":
            self.finished, self.jobs = True, dict.fromkeys(everyone, "exit-0 5")
        elif how == "interrupt":
            self.jobs = dict.fromkeys(everyone, "exit-0 5")
        elif how == "crash":  # the others die of it, later
            self.jobs = dict.fromkeys(everyone, "exit-1 20 a peer is gone") | {one: f"exit-1 10 {self.number()}"}
        elif how == "reboot":
            self.jobs[one] = "dead 30"
        elif how in ("SUSPENDING", "SUSPENDED", "FAILED", "STATE_UNSPECIFIED"):
            self.state = how
        elif how == "vanish":
            self.state = None
        else:  # a node's state
            self.node_state = how

    def create(self, name, **flags):
        if self.denied:
            return 1, "", self.fault("ERROR: PERMISSION_DENIED: tpu.nodes.create")
        if any(owner == "me" for owner, _ in self.dead.values()):
            return 1, "", self.fault("ERROR: RESOURCE_EXHAUSTED: quota")
        if self.state:
            self.violations.append("asked twice")
        assert flags["labels"] == "edit-rl-owner=me" and "async" in flags
        assert flags.get("node_id") == "run" or flags["node_count"] == str(len(self.nodes))
        self.life = self.lives.pop(0) if len(self.lives) > 1 else self.copy(self.lives[0])
        self.state, self.message, self.node_state, self.jobs, self.probed = "CREATING", "", "", {}, False
        return 0, "", ""

    def copy(self, life):
        return Life(list(life.waits), life.refused, list(life.start), list(life.acts))

    def delete(self, name, **flags):
        if name == "theirs":
            self.violations.append("deleted what is another's")
        if name != "run":
            return (0, "", "") if self.dead.pop(name, None) else (1, "", "ERROR: NOT_FOUND")
        healthy = self.state == "ACTIVE" and not self.node_state and "running" in self.jobs.values()
        if healthy and self.act and not self.stop_at and set(self.jobs.values()) == {"running"}:
            self.violations.append("deleted a healthy run")
        was, self.state = self.state, None
        return (0, "", "") if was else (1, "", "ERROR: NOT_FOUND: no such queued resource")

    # ---- its hosts

    def node_list(self):
        nodes = []
        for name in self.nodes if self.state == "ACTIVE" else []:
            node = {"name": f"projects/p/locations/z/nodes/{name}", "state": "READY", "health": "HEALTHY"}
            node["networkEndpoints"] = [{}] * self.hosts
            if name == self.nodes[-1] and self.node_state:
                self.fault(f"node {name} is ")
                if self.node_state == "gone":
                    continue
                node["health" if self.node_state.startswith("UNHEALTHY") else "state"] = self.node_state
            nodes.append(node)
        return nodes

    def ready(self):
        return self.state == "ACTIVE"

    def scp(self, *files, **flags):
        return (0, "", "") if self.ready() else (1, "", "ERROR: the node is not there")

    def ssh(self, name, command="", **flags):
        if not self.ready():
            return 255, "", self.fault("ERROR: the node is not there")
        assert flags["node"] == flags["worker"] == "all"
        lines, error = [], ""
        kind = self.life.start[0][0] if self.life.start else ""
        launching = " launch " in command
        probing = " probe " in f"{command} "
        applies = {"deaf": True, "alone": launching, "chips": probing and len(self.workers()) > 1}
        if not applies.get(kind, probing):
            kind = ""
        if kind:
            kind, times = self.life.start[0]
            self.life.start[0] = (kind, times - 1)
            if times <= 1:
                self.life.start.pop(0)
        if kind in ("deaf", "alone"):
            error = self.fault(f"ERROR: ssh: connect to host: timed out {self.number()}")
        answering = self.workers()[:-1] if error else self.workers()
        odd = self.rng.choice(self.workers())
        for part in command.split(" && "):
            _, _, action, run, *rest = part.split(" ")
            assert run == "r7"
            for worker in answering:
                answer = self.host(worker, action, kind if worker == odd else "", rest)
                lines += [f"@{worker} {answer}"] if answer else []
        if probing and not error and kind not in ("busy", "setup", "chips"):
            self.probed = True
        if launching and not error:
            self.act = self.life.acts.pop(0) if self.life.acts else (3, "finish")
        return (255 if error else 0), "\n".join(lines), error

    def host(self, worker, action, kind, rest):
        if action == "quit":
            self.jobs[worker] = "none 1"
        if action == "setup" and kind == "setup":
            return "bad 3 " + self.fault(f"set-up failed: {self.number()}")
        if action == "probe":
            if kind == "busy":
                return "bad 4 " + self.fault(f"Device or resource busy: '/dev/vfio/0' {self.number()}")
            if kind == "chips":
                self.fault(f"{worker}: 3 chips where others have 4")
            return "" if kind == "setup" else "ok 4 3" if kind == "chips" else "ok 4 4"
        if action == "launch":
            if not self.probed:
                self.violations.append("launched without probing")
            self.commands.add(" ".join(rest))
            self.jobs[worker] = "running"
            return "running 6"
        if action == "stop":
            self.jobs[worker] = "stopped 9"
            return "stopped 9"
        if action == "status":
            job = self.jobs.get(worker, "none 1")
            running = "running" in self.jobs.values()
            if job.startswith(("exit-1 10", "dead")) or (job == "running" and set(self.jobs.values()) != {"running"}):
                self.fault(f"{worker}: " if job != "running" else f"only {worker} started")
            if job == "exit-0 5" and not running and not self.finished:
                self.fault("the job ended before it had finished")
            return job if job != "running" else "running 6"
        return ""

    # ---- the bucket

    def ls(self, url):
        if url.endswith("/finished"):
            return (0, url, "") if self.finished else (1, "", MISSING)
        if self.first is None or self.listed != self.step:
            self.first = self.latest
        self.listed = self.step
        return (0, f"{url}{self.step}/", "") if self.step else (1, "", MISSING)


def story(seed):
    """Draws a story from a seed: (the arguments of a Cloud, whether every life of it fails)."""
    rng = random.Random(seed)
    waits = lambda: rng.choices(["WAITING_FOR_RESOURCES", "PROVISIONING", "CREATING", "ACCEPTED"], k=rng.randint(0, 3))
    refused = lambda: rng.choice([("FAILED", "no capacity"), ("SUSPENDED", ""), ("SUSPENDING", ""), ("FAILED", "")])
    lost = ["SUSPENDING", "SUSPENDED", "FAILED", "STATE_UNSPECIFIED", "vanish", "gone"]
    lost += ["PREEMPTED", "TERMINATED", "REPAIRING", "UNHEALTHY_MAINTENANCE", "UNHEALTHY_TENSORFLOW"]
    ended = ["crash", "reboot", "interrupt"]

    def life():
        if rng.random() < 0.25:
            return Life(waits(), refused())
        start = [
            (kind, rng.randint(1, 4)) for kind in ("busy", "setup", "chips", "deaf", "alone") if rng.random() < 0.2
        ]
        acts = [(rng.randint(0, 3), rng.choice(ended)) for _ in range(rng.randint(0, 2))]
        return Life(waits(), None, start, [*acts, (rng.randint(0, 3), rng.choice(lost))])

    lives = [life() for _ in range(rng.randint(0, 4))]
    lives.append(Life(waits(), acts=[(rng.randint(0, 3), "finish")]))
    cursed = rng.random() < 0.2
    if cursed:
        curse = [
            Life(waits(), refused()),
            Life(acts=[(0, "crash")] * 9),
            Life(start=[("busy", 99)]),
            Life(start=[("deaf", 99)]),
        ]
        lives = [rng.choice(curse)]
    settings = {"slices": rng.choice([1, 1, 2]), "hosts": rng.choice([1, 2, 4]), "seed": seed}
    settings["dead"] = [(f"old-{i}", rng.choice(["FAILED", "SUSPENDED"])) for i in range(rng.randint(0, 2))]
    settings["glitches"] = rng.choice([0, 0, 0.05])
    settings["denied"] = cursed and rng.random() < 0.2
    if not cursed and rng.random() < 0.15:
        settings["stop_at"] = rng.randint(1, 40)
    return {"lives": lives, **settings}, cursed


class _Handler(socketserver.StreamRequestHandler):
    def handle(self):
        read = lambda: b"".join(iter(lambda: self.rfile.read(1), b"\0")).decode()
        args = [read() for _ in range(int(read()))]
        try:
            code, out, error = self.server.cloud(args)
        except Exception as problem:  # noqa: BLE001  a fault of the play itself, which the test must see
            self.server.cloud.violations.append(repr(problem))
            code, out, error = 1, "", repr(problem)
        lines = [str(code), *("o" + line for line in out.splitlines()), *("e" + line for line in error.splitlines())]
        self.wfile.write(("\n".join(lines) + "\n").encode())


class Server:
    """Serves a Cloud to the program `gcloud` of a folder: `with Server(cloud, folder) as env`."""

    def __init__(self, cloud, folder):
        (folder / "gcloud").write_text(GCLOUD)
        (folder / "gcloud").chmod(0o755)
        self.server = socketserver.TCPServer(("127.0.0.1", 0), _Handler)
        self.server.cloud = cloud
        port = str(self.server.server_address[1])
        self.env = {"PATH": f"{folder}:{os.environ['PATH']}", "FAKE_PORT": port, "LOGNAME": "me", "HOME": str(folder)}

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self.env

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()
