"""Online RL of an editor with a reward.

    python scripts/train_grpo.py --config configs/grpo_tiny.py --workdir runs/rl --config.rl.judge.model=runs/demo/model

A step is one rollout: groups of edits are sampled, scored, and the policy is updated. The same command resumes by
itself from the newest whole checkpoint in the workdir; SIGTERM and Ctrl-C save and exit with status 0, a second one
stops at once. On several hosts run it once a host: Cloud TPU needs nothing more, elsewhere give --coordinator,
--processes and --process.
"""

import functools
import json
import os
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jax.experimental import multihost_utils

from edit_rl_jax.nn import flat as st
from edit_rl_jax.rl import rewards, trainer
from edit_rl_jax.rl.advantages import AdvantageConfig
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import evaluation, program, prompts
from edit_rl_jax.training import checkpoint, feed, interfaces, lease, metrics, on_mesh, session, start, workdir
from edit_rl_jax.training import config as config_lib

log = session.log


def main(argv=None) -> int:
    args, overrides = session.parse(argv, __doc__)
    return session.run(functools.partial(train, args, overrides))


def train(args, overrides, stack) -> int:
    """Everything that needs closing is closed by `stack`, also after an error."""
    # -- Config, processes, devices ------------------------------------------------------------------------------------
    config = config_lib.load(args.config, overrides)
    rl_config.check(config)
    r = config.rl
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

    # -- Prompts, editor, reward ---------------------------------------------------------------------------------------
    source = prompts.source(config, "train")
    test = prompts.source(config, "test") if r.eval_prompts else ()
    read = lambda source, i: prompts.take(source, i, config.data.on_bad_record)
    held_out = [read(test, i) for i in range(min(r.eval_prompts, len(test)))]
    base, kind = interfaces.base_folder(config), interfaces.model(config)
    architecture = kind.model_config(config)
    tokenizer = kind.tokenizer(config, base, architecture)
    built = program.build_program(config, mesh, architecture, tokenizer)
    with jax.set_mesh(mesh):
        trainable, frozen = start.initial_weights(built, base)
    base_hash = f"{sum(int(c) for c in st.checksums({**trainable, **frozen}).values()) % 2**32:08x}"
    say("%s parameters trained, %s frozen", *(f"{sum(x.size for x in t.values()):,}" for t in (trainable, frozen)))
    reward = rewards.make(config, mesh)

    # -- Resume --------------------------------------------------------------------------------------------------------
    facts = dict(steps=config.steps, data_hash=source.data_hash[:16], base_hash=base_hash)
    revision = start.revision(base)
    workdir.enter(folder, remote, workdir.describe(config, mesh, base_revision=revision, **facts))
    checkpoints = checkpoint.Checkpoints((remote or folder) / "checkpoints", config.checkpoint.keep)
    session.closing(stack, checkpoints.close)
    trees = built.state | ({"behind": built.state["trainable"]} if r.overlap else {})
    found = checkpoints.restore(trees)
    done, state, _, extra = found or (0, None, None, {})
    with jax.set_mesh(mesh):
        state = state or built.init_state(trainable)
    behind = state.pop("behind", None)  # the weights that made the rollout that was under way
    if found:
        say("resuming after step %d", done)
    guard = feed.Guard(config.max_bad_steps, **extra.get("guard", {}))
    if lead:
        evaluation.fetch(folder, remote)
        evaluation.read(folder, done if found else -1)
        writer = metrics.Writer(folder, done, config=config, mirror=remote)
        progress = metrics.Progress(config.steps, done, config.log.every)
        session.closing(stack, writer.close, unless=(lease.LeaseError,))  # which mirrors
        stack.callback(progress.close)
    saver = session.Saver(checkpoints, writer if lead else None, config.checkpoint.every, config.checkpoint.max_failed)

    # -- What a step is made of ----------------------------------------------------------------------------------------
    size, settings, seed = tuple(r.size), AdvantageConfig(**r.advantage.to_dict()), np.int32(config.seed)
    sampling = lambda state: state.get("old", state["trainable"])
    best = lambda state: state.get("ema", state["trainable"])
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def draw(step, weights):
        """(prompts of rollout `step`, the host batch, its condition, images and trajectories on the devices)."""
        items = prompts.numbers(config, len(source), step - 1)
        asked = [read(source, i) for i in items]
        batch = built.batch(asked, items, r.group)
        with jax.set_mesh(mesh):
            condition, drawn = built.rollout(weights, frozen, built.put(batch), seed, np.int32(step), np.int32(-1))
            return asked, batch, condition, drawn.finished.reshape(-1, *size, 3), drawn._replace(finished=None)

    def judge(asked, batch, images):
        """Advantages of a rollout's images."""
        each = [asked[i] for i in batch["prompt"].ravel()]
        scores = rewards.score(reward, each, images)
        groups = np.asarray(prompts.groups(asked))[batch["prompt"].ravel()]
        return trainer.advantages_of(scores, groups, settings)

    def change(step, condition, drawn, advantages):
        """(state, metrics of each update)."""
        new, out = state, []
        values, keep = (
            built.rows(np.asarray(a).reshape(-1, config.rows)) for a in (advantages.values, advantages.keep)
        )
        with jax.set_mesh(mesh):
            for chunk in range(r.updates):
                number = np.int32((step - 1) * r.updates + chunk)
                new, m = built.update(new, frozen, condition, drawn, values, keep, np.int32(chunk), seed, number)
                out.append(m)
        return new, jax.device_get(out)

    def evaluate(step, count, weights):
        values, images = evaluation.evaluate(built, weights, frozen, held_out[:count], reward)
        try:
            if lead:
                evaluation.store(folder, step, values, held_out, images, r.report_prompts)
        except OSError as e:
            if step in (0, config.steps):  # what the run is judged by
                raise
            log.warning("step %d: the evaluation cannot be stored (%s), the report will lack it", step, e)
        return evaluation.curve(step, values)

    # -- Loop ----------------------------------------------------------------------------------------------------------
    interruption, trace = feed.Interruption(), feed.Trace(config.log.profile_steps, folder / "profile")
    stack.callback(interruption.restore)
    stack.callback(trace.stop)
    compilations = trainer.count_compilations()
    if held_out and not trainer.agreed((folder / "evaluations" / "000000.json").exists()):
        say("before: %s", trainer.text(evaluate(0, len(held_out), trainable)))
    del trainable  # the policy's own copy goes on
    pending = None
    for step in range(done + 1, config.steps + 1):
        trace.before(step)
        began, compiled = time.monotonic(), compilations()
        asked, batch, condition, images, drawn = pending or draw(step, behind or sampling(state))
        pending = behind = None
        if r.overlap and step < config.steps:
            images = rewards.gather(images)  # before the next rollout: what is asked of the devices is done in order
            behind = copy(sampling(state))
            pending = draw(step + 1, behind)
        jax.block_until_ready(images)
        sampled = time.monotonic()
        advantages = judge(asked, batch, images)
        scored = time.monotonic()
        state, outs = change(step, condition, drawn, advantages)
        ended = time.monotonic()
        names = [[(f"{asked[p].key}#{k}",) for p, k in zip(*row)] for row in zip(batch["prompt"], batch["member"])]
        for problem in trainer.check(guard, step, outs, advantages, names):
            log.warning("%s", problem)
        values = trainer.summary(outs, advantages)
        values |= {"bad_steps": guard.total, "failed_saves": saver.failed}
        if r.oracle_samples:
            values |= trainer.oracle_figures([asked[i] for i in batch["prompt"].ravel()], images, r.oracle_samples)
        values |= {"rollout_s": sampled - began, "score_s": scored - sampled, "update_s": ended - scored}
        values |= {"step_s": time.monotonic() - began, "compilations": compilations() - compiled}
        trace.after(step, outs)
        if held:
            held.check(sure=False)
            writer.write(step, values)
            progress.show(step, values)
        if held_out and r.eval_during and config.eval.every and step % config.eval.every == 0 and step < config.steps:
            say("step %d, held out: %s", step, trainer.text(evaluate(step, r.eval_during, best(state))))
        stop, last = interruption.now(step), step == config.steps
        if saver.due(step) or stop or last:
            extra = {"guard": {"total": guard.total, "in_row": guard.in_row}}
            more = {"behind": behind or sampling(state)} if r.overlap else {}
            if held:
                held.check()
            saver.save(step, state | more, {"rollouts": step}, extra, stopping=stop or last)
        if stop:
            say("interrupted: saved step %d; the same command continues", step)
            return 0
    trace.stop()
    interruption.restore()

    # -- Evaluation, export, report ------------------------------------------------------------------------------------
    if held:
        held.check()
    rows = metrics.read(str(folder / "metrics.jsonl"))
    figures = {"steps": config.steps, "train_minutes": round(sum(row["step_s"] for row in rows) / 60, 2)}
    if held_out:
        say("after: %s", trainer.text(evaluate(config.steps, len(held_out), best(state))))
    if held_out and lead:
        found = evaluation.read(folder)
        figures |= evaluation.compare(found[0], found[config.steps])
    (folder / "model").mkdir(parents=True, exist_ok=True)
    shown = {k: v for k, v in figures.items() if not isinstance(v, dict)}
    facts = {"rewards": str(r.rewards), "success_bonus": r.success_bonus} | shown
    card = dict(prompts=None, facts=facts, revision=revision)
    kind.export(built, best(state), folder / "model", tokenizer=tokenizer, **card)
    if lead:
        (folder / "eval.json").write_text(json.dumps(figures, indent=2) + "\n")
        evaluation.report(folder, held_out, rows, r.success_bonus)
        print(json.dumps(shown, indent=1))
    if jax.process_count() > 1:  # who leaves early would wait for the others with a time limit
        multihost_utils.sync_global_devices("finished")
    stack.close()  # all is written and mirrored: now the run counts as finished
    if lead:
        workdir.mark_finished(remote or epath.Path(folder))
        print(f"report: {folder / 'report.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
