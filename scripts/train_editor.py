"""Train an image editor by flow matching, or the autoencoder of one from scratch.

    python scripts/train_editor.py --config configs/editor_omnigen2.py --workdir runs/editor
    python scripts/train_editor.py --config configs/vae_tiny.py --workdir runs/vae_tiny

The same command resumes by itself from the newest whole checkpoint in the workdir; SIGTERM and Ctrl-C save and exit
with status 0, a second one stops at once. Checkpoints, metrics, reports and several hosts are as in train_rm.py: the
run itself is `edit_rl_jax/training/supervised.py`.
"""

import sys

import jax
import jax.numpy as jnp

from edit_rl_jax.editors.registry import editor_files
from edit_rl_jax.editors.sampling import EditorSampler, EditSettings
from edit_rl_jax.editors.vae import flux_vae
from edit_rl_jax.evals.editors import editworld
from edit_rl_jax.flow.sampling import Denoising
from edit_rl_jax.sharding import make_mesh
from edit_rl_jax.training import supervised
from edit_rl_jax.training.report import write_report


def main(argv=None) -> int:
    return supervised.main(argv, __doc__, finish)


def finish(done: supervised.Finished) -> None:
    """Edits held-out scenes of the built-in world, where the config wants it, and writes the report."""
    config = done.config
    if not config.eval.prompts:
        write_report(done.folder)
        return
    supervised.log.info("scoring pixels on held-out scenes of the built-in world")
    how = dict(n=config.eval.prompts, resolution=config.data.resolution)
    if config.model.kind == "autoencoder":
        found = editworld.reconstruct(flux_vae.from_folder(done.model), done.folder, **how)
    else:
        found = editworld.run(sampler(done), done.folder, **how)
    done.write_card({k: found[k] for k in ("success_rate", "success_rate_ci95", "n", "overall")})
    print(editworld.summary(found))


def sampler(done: supervised.Finished) -> EditorSampler:
    """The trained editor over the devices of this process, sampled without guidance."""
    config, kind = done.config, editor_files(done.config.model.kind)
    lora = config.model.trainable == "lora"
    folder, steps = done.given.base if lora else done.model, config.eval.sample_steps
    mesh = make_mesh({"fsdp": (n := jax.local_device_count())}, jax.local_devices())
    dtype = jnp.float32 if jax.default_backend() == "cpu" else jnp.bfloat16
    editor = kind.from_folder(folder, lora=done.model if lora else None, mesh=mesh, dtype=dtype)
    how = dict(rows=-(-64 // n) * n, reference_pixels=config.get("flow", {}).get("reference_pixels", 0))
    settings = EditSettings(Denoising(steps), kind.schedule(folder, steps), **how)
    settings = editworld.shaped(settings, editor.processor, config.data.resolution)
    return EditorSampler(editor, kind.folder_tokenizer(folder), settings, mesh)


if __name__ == "__main__":
    sys.exit(main())
