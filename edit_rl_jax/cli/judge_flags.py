"""A judge from the command line: the flags that all scripts share, among them the options of the judge itself."""

import argparse
import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edit_rl_jax.cli.flags import add_options, mesh_shape
from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.model_files import OFF
from edit_rl_jax.nn.safetensors_io import WeightsError
from edit_rl_jax.rewards import judges
from edit_rl_jax.rewards.base import Judge
from edit_rl_jax.rewards.serving.client import TOKEN, RewardClient
from edit_rl_jax.sharding import make_mesh

KEY = "OPENAI_API_KEY"  # environment variables: secrets are no flags, which all users can list


def add_arguments(parser: argparse.ArgumentParser, argv: Sequence[str] | None = None, before: str = "") -> None:
    """Adds the flags of a judge: which model, on what, and the options of the judge that `argv` (default: the
    command's) names with --judge, or by its model's folder. before: "judge-" beside an editor's flags of the same
    names: then all but --judge begin with it."""
    parser.allow_abbrev = False  # a model or judge by half a flag's name would be overlooked below
    add = lambda name, **how: parser.add_argument(f"--{before}{name}", dest=name.replace("-", "_"), **how)
    add("model", metavar="DIR", help="model or adapter folder, or hub id")
    known = ", ".join(judges.JUDGES)
    parser.add_argument(
        "--judge", metavar="NAME", default="", help=f"{known} or my_pkg.mod:Class; default: the folder's"
    )
    add("server", metavar="URL", help=f"or a reward server (serve_reward.py); its token: ${TOKEN}")
    add("endpoint", metavar="URL", help=f"or an OpenAI-compatible end point, .../v1; its key: ${KEY}")
    add("endpoint-model", metavar="NAME", help="the model that the end point should use")
    add("base", metavar="DIR", help="base of an adapter, where it is not where the adapter says")
    skip = f"do not compare an export with its SHA-256 before it is loaded (for all commands: {OFF}=0)"
    add("no-verify", action="store_true", help=skip)
    add("mesh", type=mesh_shape, metavar="fsdp=N,tensor=M", help="shard over these axes of devices")
    try:
        name = _named(sys.argv[1:] if argv is None else argv, before)
        options = judges.kind(name).Options
    except ConfigError as error:
        parser.error(str(error))
    parser.set_defaults(options=options)
    add_options(parser.add_argument_group(f"judge {name}"), options, before)


def _named(argv: Sequence[str], before: str = "") -> str:
    """The judge that a command line names, as far as it can be told before the flags are read."""
    peek = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    for name, flag in (("model", f"--{before}model"), ("judge", "--judge")):
        peek.add_argument(flag, dest=name, default="")
    try:
        said = peek.parse_known_args(argv)[0]
        return judges.name_of(Path(said.model), said.judge) if said.model else said.judge or judges.DEFAULT
    except (argparse.ArgumentError, WeightsError):  # told when the flags are read, and when the model is
        return judges.DEFAULT


def options_of(args: argparse.Namespace) -> Any:
    """Returns the judge's options that the flags say."""
    return args.options(**{f.name: getattr(args, f.name) for f in dataclasses.fields(args.options)})


def mesh_of(args: argparse.Namespace) -> Any:
    """Makes the mesh that the flags ask for; None for one device."""
    return make_mesh(args.mesh) if args.mesh else None


def given(args: argparse.Namespace) -> int:
    """Counts the judges that the flags name."""
    return sum(x is not None for x in (args.model, args.server, args.endpoint))


def _told(args: argparse.Namespace, but: Sequence[str] = ()) -> str:
    """Names the judge's options that were given another value than the default; answers side by side change nothing."""
    fields = [f for f in dataclasses.fields(args.options) if f.name not in ("rows", *but)]
    return ", ".join(f.name for f in fields if getattr(args, f.name) not in (None, f.default))


def from_arguments(args: argparse.Namespace, own: Sequence[str] = ()) -> Judge:
    """Makes the judge. own: options that mean something to the script, too. Raises ValueError unless the flags name one
    judge, for options that it is not told, and what `judges.load` raises."""
    if given(args) != 1 or (args.endpoint is None) != (args.endpoint_model is None):
        raise ValueError("one judge is wanted: --model, --server, or --endpoint with --endpoint-model")
    if not args.model and (getattr(args, "expected", "") or getattr(args, "constrained", False)):
        raise ValueError("--expected and --constrained look into the model: they want --model")
    if args.server:
        if told := _told(args, but=own):
            raise ValueError(f"a reward server has its own {told}: give it to serve_reward.py")
        return RewardClient(args.server, os.environ.get(TOKEN, ""), must_answer=True)
    options = options_of(args)
    if args.endpoint:
        from edit_rl_jax.rewards.editscore.endpoint import VLMJudge

        if args.judge not in ("", judges.DEFAULT):
            raise ValueError(f"an end point writes its answers: --judge {args.judge} wants --model")
        if told := _told(args, but=VLMJudge.OPTIONS):
            raise ValueError(f"an end point is not told {told}")
        return VLMJudge.of_options(args.endpoint, args.endpoint_model, os.environ.get(KEY, ""), options)
    how = dict(base=args.base, mesh=mesh_of(args), verify=not args.no_verify)
    return judges.load(args.model, args.judge, options, **how)
