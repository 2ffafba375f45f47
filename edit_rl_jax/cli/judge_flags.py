"""A judge from the command line: the flags that all scripts share, and the settings that name its answers."""

import argparse
import dataclasses
import json
import os
from pathlib import Path
from typing import Any

from edit_rl_jax.cli.flags import digest, mesh_shape
from edit_rl_jax.nn.model_files import OFF
from edit_rl_jax.nn.peft import CONFIG
from edit_rl_jax.nn.safetensors_io import INDEX, weight_files
from edit_rl_jax.rewards.cache import Judge
from edit_rl_jax.rewards.editscore import judge as reward
from edit_rl_jax.rewards.editscore.aggregate import REDUCTIONS
from edit_rl_jax.rewards.serving.client import KEY, TOKEN, RewardClient, VLMJudge
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.vlm.engine.sampler import Sampling, greedy
from edit_rl_jax.vlm.folders import base_folder, local_folder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The flags of a judge: which model, how it generates, on what."""
    parser.add_argument("--model", metavar="DIR", help="model or adapter folder, or hub id")
    parser.add_argument("--server", metavar="URL", help=f"or a reward server (serve_reward.py); its token: ${TOKEN}")
    parser.add_argument("--endpoint", metavar="URL", help=f"or an OpenAI-compatible end point, .../v1; its key: ${KEY}")
    parser.add_argument("--endpoint-model", metavar="NAME", help="the model that the end point should use")
    parser.add_argument("--base", metavar="DIR", help="base of an adapter, where it is not where the adapter says")
    parser.add_argument("--prompts", metavar="NAME", help="prompt texts; default: those stored with the model")
    skip = f"do not compare an export with its SHA-256 before it is loaded (for all commands: {OFF}=0)"
    parser.add_argument("--no-verify", action="store_true", help=skip)
    how = parser.add_argument_group("generation")
    how.add_argument("--passes", type=int, default=1, help="answers a question, averaged; 1 is greedy unless sampled")
    how.add_argument("--reduction", choices=REDUCTIONS, default=REDUCTIONS[0], help="of the passes (see aggregate.py)")
    how.add_argument("--expected", choices=("reasoned", "empty"), help="expected scores, after a reasoning or without")
    how.add_argument("--constrained", action="store_true", help="only a valid reply can be written")
    how.add_argument("--retries", type=int, default=2, help="sampled answers that cannot be read are written anew")
    how.add_argument("--temperature", type=float, help="default 0 (greedy) for one pass, 0.7 for more")
    how.add_argument("--top-k", type=int, default=20)
    how.add_argument("--top-p", type=float, default=0.9)
    how.add_argument("--max-new-tokens", type=int, default=512)
    how.add_argument("--rows", type=int, default=32, help="answers written side by side")
    how.add_argument("--seed", type=int, default=0)
    how.add_argument("--mesh", type=mesh_shape, metavar="fsdp=N,tensor=M", help="shard over these axes of devices")


def sampling(args: argparse.Namespace) -> Sampling:
    """How answers are drawn: greedily for a single pass, unless a temperature is given."""
    temperature = (0.7 if args.passes > 1 else 0.0) if args.temperature is None else args.temperature
    if temperature == 0:
        return greedy(args.max_new_tokens)
    return Sampling(temperature, args.top_k, args.top_p, args.max_new_tokens)


def modes(args: argparse.Namespace) -> dict[str, Any]:
    """How scores are read: settings of `EditScore`."""
    names = ("constrained", "retries", "reduction")
    return {"expected": args.expected or "", **{name: getattr(args, name) for name in names}}


def given(args: argparse.Namespace) -> int:
    """How many judges the flags name."""
    return sum(x is not None for x in (args.model, args.server, args.endpoint))


def from_arguments(args: argparse.Namespace) -> tuple[Judge, dict[str, Any]]:
    """The judge, and the settings that decide its answers, as JSON.

    How many answers are written side by side, and on which devices, is not among them: it changes rounding only. Raises
    ValueError unless the flags name one judge, and what `EditScore.load` raises.
    """
    if given(args) != 1 or (args.endpoint is None) != (args.endpoint_model is None):
        raise ValueError("one judge is wanted: --model, --server, or --endpoint with --endpoint-model")
    if not args.model and (args.expected or args.constrained):
        raise ValueError("--expected and --constrained look into the model: they want --model")
    if args.server:
        client = RewardClient(args.server, os.environ.get(TOKEN, ""), must_answer=True)
        return client, {"server": client.settings()}
    if args.endpoint:
        drawn = sampling(args)
        options = dict(passes=args.passes, temperature=drawn.temperature, top_p=drawn.top_p, seed=args.seed)
        options |= dict(max_new_tokens=args.max_new_tokens, prompts=args.prompts or "standard")
        options |= dict(attempts=1 + args.retries, reduction=args.reduction, must_answer=True)
        vlm = VLMJudge(args.endpoint, args.endpoint_model, os.environ.get(KEY, ""), **options)
        return vlm, vlm.settings()
    options = dict(sampling=sampling(args), passes=args.passes, rows=args.rows, seed=args.seed)
    how = modes(args)
    mesh = make_mesh(args.mesh) if args.mesh else None
    options["verify"] = not args.no_verify
    judge = reward.EditScore.load(args.model, base=args.base, prompts=args.prompts, mesh=mesh, **options, **how)
    settings = {
        "weights_sha256": fingerprint(args.model, args.base),
        "prompts": judge.prompts.name,
        "prompts_sha256": judge.prompts.sha256,
        "images": dataclasses.asdict(judge.images),
        "sampling": dataclasses.asdict(options["sampling"]),
        "passes": args.passes,
        "seed": args.seed,
        **how,
        "retries": judge.retries,
    }
    return judge, json.loads(json.dumps(settings))


def fingerprint(model: str | Path, base: str | Path | None = None) -> str:
    """SHA-256 over the files of a model folder that decide its answers, and over its base's if it is an adapter."""
    folder = local_folder(model)
    shards = weight_files(folder) if (folder / INDEX).exists() else []  # they may lie in folders below
    adapter = (folder / CONFIG).exists()
    return digest(folder, shards, fingerprint(base_folder(folder, base)) if adapter else "")
