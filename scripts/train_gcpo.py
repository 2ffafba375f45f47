"""Online RL of a reasoning verifier on human pairs (GCPO, arXiv 2604.27505).

    python scripts/train_gcpo.py --config configs/gcpo_tiny.py --workdir runs/gcpo --config.model.init_adapter=DIR

A step is one rollout: replies about both images of some pairs are written, read and compared, and the verifier is
updated. The same command resumes by itself from the newest whole checkpoint in the workdir; SIGTERM and Ctrl-C save and
exit with status 0, a second one stops at once. Each process writes the replies about some of the pairs, with a whole
copy of the weights on its own devices (config.mesh: data over processes, tensor within one, fsdp 1).
"""

import json
import sys
import time

import jax
import numpy as np

from edit_rl_jax.data import principles
from edit_rl_jax.data.pipeline import fingerprint
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files
from edit_rl_jax.rl.editors import evaluation as files
from edit_rl_jax.rl.shares import Sharing
from edit_rl_jax.rl.vlm import config as rl_config
from edit_rl_jax.rl.vlm import evaluation, figures, hosts, rollout
from edit_rl_jax.rl.vlm.pairs import Reader
from edit_rl_jax.rl.vlm.program import build_program
from edit_rl_jax.training import interfaces, metrics, processes, session, sources
from edit_rl_jax.training.optim import averaged

log = session.log


def main(argv=None) -> int:
    return session.main(argv, __doc__, train, rl_config.check)


def train(run: session.Session) -> None:
    """Trains, exports and reports; or stops after the step in which a signal came."""
    config, mesh, folder, r = run.config, run.mesh, run.folder, run.config.rl

    # -- Pairs, model --------------------------------------------------------------------------------------------------
    source = sources.source(config, "train")
    sets = principles.read(r.principles) if r.principles else {}
    base, kind = interfaces.base_folder(config), interfaces.model(config)
    architecture = kind.model_config(config)
    tokenizer, prompts = kind.tokenizer(config, base, architecture), figures.prompts(config, base)
    program = build_program(config, mesh, architecture, tokenizer)
    with jax.set_mesh(mesh):
        trainable, frozen = interfaces.initial_weights(kind, program, base)
    run.say("%s", program.sizes)
    with jax.set_mesh(hosts.own(mesh)):
        model = program.merge(*hosts.weights((trainable, frozen), mesh))
    writer = rollout.Writer(config, model, tokenizer, prompts, program.packer.images, mesh)
    sharing, held_out = Sharing(jax.process_index(), jax.process_count(), processes.everyone), []
    if r.eval_pairs:
        test = Reader(sources.source(config, "validation"), config, sets, sharing=sharing)
        held_out = test.take(r.eval_pairs, writer.asked)

    # -- Resume --------------------------------------------------------------------------------------------------------
    revision = model_files.revision(base)
    data = fingerprint(source, config.data.buckets, seed=config.seed, pairs=r.pairs)
    facts = dict(data_hash=data, base_hash=st.whole_checksum({**trainable, **frozen})) | principles.digest(r.principles)
    begin = lambda: program.init_state(trainable)
    state, position = run.resume(program.state, begin, steps=config.steps, base_revision=revision, **facts)
    reader, check = Reader(source, config, sets, position, sharing), rollout.check(writer, program.packer)
    if run.lead:
        files.fetch(folder, run.remote)
        files.read(folder, run.done or -1)

    # -- What a step is made of ----------------------------------------------------------------------------------------
    def hand_over(weights):
        """Has the engine write with these weights; the base's are not copied."""
        with jax.set_mesh(writer.mesh):
            writer.engine.update(program.merge(*hosts.weights((weights, frozen), mesh)))

    share = r.pairs // r.updates  # pairs of an update

    def pack(replies, advantage):
        """The batch of each update."""
        which = [range(chunk * share, (chunk + 1) * share) for chunk in range(r.updates)]
        return [program.packer.pack(rollout.examples(config, writer, replies, advantage, part)) for part in which]

    def change(step, state, batches):
        """(state, metrics of each update)."""
        out = []
        with jax.set_mesh(mesh):
            placed = [(program.put(b.arrays), np.int32(b.count)) for b in batches]
            for i, (arrays, count) in enumerate(placed[1:], 1):  # before the weights move
                arrays = arrays | {"answer_old": program.old(state["trainable"], frozen, arrays, count)}
                placed[i] = (arrays, count)
            for chunk, (arrays, count) in enumerate(placed):
                number = np.int32((step - 1) * r.updates + chunk)
                more = (count, np.float32(share), np.bool_(chunk == 0), number)
                state, m = program.update(state, frozen, arrays, *more)
                out.append(m)
        return state, jax.device_get(out)

    def evaluate(step, weights):
        hand_over(weights)
        found = evaluation.evaluate(writer, held_out, r.report_pairs, r.pairs)
        if run.lead:
            files.store(folder, step, found, (), (), 0)
        run.say("step %d, held out: %s", step, evaluation.curve(step, found))

    # -- Loop ----------------------------------------------------------------------------------------------------------
    steps, compilations = run.steps(), processes.count_compilations()
    if held_out and not processes.agreed((folder / "evaluations" / "000000.json").exists()):
        evaluate(0, trainable)
    del trainable, model  # the policy's own copy goes on
    for step in steps:
        began, compiled, counted = time.monotonic(), compilations(), figures.counts(writer.engine)
        hand_over(state["trainable"])
        before = sharing.reads.bytes
        asking = time.monotonic()
        asked = reader.take(r.pairs, check)
        input_wait = time.monotonic() - asking
        replies = writer.write(asked, (step - 1) * r.pairs, step)
        sampled = time.monotonic()
        advantage, shown = rollout.advantages_of(config, replies)
        scored = time.monotonic()
        batches = pack(replies, advantage)
        packed = time.monotonic()
        state, outs = change(step, state, batches)
        ended = time.monotonic()
        for problem in figures.check(run.guard, step, outs, batches, shown):
            log.warning("%s", problem)
        values = figures.summary(outs, batches) | shown | figures.since(writer.engine, counted)
        values |= {"ties_passed_over": reader.ties, "bad_records": reader.bad}
        values |= {"bytes_read": sharing.reads.bytes - before}
        values |= {"rollout_s": sampled - began, "score_s": scored - sampled, "update_s": ended - scored}
        now = time.monotonic()
        idle = (input_wait + packed - sampled + now - ended) / (now - began)  # the engine's own waits count as work
        values |= {"step_s": now - began, "input_wait_s": input_wait, "device_idle_share": idle}
        values |= {"compilations": compilations() - compiled}
        run.record(step, values)
        if held_out and config.eval.every and step % config.eval.every == 0 and step < config.steps:
            evaluate(step, averaged(state))
        if run.due(step, outs):
            run.save(step, state, reader.state)
    if run.interrupted:
        return

    # -- Evaluation, export, report ------------------------------------------------------------------------------------
    rows = metrics.read(str(folder / "metrics.jsonl"))
    found = {"steps": config.steps, "train_minutes": round(sum(row["step_s"] for row in rows) / 60, 2)}
    if held_out:
        evaluate(config.steps, averaged(state))
    if held_out and run.lead:
        stored = files.read(folder)
        found |= evaluation.compare(stored[0], stored[config.steps])
    shown = {k: v for k, v in found.items() if not isinstance(v, dict)}
    (folder / "model").mkdir(parents=True, exist_ok=True)
    about = dict(tokenizer=tokenizer, prompts=prompts, facts={"algorithm": r.algorithm} | shown, revision=revision)
    kind.export(figures.exported(program), averaged(state), folder / "model", **about)
    if run.lead:
        (folder / "eval.json").write_text(json.dumps(found, indent=2) + "\n")
        evaluation.report(folder, held_out, rows)
        print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    sys.exit(main())
