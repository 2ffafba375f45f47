"""Train a reward model (or pretrain the tiny base that it starts from).

    python scripts/train_rm.py --config configs/rm_tiny.py --workdir runs/demo --config.optim.lr=3e-4

The same command resumes by itself from the newest whole checkpoint in the workdir; SIGTERM and Ctrl-C save and exit
with status 0, a second one stops at once. On several hosts run it once a host: Cloud TPU needs nothing more, elsewhere
give --coordinator, --processes and --process. The run itself is `edit_rl_jax/training/supervised.py`.
"""

import sys

import jax

from edit_rl_jax.training import supervised
from edit_rl_jax.training.report import write_report


def main(argv=None) -> int:
    return supervised.main(argv, __doc__, finish)


def finish(done: supervised.Finished) -> None:
    """Judges held-out pairs of the built-in world and writes the report."""
    config = done.config
    if not config.eval.pairs:
        write_report(done.folder)
        return
    from edit_rl_jax.evals.judges import editworld  # and with it what generates answers: training needs none of it
    from edit_rl_jax.evals.judges.pairs import summary

    supervised.log.info("judging held-out pairs of the built-in world")
    alone = jax.process_count() == 1 and done.mesh.size > 1  # else the first process judges on its first device
    how = dict(base=done.given.base, mesh=done.mesh if alone else None)
    judge, before = editworld.load(done.model, done.given.base, options={"passes": config.eval.passes}, **how)
    drawn = dict(pairs=config.eval.pairs, resolution=config.data.resolution, controls=config.eval.controls)
    about = {"model": str(done.model), "passes": config.eval.passes}
    found = editworld.run(judge, done.folder, untrained=before, about=about, **drawn)
    keys = ("pair_accuracy", "pair_accuracy_ci95", "n_pairs", "untrained_pair_accuracy")
    done.write_card({k: found[k] for k in keys if k in found})
    print(summary(found))


if __name__ == "__main__":
    sys.exit(main())
