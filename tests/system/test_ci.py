""".ci/run reports what pytest found and fails when anything did, also when no test ran or the run broke off."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
MAKEFILE = f"test:\n\t@test -n '$(VENV)'\n\t{sys.executable} -m pytest -p no:cacheprovider -ra $(OPTIONS)\n"
PASS, FAIL = "def test_a(): pass\n", "def test_b(): assert False\n"
SKIP = "import pytest\n@pytest.mark.skip(reason='no such device')\ndef test_c(): pass\n"
KILLED = "import os\ndef test_d(): os.kill(os.getpid(), 9)\n"


@pytest.mark.parametrize(
    "tests, options, succeeds, said",
    [  # pytest's summary looks different under -q
        (PASS + SKIP, "", True, ["1 passed, 1 skipped in", "skipped: 1", "no such device"]),
        (PASS + SKIP, "-q", True, ["1 passed, 1 skipped in", "skipped: 1"]),
        (PASS + FAIL, "", False, ["1 failed, 1 passed in"]),
        ("", "", False, ["no tests ran"]),
        (KILLED, "", False, ["no summary"]),
    ],
)
def test_verdict(tmp_path, tests, options, succeeds, said):
    (tmp_path / ".ci").mkdir()
    shutil.copy(ROOT / ".ci/run", tmp_path / ".ci/run")
    (tmp_path / "Makefile").write_text(MAKEFILE)
    (tmp_path / "test_it.py").write_text(tests)
    env = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST")}
    env |= {"OPTIONS": options, "CI": "true", "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(["bash", tmp_path / ".ci/run"], cwd="/", env=env, capture_output=True, text=True, timeout=120)
    assert (done.returncode == 0) == succeeds, done.stdout + done.stderr
    assert not [s for s in said if s not in done.stdout], done.stdout


def test_can_be_run():
    assert os.access(ROOT / ".ci/run", os.X_OK)
