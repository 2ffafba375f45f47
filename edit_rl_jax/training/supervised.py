"""A training run, from its config to its report: what the training scripts of all kinds of models share."""

import dataclasses
import functools
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from edit_rl_jax import chips
from edit_rl_jax.nn import flat as st
from edit_rl_jax.training import checkpoint, feed, interfaces, lease, metrics, on_mesh, optim, session, start, workdir
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import sources as data_lib
from edit_rl_jax.training.program import build_program

log = session.log


@dataclasses.dataclass(frozen=True)
class Finished:
    """What the last part of a script works with: the run is trained and exported, its arrays are let go.

    Attributes:
      folder: the workdir (its local part). model: the exported model in it.
      base, revision, prompts: what it started from. figures: for its card.
    """

    config: Any
    mesh: Any
    folder: Path
    model: Path
    base: Path | None
    revision: str
    prompts: Any
    figures: dict[str, Any]


def main(argv, doc: str, finish: Callable[[Finished], None]) -> int:
    """Runs the script whose docstring is `doc`; the first process calls `finish` at the end of a run that is through.
    Returns the exit status."""
    args, overrides = session.parse(argv, doc)
    return session.run(functools.partial(train, args, overrides, finish))


def train(args, overrides, finish, stack) -> int:
    """Everything that needs closing is closed by `stack`, also after an error."""
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
    mesh = on_mesh.make_mesh(config)
    folder, remote = workdir.local_folder(args.workdir)
    held = lease.agreed(lambda: lease.Lease(remote or folder))
    if held:
        stack.callback(held.close)
    say("%d x %s, mesh %s", mesh.size, mesh.devices.flat[0].device_kind, dict(mesh.shape))

    # -- Data ----------------------------------------------------------------------------------------------------------
    cfg = interfaces.model(config).model_config(config)
    base = interfaces.base_folder(config)
    tokenizer = data_lib.tokenizer(config, base, cfg)
    prompts = start.prompts(config, base)
    make = data_lib.to_examples(config, prompts)
    shard = feed.data_shard(mesh, config.rows)
    source = data_lib.source(config, "train")
    held_out = data_lib.source(config, "validation") if config.eval.batches else None
    steps = config.steps or data_lib.steps_of_epochs(config, source, make, tokenizer, cfg)
    batches = data_lib.batches(config, source, make, tokenizer, cfg, shard)
    stack.callback(batches.close)

    # -- Program and weights -------------------------------------------------------------------------------------------
    program = build_program(config, mesh, steps)
    with jax.set_mesh(mesh):
        trainable, frozen = start.initial_weights(program, base)
    base_hash = f"{sum(int(c) for c in st.checksums(frozen).values()) % 2**32:08x}"
    say("%s parameters trained, %s frozen", *(f"{sum(x.size for x in t.values()):,}" for t in (trainable, frozen)))

    # -- Resume --------------------------------------------------------------------------------------------------------
    revision = start.revision(base)
    facts = dict(steps=steps, data_hash=data_lib.fingerprint(config, source), base_hash=base_hash)
    workdir.enter(folder, remote, workdir.describe(config, mesh, base_revision=revision, **facts))
    checkpoints = checkpoint.Checkpoints((remote or folder) / "checkpoints", config.checkpoint.keep)
    session.closing(stack, checkpoints.close)
    found = checkpoints.restore(program.state)
    if found:
        done, state, data_state, extra = found
        batches.set_state(data_state)
        say("resuming after step %d", done)
    else:
        done, extra = 0, {}
        with jax.set_mesh(mesh):
            state = program.init_state(trainable)
    del trainable
    guard = feed.Guard(config.max_bad_steps, **extra.get("guard", {}))
    if lead:
        writer = metrics.Writer(folder, done, config=config, mirror=remote)
        progress = metrics.Progress(steps, done, config.log.every)
        session.closing(stack, writer.close, unless=(lease.LeaseError,))  # which mirrors
        stack.callback(progress.close)
    saver = session.Saver(checkpoints, writer if lead else None, config.checkpoint.every, config.checkpoint.max_failed)

    # -- Compile: one program a bucket, none later ---------------------------------------------------------------------
    compiled, flops, number = [], [], np.int32(0)
    with jax.set_mesh(mesh):
        for bucket, batch in program.batches.items():
            began = time.monotonic()
            lowered = program.step.lower(program.state, program.frozen, batch, number)
            evaluate = program.evaluate.lower(program.trainable, program.frozen, batch) if held_out else None
            compiled.append((lowered.compile(), evaluate and evaluate.compile()))
            flops.append(program.model_flops(bucket))
            say("bucket %s: %.3g FLOPs a step, compiled in %.0f s", bucket, flops[-1], time.monotonic() - began)
    peak = (config.log.peak_flops or chips.peak_flops(mesh.devices.flat[0].device_kind)) * mesh.size

    # -- Loop ----------------------------------------------------------------------------------------------------------
    interruption, trace = feed.Interruption(), feed.Trace(config.log.profile_steps, folder / "profile")
    stack.callback(interruption.restore)
    stack.callback(trace.stop)
    fed, rows = feed.feed(batches, mesh, shard[1]), feed.local_rows(mesh, config.rows)
    clock = time.monotonic()

    def record(step, item, out, validating=False):
        """Fetches a step's figures (waiting for it), checks them, validates if it is time, and writes them."""
        nonlocal clock
        out = jax.device_get(out)
        now = time.monotonic()
        seconds, clock = now - clock, now
        bad = guard.check(step, bool(out.pop("finite")), out.pop("row_sums", None), item.meta.keys, rows)
        if bad:
            log.warning("%s", bad)
        for key, reason in item.meta.skipped:
            log.warning("step %d: record %s skipped: %s", step, key, reason)
        more = validate() if validating else {}
        clock = time.monotonic() if validating else clock  # validation is no part of the next step's time
        if not held:
            return
        held.check(sure=False)
        rate = flops[item.meta.bucket] / seconds
        values = {k: float(v) for k, v in out.items()} | item.figures | more
        values |= {"bad_steps": guard.total, "failed_saves": saver.failed}
        values |= {"skipped": len(item.meta.skipped), "step_s": seconds}
        values |= {"tokens_per_s": item.figures["tokens"] / seconds, "model_tflops_per_s": rate / 1e12}
        values |= {"mfu": rate / peak} if peak else {}
        writer.write(step, values)
        progress.show(step, values)

    def validate():
        table = metrics.Table()
        for batch, meta in data_lib.validation_batches(config, held_out, make, tokenizer, cfg, shard):
            with jax.set_mesh(mesh):
                sums = compiled[meta.bucket][1](optim.averaged(state), frozen, feed.put(batch, mesh, shard[1]))
            table.add(jax.device_get(sums))
        return table.means("validation_")

    pending = None  # figures are fetched one step late, so that the devices never wait for the host
    for step in range(done + 1, steps + 1):
        trace.before(step)
        item = next(fed)
        with jax.set_mesh(mesh):
            state, out = compiled[item.meta.bucket][0](state, frozen, item.batch, np.int32(step - 1))
        if pending:
            record(*pending)
        pending = (step, item, out)
        trace.after(step, out)
        stop = interruption.now(step)
        last = step == steps
        if held_out and (config.eval.every and step % config.eval.every == 0 or last):
            record(*pending, validating=True)
            pending = None
        if saver.due(step) or stop or last:
            if pending:
                record(*pending)
                pending = None
            counts = {"guard": {"total": guard.total, "in_row": guard.in_row}}
            if held:
                held.check()
            saver.save(step, state, item.state, counts, stopping=stop or last)
            clock = time.monotonic()
        if stop:
            say("interrupted: saved step %d; the same command continues", step)
            return 0
    trace.stop()
    interruption.restore()

    # -- Export, evaluation, report ------------------------------------------------------------------------------------
    if held:
        held.check()
    figures = {"steps": steps, **{k: v for k, v in last_values(folder).items() if k.startswith("validation_")}}
    about = dict(prompts=prompts, facts=figures, revision=revision)
    exported = interfaces.model(config).export
    model = exported(program, optim.averaged(state), folder / "model", frozen=frozen, tokenizer=tokenizer, **about)
    say("model written to %s", model)
    for x in jax.tree.leaves((state, frozen)):  # evaluation needs the room
        x.delete()
    if lead:
        finish(Finished(config, mesh, folder, model, base, revision, prompts, figures))
    if jax.process_count() > 1:  # who leaves early would wait for the others with a time limit
        multihost_utils.sync_global_devices("finished")
    stack.close()  # all is written and mirrored: now the run counts as finished
    if lead:
        workdir.mark_finished(remote or epath.Path(folder))
        print(f"report: {folder / 'report.html'}")
    return 0


def last_values(folder: Path) -> dict:
    rows = metrics.read(folder / "metrics.jsonl")
    return rows[-1] if rows else {}
