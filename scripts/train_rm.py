"""Train a reward model (or pretrain the tiny base that it starts from).

    python scripts/train_rm.py --config configs/rm_tiny.py --workdir runs/demo --config.optim.lr=3e-4

The same command resumes by itself from the newest whole checkpoint in the workdir; SIGTERM saves and exits with status
0. On several hosts run it once a host: Cloud TPU needs nothing more, elsewhere give --coordinator, --processes and
--process.
"""

import argparse
import json
import logging
import os
import sys
import time
from pathlib import Path

import jax
import numpy as np

from edit_rl_jax import topology
from edit_rl_jax.evals import editworld
from edit_rl_jax.evals.pairs import summary
from edit_rl_jax.qwen2_5_vl import peft, weights
from edit_rl_jax.rewards.editscore import prompts as prompts_lib
from edit_rl_jax.training import build, checkpoint, export, loop, metrics, workdir
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import data as data_lib
from edit_rl_jax.training import state as st
from edit_rl_jax.training.report import write_report

log = logging.getLogger("train_rm")


def parse(argv):
    """(arguments, config overrides). `--config.key=value` and `--config.key value` are overrides."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", required=True, metavar="FILE", help="Python file with get_config()")
    parser.add_argument(
        "--config.KEY", metavar="VALUE", dest="_", help="override a key of the config, any number of times"
    )
    parser.add_argument("--workdir", required=True, metavar="DIR", help="local or gs:// folder of the run")
    parser.add_argument("--coordinator", metavar="HOST:PORT", help="of process 0, for several processes off Cloud TPU")
    parser.add_argument("--processes", type=int, help="how many")
    parser.add_argument("--process", type=int, help="index of this one")
    overrides, rest = {}, []
    words = iter(argv)
    for word in words:
        if word.startswith("--config."):
            key, equals, value = word.removeprefix("--config.").partition("=")
            overrides[key] = value if equals else next(words, "")
        else:
            rest.append(word)
    return parser.parse_args(rest), overrides


def main(argv=None) -> int:
    args, overrides = parse(sys.argv[1:] if argv is None else argv)
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(message)s")
    logging.getLogger("train_rm").setLevel(logging.INFO)
    try:
        return train(args, overrides)
    except (config_lib.ConfigError, checkpoint.CheckpointError, loop.NonFiniteError) as e:
        log.error("%s", e)
        return 1


def train(args, overrides) -> int:
    # -- Config, processes, devices ------------------------------------------------------------------------------------
    config = config_lib.load(args.config, overrides)
    if args.coordinator:
        jax.distributed.initialize(args.coordinator, args.processes, args.process)
    elif len(os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")) > 1:
        jax.distributed.initialize()
    lead = jax.process_index() == 0
    say = log.info if lead else log.debug
    if config.compilation_cache:
        jax.config.update("jax_compilation_cache_dir", os.path.expanduser(config.compilation_cache))
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    mesh = build.make_mesh(config)
    folder, remote = workdir.local_folder(args.workdir)
    say("%d x %s, mesh %s", mesh.size, mesh.devices.flat[0].device_kind, dict(mesh.shape))

    # -- Data ----------------------------------------------------------------------------------------------------------
    m = config.model
    cfg = build.model_config(config)
    base = weights.local_folder(m.init_from, m.revision or None) if m.init_from else None
    tokenizer = data_lib.tokenizer(config, base, cfg)
    prompts = choose_prompts(config, base)
    make = data_lib.to_examples(config, prompts)
    shard = loop.data_shard(mesh, config.rows)
    source, held_out = data_lib.source(config, "train"), data_lib.source(config, "validation")
    steps = config.steps or data_lib.steps_of_epochs(config, source, make, tokenizer, cfg)
    batches = data_lib.batches(config, source, make, tokenizer, cfg, shard)

    # -- Program and weights -------------------------------------------------------------------------------------------
    program = build.build(config, mesh, steps)
    with jax.set_mesh(mesh):
        trainable, frozen = initial_weights(program, base)
    base_hash = f"{sum(int(c) for c in st.checksums(frozen).values()) % 2**32:08x}"
    say("%s parameters trained, %s frozen", *(f"{sum(x.size for x in t.values()):,}" for t in (trainable, frozen)))

    # -- Resume --------------------------------------------------------------------------------------------------------
    facts = dict(steps=steps, data_hash=data_lib.fingerprint(config, source), base_hash=base_hash)
    about = workdir.describe(config, mesh, **facts)
    if not workdir.check_same(remote or workdir.epath.Path(folder), about) and lead:
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / "config.json.part"  # moved when whole: a kill here must not leave half a file
        part.write_text(json.dumps(about, indent=2) + "\n")
        part.replace(folder / "config.json")
    saver = checkpoint.Checkpoints(remote / "checkpoints" if remote else folder / "checkpoints", config.checkpoint.keep)
    found = saver.restore({"trainable": program.trainable, "opt_state": program.opt_state})
    if found:
        start, trees, data_state, extra = found
        trainable, opt_state = trees["trainable"], trees["opt_state"]
        batches.set_state(data_state)
        say("resuming after step %d", start)
    else:
        start, extra = 0, {}
        with jax.set_mesh(mesh):
            opt_state = program.init_optimizer(trainable)
    guard = loop.Guard(config.max_bad_steps, **extra.get("guard", {}))
    writer = metrics.Writer(folder, start, config=config, mirror=remote) if lead else None

    # -- Compile: one program a bucket, none later ---------------------------------------------------------------------
    compiled, flops, number = [], [], np.int32(0)
    with jax.set_mesh(mesh):
        for bucket, batch in program.batches.items():
            began = time.monotonic()
            lowered = program.step.lower(program.trainable, program.opt_state, program.frozen, batch, number)
            compiled.append(lowered.compile())
            flops.append(program.model_flops(bucket))
            say("bucket %s: %.3g FLOPs a step, compiled in %.0f s", bucket, flops[-1], time.monotonic() - began)
    peak = (config.log.peak_flops or topology.peak_flops(mesh.devices.flat[0].device_kind)) * mesh.size

    # -- Loop ----------------------------------------------------------------------------------------------------------
    interruption = loop.Interruption()
    fed = loop.feed(batches, mesh, shard[1])
    progress = metrics.Progress(steps, start, config.log.every) if lead else None
    profile = [int(s) for s in config.log.profile_steps.split(":")] if config.log.profile_steps else [-1, -1]
    clock = time.monotonic()

    def finish(step, item, out, more=None):
        """Fetches a step's figures (waiting for it), checks them and writes them."""
        nonlocal clock
        out = jax.device_get(out)
        now = time.monotonic()
        seconds, clock = now - clock, now
        rows = out.pop("row_sums", None)
        finite = bool(out.pop("finite"))
        bad = guard.check(step, finite, rows, item.meta.keys, shard[0] * (config.rows // shard[1]))
        if bad:
            log.warning("%s", bad)
        for key, reason in item.meta.skipped:
            log.warning("step %d: record %s skipped: %s", step, key, reason)
        if not lead:
            return
        rate = flops[item.meta.bucket] / seconds
        values = {k: float(v) for k, v in out.items()} | item.figures | (more or {})
        values |= {"bad_steps": guard.total, "skipped": len(item.meta.skipped), "step_s": seconds}
        values |= {"tokens_per_s": item.figures["tokens"] / seconds, "model_tflops_per_s": rate / 1e12}
        values |= {"mfu": rate / peak} if peak else {}
        writer.write(step, values)
        progress.show(step, values)

    def save(step, item):
        state = {"trainable": trainable, "opt_state": opt_state}
        saver.save(step, state, item.state, {"guard": {"total": guard.total, "in_row": guard.in_row}})
        if lead:
            writer.mirror_now()

    def validate():
        table = metrics.Table()
        for batch, _ in data_lib.validation_batches(config, held_out, make, tokenizer, cfg, shard):
            put = loop.put(batch, mesh, shard[1])
            table.add(jax.device_get(program.evaluate(trainable, frozen, put)))
        return table.means("validation_")

    pending = None  # figures are fetched one step late, so that the devices never wait for the host
    for step in range(start + 1, steps + 1):
        if step == profile[0]:
            jax.profiler.start_trace(str(folder / "profile"))
        item = next(fed)
        with jax.set_mesh(mesh):
            trainable, opt_state, out = compiled[item.meta.bucket](
                trainable, opt_state, frozen, item.batch, np.int32(step - 1)
            )
        if pending:
            finish(*pending)
        pending = (step, item, out)
        if step == profile[1]:
            jax.block_until_ready(out)
            jax.profiler.stop_trace()
        stop = interruption.now(step)
        last = step == steps
        if config.eval.every and step % config.eval.every == 0 or last:
            with jax.set_mesh(mesh):
                more = validate()
            finish(*pending, more)
            pending, clock = None, time.monotonic()
        if stop or last or step % config.checkpoint.every == 0:
            if pending:
                finish(*pending)
                pending = None
            save(step, item)  # after its figures are written: a checkpoint's steps are always in metrics.jsonl
            clock = time.monotonic()
        if stop and not last:
            saver.close()
            close(batches, writer, progress)
            say("interrupted: saved step %d; the same command continues", step)
            return 0
    saver.close()

    # -- Export, evaluation, report ------------------------------------------------------------------------------------
    figures = {"steps": steps, **{k: v for k, v in last_values(folder).items() if k.startswith("validation_")}}
    out = export.export(program, trainable, folder / "model", tokenizer=tokenizer, prompts=prompts, facts=figures)
    say("model written to %s", out)
    if lead and config.eval.pairs:
        say("judging held-out pairs of the built-in world by generation")
        found = editworld.run(
            out, folder, base=base, untrained=base, pairs=config.eval.pairs, resolution=config.data.resolution
        )
        figures |= {k: found[k] for k in ("pair_accuracy", "pair_accuracy_ci95", "n_pairs", "untrained_pair_accuracy")}
        (out / "README.md").write_text(export.card(config, prompts, figures))
        print(summary(found))
    elif lead:
        write_report(folder)
    close(batches, writer, progress)
    if lead:
        print(f"report: {folder / 'report.html'}")
    return 0


def choose_prompts(config, base):
    """The prompts of the objective: `config.model.prompts`, else those stored with the base, else the standard ones."""
    if config.objective == "sft":
        return None
    stored = export.stored_metadata(base).get("prompts") if base else None
    if config.model.prompts:
        return prompts_lib.get(config.model.prompts)
    return prompts_lib.Prompts.from_json(stored) if stored else prompts_lib.get("standard")


def initial_weights(program, base):
    """(trainable, frozen) on the mesh: random by `config.seed`, then the base's and the adapter's weights over them."""
    m, key = program.config.model, jax.random.key(program.config.seed)
    if base is None:
        return program.init(key)
    trainable = program.init_trainable(key)
    if m.trainable == "full":
        return st.flatten(weights.load(base, program.with_shardings("trainable"))), {}
    frozen = st.flatten(weights.load(base, program.with_shardings("frozen")))
    if m.init_adapter:
        trainable = st.flatten(peft.load(m.init_adapter, program.with_shardings("trainable")))
    return trainable, frozen


def last_values(folder: Path) -> dict:
    rows = metrics.read(folder / "metrics.jsonl")
    return rows[-1] if rows else {}


def close(batches, writer, progress) -> None:
    batches.close()
    if writer:
        writer.close()
        progress.close()


if __name__ == "__main__":
    sys.exit(main())
