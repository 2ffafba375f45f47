"""The scripts of tpu/: what they would run, and that a preempted run is asked for again and resumed under the same id.

`gcloud` is played by a small program that records its arguments and answers with a sequence of states.
"""

import os
import subprocess
from pathlib import Path

import pytest

TPU = Path(__file__).resolve().parents[2] / "tpu"
SCRIPTS = ["create_queued_resource.sh", "setup.sh", "launch.sh", "watch.sh"]
JOB = ["--", "scripts/train_rm.py", "--config", "configs/rm_7b.py", "--config.name=it's two words"]

GCLOUD = """#!/usr/bin/env bash
printf '%s\\n' "$*" | tr '\\n' ' ' >> "$CALLS"; echo >> "$CALLS"
case "$*" in
  *describe*) n=$(grep -c describe "$CALLS"); sed -n "${n}p" <<<"$STATES" ;;
  *'storage ls gs://'*/finished) [ "$(grep -c 'storage ls' "$CALLS")" -ge "${FINISHED:-99}" ] ;;
  *'cat ~/runs'*) n=$(grep -c 'cat ~/runs' "$CALLS"); sed -n "${n}p" <<<"$STATUSES" ;;
esac
"""


def run(script, *args, **env):
    return subprocess.run(
        ["bash", TPU / script, *args],
        env={"PATH": os.environ["PATH"], "HOME": os.environ.get("HOME", "/")} | env,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=60,
    )


@pytest.mark.parametrize("script", ["common.sh", *SCRIPTS])
def test_syntax(script):
    subprocess.run(["bash", "-n", TPU / script], check=True)


@pytest.mark.parametrize("script", SCRIPTS)
def test_help_and_bad_flags(script):
    done = run(script, "--help")
    assert done.returncode == 0 and "--dry-run" in done.stdout and f"tpu/{script} --zone" in done.stdout
    for args, message in (
        ([], "--zone is missing"),
        (["--zon", "z"], "unknown flag --zon"),
        (["--zone"], "needs a value"),
    ):
        done = run(script, *args)
        assert done.returncode == 2 and message in done.stderr


def test_create():
    done = run("create_queued_resource.sh", "--dry-run", "--zone", "us-east5-a", "--type", "v6e-8", "--spot")
    assert (
        done.stdout.split()
        == (
            "gcloud compute tpus queued-resources create edit-rl --zone=us-east5-a --accelerator-type=v6e-8 "
            "--runtime-version=v2-alpha-tpuv6e --async --node-id=edit-rl --spot"
        ).split()
    )
    done = run("create_queued_resource.sh", "--dry-run", "--zone", "z", "--slices", "2", TYPE="v5p-128", PROJECT="p")
    for part in ("--project=p", "--node-count=2 --node-prefix=edit-rl", "--runtime-version=v2-alpha-tpuv5 "):
        assert part in done.stdout
    assert "--spot" not in done.stdout


def test_launch_runs_one_command_on_all_workers_of_all_slices():
    done = run(
        "launch.sh", "--dry-run", "--zone", "z", "--slices", "2", "--bucket", "gs://b/runs", "--run-id", "r7", *JOB
    )
    lines = done.stdout.splitlines()
    assert [line.split()[5] for line in lines] == ["edit-rl-0", "edit-rl-1"]
    assert all("--worker=all" in line and "gs://b/runs/r7" in line for line in lines)
    assert "--bucket" in run("launch.sh", "--dry-run", "--zone", "z", *JOB).stderr
    assert (
        "--run-id" in run("launch.sh", "--dry-run", "--zone", "z", "--bucket", "gs://b", "--run-id", "a b", *JOB).stderr
    )


def test_launched_command_keeps_its_arguments(tmp_path):
    """The remote command, run here with a Python that records: same arguments, a pid, a log and an exit status."""
    (tmp_path / "bin").mkdir()
    gcloud = tmp_path / "bin" / "gcloud"
    gcloud.write_text(
        '#!/usr/bin/env bash\nfor a; do case $a in --command=*) cd; exec bash -c "${a#--command=}";; esac; done\n'
    )
    (tmp_path / "bin" / "sudo").write_text("#!/bin/sh\nexit 1\n")
    python = tmp_path / "edit-rl-env" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text('#!/usr/bin/env bash\nprintf "%s|" "$RUN_ID" "$@"; exit 3\n')
    for program in (gcloud, tmp_path / "bin" / "sudo", python):
        program.chmod(0o755)
    (tmp_path / "edit_rl_jax").mkdir()
    (tmp_path / "runs").mkdir()
    env = {"HOME": str(tmp_path), "PATH": f"{tmp_path}/bin:{os.environ['PATH']}"}
    done = run("launch.sh", "--zone", "z", "--bucket", "gs://b", "--run-id", "r7", *JOB, **env)
    assert done.returncode == 0, done.stderr
    for _ in range(100):
        if "exit" in (tmp_path / "runs/r7.status").read_text():
            break
        subprocess.run(["sleep", "0.1"])
    assert (tmp_path / "runs/r7.status").read_text() == "exit 3\n"
    assert (tmp_path / "runs/r7.log").read_text() == "r7|" + "|".join([*JOB[1:], "--workdir", "gs://b/r7"]) + "|"
    assert (tmp_path / "runs/r7.pid").read_text().strip().isdigit()


def test_watch_recreates_a_preempted_slice_and_resumes(tmp_path):
    """A job that ends with status 0 without having finished was interrupted: it is launched again as well."""
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    calls = tmp_path / "calls"
    calls.touch()
    states = ["PROVISIONING", "ACTIVE", "ACTIVE", "SUSPENDED", "WAITING_FOR_RESOURCES", *["ACTIVE"] * 4]
    statuses = ["none", "running", "none", "running", "exit 0", "exit 0"]
    done = run(
        "watch.sh",
        *("--zone", "z", "--spot", "--bucket", "gs://b", "--run-id", "r7", *JOB),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CALLS=str(calls),
        STATES="\n".join(states),
        STATUSES="\n".join(statuses),
        FINISHED="3",  # the third time that it is asked: suspended, interrupted, ended
        PERIOD="0",
    )
    assert done.returncode == 0, done.stderr
    kinds = {" delete ": "delete", " create ": "create", " scp ": "setup", "setsid": "launch", "describe": None}
    order = [kind for line in calls.read_text().splitlines() for mark, kind in kinds.items() if mark in line and kind]
    assert order == ["setup", "launch", "delete", "create", "setup", "launch", "setup", "launch"]
    launches = [line for line in calls.read_text().splitlines() if "setsid" in line]
    assert len(set(launches)) == 1 and "gs://b/r7" in launches[0]


def test_watch_gives_up(tmp_path):
    (tmp_path / "gcloud").write_text(GCLOUD)
    (tmp_path / "gcloud").chmod(0o755)
    (tmp_path / "calls").touch()
    done = run(
        "watch.sh",
        *("--zone", "z", "--bucket", "gs://b", *JOB),
        PATH=f"{tmp_path}:{os.environ['PATH']}",
        CALLS=str(tmp_path / "calls"),
        STATES="\n".join(["FAILED"] * 9),
        PERIOD="0",
        MAX_RESTARTS="2",
    )
    assert done.returncode == 1 and "gave up after 2 restarts" in done.stderr
