"""The loop of supervised training, from a config to a report: what the scripts of all kinds of models share."""

import dataclasses
import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from edit_rl_jax import chips
from edit_rl_jax.data.planning import Reads
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files
from edit_rl_jax.training import feed, interfaces, metrics, optim, processes, session
from edit_rl_jax.training.program import build_program
from edit_rl_jax.training.sources import Input
from edit_rl_jax.training.sources import source as source_of

log = session.log


@dataclasses.dataclass(frozen=True)
class Finished:
    """What the last part of a script works with: the run is trained and exported, its arrays are let go.

    Attributes:
      folder: the workdir (its local part). model: the exported model in it.
      given: what its config named. revision: of the base. figures: for its card.
    """

    config: Any
    mesh: Any
    folder: Path
    model: Path
    given: Input
    revision: str
    figures: dict[str, Any]

    def write_card(self, figures: dict[str, Any]) -> None:
        """Writes the model card anew, with these figures besides."""
        text = self.given.kind.card(self.config, self.given.prompts, self.figures | figures, self.revision)
        (self.model / "README.md").write_text(text)


def main(argv, doc: str, finish: Callable[[Finished], None]) -> int:
    """Runs the script whose docstring is `doc`; the first process calls `finish` at the end of a run that is through.
    Returns the exit status."""
    return session.main(argv, doc, functools.partial(train, finish=finish))


def train(run: session.Session, finish: Callable[[Finished], None]) -> None:
    """Trains, exports and finishes; or stops after the step in which a signal came."""
    config, mesh, folder = run.config, run.mesh, run.folder

    # -- Data ----------------------------------------------------------------------------------------------------------
    given = Input.of(config)
    shard = feed.data_shard(mesh, config.rows)
    source = source_of(config, "train")
    held_out = source_of(config, "validation") if config.eval.batches else None
    if held_out:
        given.check_validation(held_out, shard, processes.exchange(*shard))
    steps = config.steps or processes.number(given.steps_of_epochs(source) if run.lead else 0)
    exchange, reads = processes.exchange(*shard), Reads()
    batches = given.batches(source, shard, exchange, reads)
    run.stack.callback(batches.close)
    if exchange:
        run.stack.callback(exchange.close)  # before: a thread that reads ahead may wait for others

    # -- Program, weights, and where the run goes on -------------------------------------------------------------------
    program = build_program(config, mesh, steps)
    with jax.set_mesh(mesh):
        trainable, frozen = interfaces.initial_weights(given.kind, program, given.base)
    run.say("%s", program.sizes)
    revision = model_files.revision(given.base)
    facts = dict(data_hash=given.fingerprint(source), base_hash=st.whole_checksum(frozen))
    begin = lambda: program.init_state(trainable)
    state, position = run.resume(program.state, begin, steps=steps, base_revision=revision, **facts)
    if run.done:
        batches.set_state(position)
    del trainable

    # -- Compile: one program a bucket, none later ---------------------------------------------------------------------
    compiled, flops, number = [], [], np.int32(0)
    with jax.set_mesh(mesh):
        for bucket, batch in program.batches.items():
            began = time.monotonic()
            lowered = program.step.lower(program.state, program.frozen, batch, number)
            evaluate = program.evaluate.lower(program.trainable, program.frozen, batch) if held_out else None
            compiled.append((lowered.compile(), evaluate and evaluate.compile()))
            flops.append(program.model_flops(bucket))
            run.say("bucket %s: %.3g FLOPs a step, compiled in %.0f s", bucket, flops[-1], time.monotonic() - began)
    peak = (config.log.peak_flops or chips.peak_flops(mesh.devices.flat[0].device_kind)) * mesh.size

    # -- Loop ----------------------------------------------------------------------------------------------------------
    fed = feed.feed(batches, mesh, shard[1], reads, processes.exchange(*shard))
    rows = feed.local_rows(mesh, config.rows)
    clock, devices = time.monotonic(), metrics.Devices()
    run.stack.callback(devices.close)

    def record(step, item, out, validating=False):
        """Fetches a step's figures (waiting for it), checks them, validates if it is time, and writes them."""
        nonlocal clock
        asked = time.monotonic()
        out = jax.device_get(out)
        now = time.monotonic()
        seconds, clock = now - clock, now
        own = max(0.0, seconds - (now - asked) - item.figures["input_wait_s"])  # nobody waits: the host works
        bad = run.guard.check(step, bool(out.pop("finite")), out.pop("row_sums", None), item.meta.keys, rows)
        if bad:
            log.warning("%s", bad)
        for key, reason in item.meta.skipped:
            log.warning("step %d: record %s skipped: %s", step, key, reason)
        more = validate() if validating else {}
        clock = time.monotonic() if validating else clock  # validation is no part of the next step's time
        rate = flops[item.meta.bucket] / seconds
        values = {k: float(v) for k, v in out.items()} | item.figures | more
        values |= {"skipped": len(item.meta.skipped), "step_s": seconds, "host_s": own} | devices.figures(step)
        values |= {"tokens_per_s": item.figures["tokens"] / seconds, "model_tflops_per_s": rate / 1e12}
        run.record(step, values | ({"mfu": rate / peak} if peak else {}))

    def validate():
        table, skipped = metrics.Table(), 0
        for batch, meta in given.validation_batches(held_out, shard, processes.exchange(*shard)):
            with jax.set_mesh(mesh):
                sums = compiled[meta.bucket][1](optim.averaged(state), frozen, feed.put(batch, mesh, shard[1]))
            table.add(jax.device_get(sums))
            skipped += len(meta.skipped)
            for key, reason in meta.skipped:
                log.warning("validation: record %s skipped: %s", key, reason)
        return table.means("validation_") | ({"validation_skipped": skipped} if skipped else {})

    pending = None  # figures are fetched one step late, so that the devices never wait for the host
    for step in run.steps():
        item = next(fed)
        with jax.set_mesh(mesh):
            devices.begin(step)
            state, out = compiled[item.meta.bucket][0](state, frozen, item.batch, np.int32(step - 1))
            devices.end(step, out)
        if pending:
            record(*pending)
        pending = (step, item, out)
        due = run.due(step, out)
        if held_out and (config.eval.every and step % config.eval.every == 0 or step == steps):
            record(*pending, validating=True)
            pending = None
        if due:
            if pending:
                record(*pending)
                pending = None
            run.save(step, state, item.state)
            clock = time.monotonic()
    log.info("process %d read %d records, %.3f MB", jax.process_index(), reads.records, reads.bytes / 1e6)
    if run.interrupted:
        return

    # -- Export, evaluation, report ------------------------------------------------------------------------------------
    figures = {"steps": steps, **{k: v for k, v in last_values(folder).items() if k.startswith("validation_")}}
    about = dict(frozen=frozen, tokenizer=given.tokenizer, prompts=given.prompts, facts=figures, source=source)
    about |= dict(revision=revision)
    model = given.kind.export(program, optim.averaged(state), folder / "model", **about)
    run.say("model written to %s", model)
    for x in jax.tree.leaves((state, frozen)):  # evaluation needs the room
        x.delete()
    if run.lead:
        finish(Finished(config, mesh, folder, model, given, revision, figures))


def last_values(folder: Path) -> dict:
    """Reads the figures of the last step."""
    rows = metrics.read(folder / "metrics.jsonl")
    return rows[-1] if rows else {}
