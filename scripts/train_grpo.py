"""Online RL of an editor with a reward.

    python scripts/train_grpo.py --config configs/grpo_tiny.py --workdir runs/rl --config.rl.judge.model=runs/demo/model

A step is one rollout: groups of edits are sampled, scored, and the policy is updated. The same command resumes by
itself from the newest whole checkpoint in the workdir; SIGTERM and Ctrl-C save and exit with status 0, a second one
stops at once. On several hosts run it once a host: Cloud TPU needs nothing more, elsewhere give --coordinator,
--processes and --process.
"""

import json
import sys
import time

import jax
import jax.numpy as jnp
import numpy as np

from edit_rl_jax.data import principles
from edit_rl_jax.editors.registry import editor_files
from edit_rl_jax.nn import flat as st
from edit_rl_jax.nn import model_files
from edit_rl_jax.rl import rewards
from edit_rl_jax.rl.editors import config as rl_config
from edit_rl_jax.rl.editors import evaluation, figures, prompts
from edit_rl_jax.rl.editors.program import build_program, other_times
from edit_rl_jax.rl.shares import Sharing
from edit_rl_jax.training import interfaces, metrics, processes, session
from edit_rl_jax.training.optim import averaged

log = session.log


def main(argv=None) -> int:
    return session.main(argv, __doc__, train, rl_config.check)


def train(run: session.Session) -> None:
    """Trains, exports and reports; or stops after the step in which a signal came."""
    config, mesh, folder, r = run.config, run.mesh, run.folder, run.config.rl

    # -- Prompts, editor, reward ---------------------------------------------------------------------------------------
    source = prompts.source(config, "train")
    test = prompts.source(config, "test") if r.eval_prompts else None
    sharing = Sharing(jax.process_index(), jax.process_count(), processes.everyone)
    read = lambda source, items: prompts.read(source, items, config.data.on_bad_record, program.check, sharing)
    base, kind = interfaces.base_folder(config), interfaces.model(config)
    architecture = kind.model_config(config)
    tokenizer = kind.tokenizer(config, base, architecture)
    program = build_program(config, mesh, architecture, tokenizer)
    held_out = read(test, range(min(r.eval_prompts, len(test)))) if test else []
    with jax.set_mesh(mesh):
        trainable, frozen = interfaces.initial_weights(kind, program, base)
    run.say("%s", program.sizes)
    if differ := other_times(config, editor_files(config.model.kind).schedule(base, r.steps)):
        run.say("%s", differ)
    reward = rewards.make(config, mesh)

    # -- Resume --------------------------------------------------------------------------------------------------------
    revision = model_files.revision(base)
    facts = dict(data_hash=source.data_hash[:16], base_hash=st.whole_checksum({**trainable, **frozen}))
    facts |= principles.digest(r.judge.get("principles", ""))
    trees = program.state | ({"behind": program.trainable} if r.overlap else {})
    sampling = lambda state: state.get("old", state["trainable"])
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))

    def begin():
        new = program.init_state(trainable)
        return new | ({"behind": copy(sampling(new))} if r.overlap else {})

    state, _ = run.resume(trees, begin, steps=config.steps, base_revision=revision, **facts)
    behind = state.pop("behind", None)  # the weights that made the rollout that was under way
    if run.lead:
        evaluation.fetch(folder, run.remote)
        evaluation.read(folder, run.done or -1)

    # -- What a step is made of ----------------------------------------------------------------------------------------
    seed, input_wait = np.int32(config.seed), 0.0

    def draw(step, weights):
        """(prompts of rollout `step`, the host batch; its condition, images, which of them are finite, and trajectories
        on the devices)."""
        nonlocal input_wait
        began = time.monotonic()
        items = prompts.numbers(config, len(source), step - 1)
        asked = read(source, items)
        batch = program.batch(asked, items, r.group)
        input_wait += time.monotonic() - began
        with jax.set_mesh(mesh):
            condition, drawn = program.rollout(weights, frozen, program.put(batch), seed, np.int32(step), np.int32(-1))
            images, finite = (part.reshape(-1, *part.shape[2:]) for part in drawn.finished)
            return asked, batch, condition, images, finite, drawn._replace(finished=None)

    def judge(asked, batch, images, finite):
        """(rewards, whether valid, groups) of a rollout's images, for `rl.advantages`; the figures of dimensions."""
        number = batch["prompt"].ravel()
        found = rewards.score(reward, [asked[i] for i in number], images, finite)
        groups = np.asarray(prompts.groups(asked), np.int32)[number]
        names, weights = zip(*reward.dimensions)
        shown = figures.of_dimensions(names, found, groups)
        if not r.advantage.decoupled:
            return (found.values, found.valid, groups), shown
        weights = np.asarray(weights, np.float32)
        return (found.each[:, weights != 0], found.valid, groups, weights[weights != 0]), shown

    def change(step, state, condition, drawn, scores):
        """(state, metrics of each update)."""
        out = []
        with jax.set_mesh(mesh):
            for chunk in range(r.updates):
                number = np.int32((step - 1) * r.updates + chunk)
                state, m = program.update(state, frozen, condition, drawn, scores, np.int32(chunk), seed, number)
                out.append(m)
        return state, jax.device_get(out)

    def evaluate(step, count, weights):
        values, images = evaluation.evaluate(program, weights, frozen, held_out[:count], reward)
        try:
            if run.lead:
                evaluation.store(folder, step, values, held_out, images, r.report_prompts)
        except OSError as e:
            if step in (0, config.steps):  # what the run is judged by
                raise
            log.warning("step %d: the evaluation cannot be stored (%s), the report will lack it", step, e)
        return figures.text(evaluation.curve(step, values))

    # -- Loop ----------------------------------------------------------------------------------------------------------
    steps, compilations, pending = run.steps(), processes.count_compilations(), None
    told = sharing.reads.bytes
    if held_out and not processes.agreed((folder / "evaluations" / "000000.json").exists()):
        run.say("before: %s", evaluate(0, len(held_out), trainable))
    del trainable  # the policy's own copy goes on
    for step in steps:
        began, compiled, input_wait = time.monotonic(), compilations(), 0.0
        asked, batch, condition, images, finite, drawn = pending or draw(step, behind or sampling(state))
        pending = behind = None
        if r.overlap and step < config.steps:
            # before the next rollout: what is asked of the devices is done in order
            images, finite = map(rewards.gather, (images, finite))
            behind = copy(sampling(state))
            pending = draw(step + 1, behind)
        jax.block_until_ready(images)
        finite, sampled = rewards.gather(finite), time.monotonic()
        scores, shown = judge(asked, batch, images, finite)
        scored = time.monotonic()
        state, outs = change(step, state, condition, drawn, scores)
        ended = time.monotonic()
        names = [[(f"{asked[p].key}#{k}",) for p, k in zip(*row)] for row in zip(batch["prompt"], batch["member"])]
        for problem in figures.check(run.guard, step, outs, names):
            log.warning("%s", problem)
        if lost := int((~finite).sum()):
            log.warning("step %d: %d edits have pixels that are no numbers: they have no reward", step, lost)
        values = figures.summary(outs) | shown
        if r.oracle_samples:
            values |= figures.oracle_figures([asked[i] for i in batch["prompt"].ravel()], images, r.oracle_samples)
        values |= {"rollout_s": sampled - began, "score_s": scored - sampled, "update_s": ended - scored}
        now = time.monotonic()
        idle = (input_wait + now - ended) / (now - began)  # scoring counts as work
        values |= {"step_s": now - began, "input_wait_s": input_wait, "device_idle_share": idle}
        values |= {"compilations": compilations() - compiled}
        values |= {"bytes_read": sharing.reads.bytes - told}  # with `rl.overlap` those of the next rollout
        told = sharing.reads.bytes
        run.record(step, values)
        if held_out and r.eval_during and config.eval.every and step % config.eval.every == 0 and step < config.steps:
            run.say("step %d, held out: %s", step, evaluate(step, r.eval_during, averaged(state)))
        if run.due(step, outs):
            run.save(step, state | ({"behind": behind or sampling(state)} if r.overlap else {}), {"rollouts": step})
    if run.interrupted:
        return

    # -- Evaluation, export, report ------------------------------------------------------------------------------------
    rows = metrics.read(str(folder / "metrics.jsonl"))
    found = {"steps": config.steps, "train_minutes": round(sum(row["step_s"] for row in rows) / 60, 2)}
    if held_out:
        run.say("after: %s", evaluate(config.steps, len(held_out), averaged(state)))
    if held_out and run.lead:
        stored = evaluation.read(folder)
        found |= evaluation.compare(stored[0], stored[config.steps])
    (folder / "model").mkdir(parents=True, exist_ok=True)
    shown = {k: v for k, v in found.items() if not isinstance(v, dict)}
    facts = {"rewards": str(r.rewards), "success_bonus": r.success_bonus} | shown
    about = dict(tokenizer=tokenizer, prompts=None, facts=facts, revision=revision)
    kind.export(program, averaged(state), folder / "model", **about)
    if run.lead:
        (folder / "eval.json").write_text(json.dumps(found, indent=2) + "\n")
        evaluation.report(folder, held_out, rows, r.success_bonus)
        print(json.dumps(shown, indent=1))


if __name__ == "__main__":
    sys.exit(main())
