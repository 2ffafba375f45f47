"""`edit-rl JOB ...` runs scripts/JOB.py with the arguments that follow.

The scripts stay plain files: in a checkout they lie beside the package, in an installed wheel inside it (setup.py maps
them). A config may be named by its file's stem, so that `edit-rl train_rm --config rm_tiny` works from any folder.
"""

import ast
import difflib
import runpy
import sys
from pathlib import Path


def folder(name: str) -> Path:
    """The folder `scripts` or `configs`, installed or in the checkout. Raises FileNotFoundError if there is none."""
    package = Path(__file__).resolve().parents[1]
    for found in (package / name, package.parent / name):
        if found.is_dir():
            return found
    raise FileNotFoundError(f"no folder {name}/ in or beside {package}: the installation is damaged")


def config_path(value: str) -> str:
    """FILE or FILE:ARGUMENT as given if there is that file, else of the packaged config of that name, else as given."""
    name, colon, argument = value.partition(":")
    packaged = folder("configs") / f"{Path(name).stem}.py"
    known = any(Path(found).exists() for found in (value, name))
    bare = len(Path(name).parts) == 1
    return f"{packaged}{colon}{argument}" if bare and not known and packaged.exists() else value


def arguments(args: list[str]) -> list[str]:
    """The arguments with the value of `--config` (either form) made a path."""
    out = list(args)
    for i, arg in enumerate(args):
        if arg.startswith("--config="):
            out[i] = "--config=" + config_path(arg.removeprefix("--config="))
        elif i and args[i - 1] == "--config":
            out[i] = config_path(arg)
    return out


def summary(script: Path) -> str:
    """The first line of a script's docstring; the script is not run."""
    return (ast.get_docstring(ast.parse(script.read_text())) or "").split("\n")[0]


def main() -> int:
    """Runs a job; exit status 2 and the nearest name when there is no such job."""
    jobs = {path.stem: path for path in sorted(folder("scripts").glob("[!_]*.py"))}
    job = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if job in ("-h", "--help"):
        width = max(map(len, jobs))
        lines = [f"  {name:{width}}  {summary(path)}" for name, path in jobs.items()]
        print("usage: edit-rl JOB [--help] [arguments]", "", "jobs:", *lines, sep="\n")
        return 0
    if job not in jobs:
        name = job.lower().replace("-", "_").removesuffix(".py")
        near = [j for j in jobs if len(name) > 2 and name in j] + difflib.get_close_matches(name, jobs, 1)
        hint = f"; the nearest is {near[0]}" if near else ""
        print(f"edit-rl: there is no job {job!r}{hint}\njobs: {', '.join(jobs)}", file=sys.stderr)
        return 2
    sys.argv = [str(jobs[job]), *arguments(sys.argv[2:])]
    runpy.run_path(str(jobs[job]), run_name="__main__")
    return 0
