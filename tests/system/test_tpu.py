"""tpu/: what would be run, what runs on a host, and that a watched run ends finished or with the first cause named.

`gcloud` is played by `fake_cloud.py`; `host.sh` itself runs here, in a home folder of its own.
"""

import collections
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.system.fake_cloud import Cloud, Life, Server, story

TPU = Path(__file__).resolve().parents[2] / "tpu"
SHELLCHECK = Path(sys.executable).with_name("shellcheck")
COMMAND = ["scripts/train_rm.py", "--config", "configs/rm_7b.py", "--config.name=it's two words"]
FILE = f"""name = "run"
zone = "z"
type = "v6e-8"
bucket = "gs://b/runs"
run_id = "r7"
command = {COMMAND}
period = 0
"""


def pod(*args, env=None, **options):
    options = {
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
        "stdin": subprocess.DEVNULL,
    } | options
    return subprocess.Popen([sys.executable, "-S", TPU / "pod.py", *map(str, args)], env=env, **options)


def ran(*args, env=None):
    process = pod(*args, env=env)
    out, error = process.communicate(timeout=60)
    return process.returncode, out, error


@pytest.fixture
def cluster(tmp_path):
    def write(**settings):
        lines = [f"{k} = {v!r}".replace("'", '"') for k, v in settings.items()]
        (tmp_path / "my.toml").write_text(FILE + "\n".join(lines) + "\n")
        (tmp_path / "archive.tar.gz").touch()
        return tmp_path / "my.toml"

    return write


def watched(tmp_path, file, cloud, *more):
    """Watches a run in a played cloud: (exit status, what was said)."""
    with Server(cloud, tmp_path) as env:
        cloud.process = pod("watch", file, "--archive", tmp_path / "archive.tar.gz", *more, env=env)
        _, said = cloud.process.communicate(timeout=60)
    assert not cloud.violations, (cloud.violations, said)
    assert len(cloud.commands) <= 1, cloud.commands
    return cloud.process.returncode, said


@pytest.mark.parametrize("tens", range(10))
def test_100_stories(tmp_path, cluster, tens):
    """Whatever happens: finished, or given up with the first cause named, or interrupted; and nothing is left."""
    ends = collections.Counter()
    for seed in range(10 * tens, 10 * tens + 10):
        settings, cursed = story(seed)
        cloud = Cloud(**settings)
        file = cluster(restarts=6, slices=settings["slices"])
        status, said = watched(tmp_path, file, cloud)
        ends[status] += 1
        assert cloud.state is None and set(cloud.dead) == {"theirs"}, (seed, said)
        if status == 0:
            assert cloud.finished and "the run has finished" in said, (seed, said)
        elif status == 130:
            assert cloud.stop_at, (seed, said)
        else:
            assert status == 1, (seed, said)
            cause = re.search(r"gave up.*first cause: (.*)", said)
            assert cause and cloud.first in cause[1], (seed, cloud.first, said)
        assert not cursed or status == 1, (seed, said)
    assert ends[0] >= 3, ends


def test_the_host_that_failed_first_is_named(tmp_path, cluster):
    """All four fail, one before the others, whose words ("a peer is gone") say nothing."""
    status, said = watched(tmp_path, cluster(), Cloud([Life(acts=[(0, "crash")] * 9)], hosts=4))
    assert status == 1 and re.search(r"gave up after 3 .*; first cause: run-w-\d: exit-1: #1#; last: .*#3#", said), said


def test_what_the_watching_vm_is_given(tmp_path, cluster):
    """A file that reads as the same cluster, and a startup script that is valid shell; nothing else."""

    class Vm(Cloud):
        def __call__(self, args):
            if args[:2] == ["storage", "cp"]:
                assert args[-1] == "gs://b/runs/r7/watcher/"
                self.files = {Path(a).name: Path(a).read_text() for a in args[2:-1]}
                return 0, "", ""
            assert args[:4] == ["compute", "instances", "create", "run-watcher"]
            self.script = Path(next(a for a in args if "startup-script=" in a).split("startup-script=")[1]).read_text()
            return 0, "", ""

    settings = {"ssh_flags": ["--internal-ip"], "environment": ["A=--b --c"]}
    cloud, file = Vm([Life()]), cluster(slices=2, capacity="flex-start", **settings)
    with Server(cloud, tmp_path) as env:
        assert ran("watcher", file, "--archive", tmp_path / "archive.tar.gz", env=env)[0] == 0
    assert set(cloud.files) == {"archive.tar.gz", "cluster.toml", "pod.py", "cluster.py", "watch.py", "host.sh"}
    again = tmp_path / "again.toml"
    again.write_text(cloud.files["cluster.toml"])
    dry = [ran("watch", f, "--dry-run", "--archive", "a")[1] for f in (file, again)]
    assert dry[0] == dry[1] and "flex-start" in dry[0]
    checked = subprocess.run([SHELLCHECK, "-"], input=cloud.script, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout
    assert "pod.py watch cluster.toml" in cloud.script and "instances delete run-watcher" in cloud.script


def test_stopped_by_hand_is_left_stopped(tmp_path, cluster):
    class Stopped(Cloud):
        def list(self, **flags):
            if self.step == 2:
                self.jobs = dict.fromkeys(self.workers(), "stopped 9")
            return super().list(**flags)

    cloud = Stopped([Life(acts=[(9, "finish")])])
    status, said = watched(tmp_path, cluster(), cloud)
    assert status == 3 and cloud.state == "ACTIVE" and "costs money" in said
    cloud = Cloud([Life(acts=[(1, "finish")])])
    status, said = watched(tmp_path, cluster(), cloud, "--keep")
    assert status == 0 and cloud.state == "ACTIVE" and "costs money" in said


def test_a_request_that_cannot_be_deleted_is_named(tmp_path, cluster):
    class Stuck(Cloud):
        def delete(self, name, **flags):
            return 1, "", "ERROR: INTERNAL: try again"

    status, said = watched(tmp_path, cluster(restarts=2), Stuck([Life(acts=[(1, "finish")])]))
    assert status == 0 and said.count("could not delete") == 2 and "DELETE BY HAND" in said


def test_single_steps(tmp_path, cluster):
    """create, setup, status, logs, stop, delete, one by one, against the played cloud."""
    file, cloud = cluster(), Cloud([Life()])
    with Server(cloud, tmp_path) as env:
        step = lambda verb, *more: ran(verb, file, "--archive", tmp_path / "archive.tar.gz", *more, env=env)
        assert step("create")[0] == 0
        assert [step("status")[1].split("\n")[-2] for _ in range(2)] == ["ready 2 hosts"] * 2
        assert step("setup")[0] == 0 and step("status")[1].endswith("running on 2 hosts\n")
        assert step("stop")[0] == 0 and step("status")[1].endswith("stopped stopped by hand\n")
        assert step("delete")[0] == 0 and cloud.state is None
        assert step("status")[1] == "absent absent\n"
        status, _, said = step("setup")
        assert status == 1 and "the node is not there" in said


def test_dry_run_prints_every_command(cluster):
    """Nothing is run (there is no gcloud on this PATH), and a line of each kind can be pasted."""
    env = {"PATH": "/nowhere", "LOGNAME": "me"}
    dry = lambda *args: ran(*args, "--dry-run", env=env)
    status, out, _ = dry("watch", cluster(project="p", environment=["A=--b --c"]))
    verbs = [re.search(r"(queued-resources \w+|tpu-vm list|storage ls|git)", line)[1] for line in out.splitlines()]
    q = "queued-resources "
    assert status == 0 and verbs == [
        *(q + "list", q + "create", q + "list", "git", q + "scp", "tpu-vm list", q + "ssh", "tpu-vm list", q + "ssh"),
        *(q + "ssh", "storage ls", q + "delete"),
    ]
    create, ssh = out.splitlines()[1], out.splitlines()[8]
    assert create == (
        "gcloud compute tpus queued-resources create run --accelerator-type=v6e-8 --runtime-version=v2-alpha-tpuv6e "
        "--labels=edit-rl-owner=me --node-id=run --spot --async --zone=z --project=p --quiet"
    )
    command = next(
        a
        for a in subprocess.run(["bash", "-c", f"printf '%s\\0' {ssh}"], capture_output=True, text=True).stdout.split(
            "\0"
        )
        if a.startswith("--command=")
    )
    words = subprocess.run(["bash", "-c", f"printf '%s\\0' {command[10:]}"], capture_output=True, text=True)
    job = ["A=--b --c", *COMMAND, "--workdir", "gs://b/runs/r7"]
    assert words.stdout.split("\0")[:-1] == ["bash", "host.sh", "launch", "r7", *job]
    assert importlib.util.find_spec("gcsfs"), "the extra [tpu] does not bring what reads gs://"
    _, out, _ = ran("launch", cluster(), "--dry-run", "--", "scripts/score.py", "--input", "x", env=env)
    assert "scripts/score.py --input x'" in out and "--workdir" not in out  # it has none
    for settings, parts in (
        (
            {"capacity": "flex-start", "hours": 10},
            ["gcloud alpha", "--provisioning-model=flex-start --max-run-duration=10h"],
        ),
        ({"capacity": "reserved"}, ["gcloud compute", "--reserved"]),
        ({"capacity": "on-demand", "slices": 2}, ["--node-count=2 --node-prefix=run --async"]),
        ({"create_flags": ["--network=n"], "ssh_flags": ["--internal-ip"]}, ["--spot --network=n"]),
    ):
        out = dry("create", cluster(**settings))[1]
        assert all(part in out for part in parts), out
    for verb, part in (("logs", "tail -n 50"), ("ssh", "--worker=0"), ("stop", "host.sh stop r7"), ("status", "list")):
        assert part in dry(verb, cluster())[1]
    out = dry("watcher", cluster())[1]
    assert "instances create run-watcher" in out and "watch.py" in out and "gs://b/runs/r7/watcher/" in out


def test_a_wrong_file_is_refused_in_words(cluster, tmp_path):
    for settings, words in (
        ({"zonee": "z"}, "no such setting: zonee"),
        ({"slices": "2"}, "of the wrong type: slices"),
        ({"slices": 0}, "slices"),
        ({"environment": ["A=1", "--b=2"]}, "environment: a list of NAME=VALUE"),
        ({"capacity": "cheap"}, "spot, reserved, on-demand, flex-start"),
    ):
        status, _, said = ran("create", cluster(**settings), "--dry-run")
        assert status == 1 and words in said
    for line, words in (("bucket", "missing: bucket"), ("name", "missing: name")):
        file = cluster()
        file.write_text(re.sub(rf"(?m)^{line} .*\n", "", file.read_text()))
        assert words in ran("create", file, "--dry-run")[2]
    assert "run_id: letters" in ran("create", cluster(), "--dry-run", "--run-id", "a b")[2]
    assert "No such file" in ran("create", tmp_path / "none.toml", "--dry-run")[2]


# ---- host.sh, really run


@pytest.fixture
def host(tmp_path):
    """A home with an environment, one chip, and programs that stand for sudo and lsof: `host(action, ...)` runs."""
    for folder in ("bin", "edit_rl_jax", "edit-rl-env/bin", "dev/vfio"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "dev/vfio/0").touch()

    def program(path, text):
        (tmp_path / path).write_text(f"#!/usr/bin/env bash\n{text}\n")
        (tmp_path / path).chmod(0o755)

    program("bin/sudo", 'shift; exec "$@"')
    program("bin/lsof", "exit 1")
    program(
        "edit-rl-env/bin/python", 'printf "%s|" "$RUN_ID" "$JAX_COORDINATOR_PORT" "$@"; echo; echo "the end"; exit 3'
    )
    paths = {"DEV": str(tmp_path / "dev"), "LIBTPU_LOCK": str(tmp_path / "lock"), "GRACE": "5"}
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"} | paths

    def run(action, *args):
        done = subprocess.run(["bash", TPU / "host.sh", action, "r7", *args], env=env, capture_output=True, text=True)
        return re.sub(r"@\S+ (\S+) \d+", r"\1", done.stdout).strip() + done.stderr

    run.program, run.home = program, tmp_path
    return run


def until(wanted, host):
    for _ in range(100):
        if (got := host("status")).startswith(wanted):
            return got
        time.sleep(0.05)
    raise AssertionError(got)


def test_a_launched_command_keeps_its_arguments(host):
    assert host("status") == "none"
    assert host("launch", *COMMAND, "--workdir", "gs://b/r7") == "running"
    assert until("exit", host) == "exit-3 the end"
    log = (host.home / "runs/r7.log").read_text()
    assert log == "r7|8476|" + "|".join([*COMMAND, "--workdir", "gs://b/r7"]) + "|\nthe end\n"


def test_a_job_has_the_variables_that_stand_before_its_command(host):
    host.program("edit-rl-env/bin/python", 'printf "%s|" "${LIBTPU_INIT_ARGS-none}" "$@"; echo')
    assert host("launch", "LIBTPU_INIT_ARGS=--a=1 --b=2", "X=", "train.py", "--config.a=b") == "running"
    assert until("exit", host) == "exit-0 --a=1 --b=2|train.py|--config.a=b|"
    assert host("launch", "train.py", "A=1") == "running"
    assert until("exit", host) == "exit-0 none|train.py|A=1|"


def test_a_stopped_job_saves_first_and_a_killed_one_is_dead(host):
    host.program("edit-rl-env/bin/python", "trap 'echo saved; exit 0' TERM; echo started; while :; do sleep 0.05; done")
    log, pid = host.home / "runs/r7.log", host.home / "runs/r7.pid"
    started = lambda count: [time.sleep(0.05) for _ in range(100) if log.read_text().count("started") < count]
    host("launch")
    started(1)
    assert host("status") == "running" and host("stop") == "stopped" and host("status") == "stopped"
    assert log.read_text().startswith("started\n") and log.read_text().endswith("saved\n")
    host("launch")
    started(2)
    assert host("launch") == "running"  # the former one saves and ends before
    started(3)
    assert log.read_text().count("saved") == 2 and host("status") == "running"
    assert host("quit") == "" and host("status") == "none"
    host("launch")
    started(4)
    os.killpg(int(pid.read_text()), 9)
    time.sleep(0.1)
    assert host("status").startswith("dead the job vanished")


def test_probe_names_what_holds_a_chip(host):
    (host.home / "lock").touch()
    assert host("probe") == "ok 1" and not (host.home / "lock").exists()
    (host.home / "lock").touch()
    host.program("bin/lsof", f"echo {os.getpid()}")
    assert host("probe").startswith(f"bad the TPU is held by process {os.getpid()}") and (host.home / "lock").exists()
    chip = host.home / "dev/accel0"  # a program that runs cannot be opened for writing: as busy as a file here gets
    shutil.copy(shutil.which("sleep"), chip)
    with subprocess.Popen([chip, "60"]) as holder:
        said = host("probe")
        holder.kill()
    assert said.startswith("bad OSError") and "busy" in said and f"held by process {os.getpid()}" in said
    chip.unlink()
    (host.home / "dev/vfio/0").unlink()
    assert host("probe").startswith("bad no TPU device")


def test_setup_unpacks_and_says_what_failed(host):
    (host.home / "thing").write_text("x")
    subprocess.run(["tar", "-czf", "edit_rl_jax.tar.gz", "thing"], cwd=host.home, check=True)
    host.program("bin/python3", f'echo "$*" >> {host.home}/calls')
    assert host("setup", "edit_rl_jax.tar.gz") == "" and (host.home / "edit_rl_jax/thing").read_text() == "x"
    assert "edit_rl_jax[tpu]" in (host.home / "calls").read_text().splitlines()[-1]
    host.program("bin/python3", "echo no network; exit 1")
    assert host("setup", "edit_rl_jax.tar.gz") == "bad set-up failed: no network"


def test_shell_is_clean():
    subprocess.run([SHELLCHECK, TPU / "host.sh"], check=True)
