"""A cluster's file, and what `gcloud` can be asked about the cluster: its request, its nodes, its hosts, its run."""

import contextlib
import dataclasses
import getpass
import json
import re
import shlex
import subprocess
import sys
import tempfile
import time
import tomllib
from pathlib import Path

HERE = Path(__file__).resolve().parent
RUNTIMES = {"v5litepod": "v2-alpha-tpuv5-lite", "v5p": "v2-alpha-tpuv5", "v6e": "v2-alpha-tpuv6e"}
WAITING = {"CREATING", "ACCEPTED", "WAITING_FOR_RESOURCES", "PROVISIONING", "DELETING"}  # not ACTIVE, not these: lost
HOPELESS = re.compile(r"PERMISSION_DENIED|INVALID_ARGUMENT|UNAUTHENTICATED|invalid choice|unrecognized arguments")
MISSING = re.compile(r"NOT_FOUND|was not found|matched no objects")
GOOD = {"none", "running", "stopped", "exit-0"}  # answers of `host.sh status`; the others: exit-N, dead
VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]*=")
ANSWER = re.compile(r"^@(\S+) (\S+)(?: (\d+))? ?(.*)$", re.M)


class Problem(Exception):
    """Says in words what went wrong, and where."""


class Lost(Problem):
    """Says that a slice is not healthy any more."""


@dataclasses.dataclass(frozen=True)
class Cluster:
    """A cluster's file (`example.toml` says what each setting is)."""

    name: str
    zone: str
    type: str
    bucket: str
    command: list[str]
    run_id: str = ""
    capacity: str = "spot"
    hours: int = 24
    slices: int = 1
    project: str = ""
    runtime: str = ""
    create_flags: list[str] = dataclasses.field(default_factory=list)
    ssh_flags: list[str] = dataclasses.field(default_factory=list)
    environment: list[str] = dataclasses.field(default_factory=list)
    period: float = 60
    failures: int = 3
    restarts: int = 10

    @classmethod
    def read(cls, path, run_id="", command=()):
        """Reads and checks a file; `run_id` and `command` take the place of its own. Raises SystemExit in words."""
        try:
            settings = tomllib.loads(Path(path).read_text())
        except (OSError, ValueError) as error:
            raise SystemExit(f"{path}: {error}") from None
        if run_id:
            settings["run_id"] = run_id
        if command:
            settings["command"] = list(command)
        fields = {field.name: field for field in dataclasses.fields(cls)}
        needed = [name for name in ("name", "zone", "type", "bucket", "command") if not settings.get(name)]
        types = {"slices": int, "hours": int, "failures": int, "restarts": int, "period": (int, float)}
        types |= dict.fromkeys(("command", "create_flags", "ssh_flags", "environment"), list)
        for wrong, problem in (
            (sorted(settings.keys() - fields), "no such setting"),
            (needed, "missing"),
            ([k for k, v in settings.items() if not isinstance(v, types.get(k, str))], "of the wrong type"),
        ):
            if wrong:
                raise SystemExit(f"{path}: {problem}: {', '.join(wrong)}")
        made = cls(**({"run_id": settings["name"], "runtime": ""} | settings))
        runtime = made.runtime or RUNTIMES.get(made.type.split("-")[0], "tpu-ubuntu2204-base")
        made = dataclasses.replace(made, runtime=runtime)
        for right, rule in (
            (re.fullmatch(r"[a-z]([a-z0-9-]{0,50}[a-z0-9])?", made.name), "name: lower case, digits and dashes"),
            (re.fullmatch(r"[A-Za-z0-9._-]+", made.run_id), "run_id: letters, digits, dots, dashes, underscores"),
            (made.bucket.startswith("gs://"), "bucket: gs://..., for every host writes there"),
            (made.capacity in CAPACITY, f"capacity: one of {', '.join(CAPACITY)}"),
            (
                min(made.slices, made.hours, made.failures, made.restarts) > 0,
                "slices, hours, failures, restarts: above 0",
            ),
            (made.period >= 0, "period: not under 0"),
            (all(VARIABLE.match(str(v)) for v in made.environment), "environment: a list of NAME=VALUE"),
        ):
            if not right:
                raise SystemExit(f"{path}: {rule}")
        return made

    @property
    def workdir(self):
        return f"{self.bucket.rstrip('/')}/{self.run_id}"

    @property
    def nodes(self):
        return [self.name] if self.slices == 1 else [f"{self.name}-{i}" for i in range(self.slices)]


CAPACITY = {
    "spot": lambda c: ["--spot"],
    "reserved": lambda c: ["--reserved"],
    "on-demand": lambda c: [],
    "flex-start": lambda c: ["--provisioning-model=flex-start", f"--max-run-duration={c.hours}h"],
}


def say(text):
    print(time.strftime("%H:%M:%S"), text, file=sys.stderr, flush=True)


class Pod:
    """What `gcloud` can be asked about one cluster. A call raises `Problem`; under `dry` it is only printed."""

    def __init__(self, cluster, dry=False, archive=None):
        self.c, self.dry, self.archive, self.expected = cluster, dry, archive, 0
        self.where = [f"--zone={cluster.zone}"] + ([f"--project={cluster.project}"] if cluster.project else [])
        self.owner = re.sub(r"[^a-z0-9_-]", "-", getpass.getuser().lower())

    def run(self, *args, timeout=900):
        """Runs a command: returns (what it printed, the problem or None)."""
        if self.dry:
            print(shlex.join(args))
            return "", None
        try:
            done = subprocess.run(args, capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=timeout)
        except FileNotFoundError:
            raise SystemExit(f"{args[0]} is not installed") from None
        except subprocess.TimeoutExpired:
            return "", Problem(f"no answer in {timeout} s: {shlex.join(args[:6])}")
        words = [line for line in done.stderr.splitlines() if line.strip()] or [f"exit status {done.returncode}"]
        errors = [line for line in words if "ERROR" in line or MISSING.search(line)] or words[-1:]
        return done.stdout, Problem(" ".join(errors)) if done.returncode else None

    def gcloud(self, *args, **options):
        out, problem = self.run("gcloud", *args, **options)
        if problem:
            raise problem
        return out

    def queue(self, verb, *args, alpha=False):
        tool = ["alpha"] if alpha else []
        return self.gcloud(*tool, "compute", "tpus", "queued-resources", verb, *args, *self.where, "--quiet")

    # ---- the request

    def own(self):
        """Lists this user's requests made by this program in the zone: {name: (state, the service's reason)}."""
        found = {}
        for request in json.loads(self.queue("list", "--format=json") or "[]"):
            name = request["name"].split("/")[-1]
            labels = [s.get("node", {}).get("labels", {}) for s in request.get("tpu", {}).get("nodeSpec", [])]
            if name == self.c.name or any(label.get("edit-rl-owner") == self.owner for label in labels):
                state = request.get("state", {})
                reason = state.get("failedData", {}).get("error", {}).get("message", "")
                found[name] = state.get("state", "no state"), reason
        return found

    def tidy(self):
        """Deletes own dead requests: they eat the quota until somebody does."""
        for name, (state, _) in self.own().items():
            if state not in WAITING | {"ACTIVE"}:
                say(f"deleting the dead request {name} ({state})")
                self.delete(name)

    def create(self):
        """Asks for the slices, after deleting own dead requests."""
        self.tidy()
        c = self.c
        many = [f"--node-count={c.slices}", f"--node-prefix={c.name}"]
        args = [
            f"--accelerator-type={c.type}",
            f"--runtime-version={c.runtime}",
            f"--labels=edit-rl-owner={self.owner}",
        ]
        args += (many if c.slices > 1 else [f"--node-id={c.name}"]) + CAPACITY[c.capacity](c) + c.create_flags
        self.queue("create", c.name, *args, "--async", alpha=c.capacity == "flex-start")

    def delete(self, name=None):
        """Deletes a request and its nodes, and waits for that; one that is not there is deleted already."""
        try:
            self.queue("delete", name or self.c.name, "--force")
        except Problem as problem:
            if not MISSING.search(str(problem)):
                raise

    def hosts_expected(self):
        """Counts the hosts of healthy nodes; raises `Lost` for a node in any other state."""
        nodes = self.gcloud("compute", "tpus", "tpu-vm", "list", *self.where, "--format=json", "--quiet")
        found = {node["name"].split("/")[-1]: node for node in json.loads(nodes or "[]")}
        for name in [] if self.dry else self.c.nodes:
            node = found.get(name, {"state": "gone"})
            words = [node.get(key, "") for key in ("state", "health", "healthDescription")]
            if words[0] != "READY" or words[1] not in ("HEALTHY", "HEALTH_UNSPECIFIED", ""):
                raise Lost(f"node {name} is {' '.join(filter(None, words))}")
        self.expected = sum(len(found[name].get("networkEndpoints", [])) for name in self.c.nodes if name in found)
        return self.expected

    # ---- its hosts

    def ssh(self, command, hosts=("--node=all", "--worker=all")):
        """Says the command that runs a shell command on hosts; without one it opens a shell."""
        run = [f"--command={command}"] if command else []
        return "gcloud compute tpus queued-resources ssh".split() + [
            *(self.c.name, *self.where, *hosts, *self.c.ssh_flags, *run)
        ]

    def hosts(self, *actions):
        """Runs actions of `host.sh` on all hosts at once: ({host: (word, seconds, text)}, the problem or None)."""
        commands = [shlex.join(["bash", "host.sh", action, self.c.run_id, *rest]) for action, *rest in actions]
        out, problem = self.run(*self.ssh(" && ".join(commands)), "--quiet", timeout=1800)
        return {host: (word, int(at or 0), text) for host, word, at, text in ANSWER.findall(out)}, problem

    def all_hosts(self, word, *actions):
        """Runs actions and wants `word` as the last answer of every host; raises `Problem` with the first cause."""
        expected = self.expected or self.hosts_expected()
        answers, problem = self.hosts(*actions)
        bad = sorted((at, host, text or got) for host, (got, at, text) in answers.items() if got != word)
        if bad:
            raise Problem(f"{bad[0][1]}: {bad[0][2]}")
        if len(answers) < expected or problem:
            raise Problem(f"{len(answers)} of {expected} hosts answered: {problem or 'the others were silent'}")
        return answers

    def start(self):
        """Brings this checkout to every host, probes every chip, and launches the command on all hosts at once."""
        with self.packed() as archive:
            files = [str(archive), str(HERE / "host.sh")]
            target = ["--node=all", "--worker=all", *self.c.ssh_flags, "--quiet"]
            self.gcloud("compute", "tpus", "queued-resources", "scp", *files, f"{self.c.name}:", *self.where, *target)
        chips = self.all_hosts("ok", ("quit",), ("setup", Path(archive).name), ("probe",))
        counts = {host: int(text) for host, (_, _, text) in chips.items()}
        fewest = min(counts, key=counts.get, default=None)
        if fewest and counts[fewest] < max(counts.values()):
            raise Problem(f"{fewest}: {counts[fewest]} chips where others have {max(counts.values())}")
        self.launch()

    def launch(self):
        trains = Path(self.c.command[0]).name.startswith("train_")  # others have no workdir
        workdir = ("--workdir", self.c.workdir) if trains else ()
        self.all_hosts("running", ("launch", *self.c.environment, *self.c.command, *workdir))

    @contextlib.contextmanager
    def packed(self):
        """Yields an archive of the committed state of this checkout, or the one that was given."""
        if self.archive:
            yield self.archive
            return
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "edit_rl_jax.tar.gz"
            git = ["git", "-C", str(HERE.parent)]
            _, problem = self.run(*git, "archive", "--format=tar.gz", f"--output={archive}", "HEAD")
            if problem:
                raise problem
            yield archive

    # ---- the run

    def in_bucket(self, path):
        """Lists what lies at a path of the workdir; "" if nothing does."""
        try:
            return self.gcloud("storage", "ls", f"{self.c.workdir}/{path}")
        except Problem as problem:
            if MISSING.search(str(problem)):
                return ""
            raise

    def look(self):
        """Says how things stand: (kind, what there is to say about it)."""
        state, reason = self.own().get(self.c.name, ("absent", ""))
        if state == "absent" or state in WAITING:
            return ("waiting" if state in WAITING else "absent"), state
        if state != "ACTIVE":
            return "lost", f"the request is {state}{': ' * bool(reason)}{reason}"
        try:
            expected = self.hosts_expected()
        except Lost as problem:
            return "lost", str(problem)
        answers, problem = self.hosts(("status",))
        words = {word for word, _, _ in answers.values()}
        if "running" in words and words & {"none", "stopped"}:
            alone = sorted(host for host, (word, _, _) in answers.items() if word == "running")
            return "alone", f"only {', '.join(alone)} started, the others would never join"
        failed = [(at, host, word, text) for host, (word, at, text) in answers.items() if word not in GOOD]
        if failed:
            _, host, word, text = min(failed)
            return "dead" if word == "dead" else "failed", f"{host}: {word}: {text}"
        if len(answers) < expected or not answers:
            return "silent", f"{len(answers)} of {expected} hosts answered: {problem or 'the others were silent'}"
        if words <= {"none"}:
            return "ready", f"{expected} hosts"
        if words <= {"exit-0", "none"}:
            return "ended", "the job ended before it had finished"
        return ("stopped", "stopped by hand") if "stopped" in words else ("running", f"on {expected} hosts")
