"""Checkpoints: exact on any mesh; a damaged or unfinished one is named and the one before it used."""

import logging

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from edit_rl_jax import sharding
from edit_rl_jax.training.checkpoint import CheckpointError, Checkpoints


def trees(mesh, seed):
    rng = np.random.default_rng(seed)
    place = lambda x, spec: jax.device_put(x, NamedSharding(mesh, spec))
    kernel = place(rng.normal(size=(64, 256)).astype(np.float32), PartitionSpec("fsdp"))
    return {
        "trainable": {"a.kernel": kernel},
        "opt_state": (place(np.int32(seed), PartitionSpec()), {"mu": kernel * 2}),
    }


def abstract(tree):
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), tree)


def equal(a, b):
    return jax.tree.all(jax.tree.map(lambda x, y: bool((np.asarray(x) == np.asarray(y)).all()), a, b))


@pytest.fixture
def saved(tmp_path):
    """A folder with checkpoints of steps 10 and 20, and the mesh they were written on."""
    mesh = sharding.make_mesh({"fsdp": 4}, jax.devices()[:4])
    saver = Checkpoints(tmp_path, keep=2)
    for step in (5, 10, 20):
        saver.save(step, trees(mesh, step), {"position": step}, {"guard": step})
    saver.close()
    return tmp_path, mesh


def test_newest_are_kept_and_restore_onto_another_mesh(saved):
    folder, mesh = saved
    other = sharding.make_mesh({"fsdp": 2, "tensor": 2}, jax.devices()[4:])
    saver = Checkpoints(folder, keep=2)
    assert saver.steps() == [10, 20]
    step, found, data, extra = saver.restore(abstract(trees(other, 0)))
    saver.close()
    assert (step, data, extra) == (20, {"position": 20}, {"guard": 20}) and equal(found, trees(mesh, 20))
    assert found["trainable"]["a.kernel"].sharding.mesh == other


def largest(folder):
    return max((p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)


def flip(folder):
    file = largest(folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 4
    file.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [
        flip,
        lambda f: largest(f).write_bytes(b""),
        lambda f: largest(f).unlink(),
        lambda f: (f / "meta/metadata").unlink(),
    ],
    ids=["one bit", "empty", "missing", "no metadata"],
)
def test_a_damaged_newest_falls_back(saved, damage, caplog):
    folder, mesh = saved
    damage(folder / "20")
    saver = Checkpoints(folder, keep=2)
    with caplog.at_level(logging.WARNING):
        step, found, *_ = saver.restore(abstract(trees(mesh, 0)))
    assert step == 10 and equal(found, trees(mesh, 10)) and "checkpoint 20 is damaged" in caplog.text
    saver.save(20, trees(mesh, 21), {})  # the number is free again
    saver.close()
    assert saver.steps() == [10, 20] and (folder / "damaged-20").exists()


def test_all_damaged_is_an_error_and_so_is_another_model(saved):
    folder, mesh = saved
    saver = Checkpoints(folder)
    wrong = abstract(trees(mesh, 0))
    wrong["trainable"] = {"b.kernel": wrong["trainable"]["a.kernel"]}
    with pytest.raises(CheckpointError, match="other weights than this config's.*a.kernel"):
        saver.restore(wrong)
    for step in ("10", "20"):
        flip(folder / step)
    with pytest.raises(CheckpointError, match="no checkpoint under .* is whole: step 20.*step 10"):
        saver.restore(abstract(trees(mesh, 0)))
    assert saver.steps() == [10, 20]  # kept: the storage may only have failed for a moment
    for step in ("10", "20"):
        (folder / step).rename(folder / f"damaged-{step}")
    with pytest.raises(CheckpointError, match="damaged-10"):  # never silently from the start
        Checkpoints(folder).restore(abstract(trees(mesh, 0)))
    saver.close()


def test_an_unfinished_save_does_not_count(saved):
    folder, mesh = saved
    (folder / "20" / "commit_success.txt").unlink(missing_ok=True)
    (folder / "20").rename(folder / "20.orbax-checkpoint-tmp-0")
    saver = Checkpoints(folder)
    assert saver.restore(abstract(trees(mesh, 0)))[0] == 10
    saver.close()
