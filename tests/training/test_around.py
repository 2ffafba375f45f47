"""What a run has around its steps: the rehearsal of its checkpoint, its compiled programs, the clock of its devices."""

import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from etils import epath
from jax.experimental.compilation_cache import compilation_cache

from edit_rl_jax.training import checkpoint, metrics
from edit_rl_jax.training.compilation import FOLDER, Cache


def test_a_checkpoint_is_tried_and_removed(tmp_path):
    state = {"trainable": {"w": jnp.arange(6.0)}}
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    (tmp_path / "rehearsal").mkdir()  # what a kill left
    said = checkpoint.rehearse(tmp_path / "rehearsal", state, abstract)
    assert "written in" in said and "read in" in said and not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(checkpoint.CheckpointError, match="file"):
        checkpoint.rehearse(tmp_path / "file" / "rehearsal", state, abstract)
    wrong = {"trainable": {"w": jax.ShapeDtypeStruct((7,), jnp.float32, sharding=state["trainable"]["w"].sharding)}}
    with pytest.raises(checkpoint.CheckpointError, match="step 0: Requested shape"):
        checkpoint.rehearse(tmp_path / "rehearsal", state, wrong)
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


@pytest.fixture
def cache_settings(monkeypatch):
    """JAX's cache as it was, afterwards."""
    monkeypatch.setenv("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
    rest = ("compilation_cache_dir", "persistent_cache_min_compile_time_secs", "persistent_cache_enable_xla_caches")
    names = [f"jax_{name}" for name in rest]
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    compilation_cache.reset_cache()
    yield
    for name, value in before.items():
        jax.config.update(name, value)
    compilation_cache.reset_cache()


def test_a_new_host_has_the_programs_of_the_old_one(tmp_path, cache_settings, caplog):
    remote = epath.Path(tmp_path / "bucket")

    def host(name):
        compilation_cache.reset_cache()
        jax.clear_caches()
        cache = Cache(str(tmp_path / name), "run", remote)
        jax.jit(lambda x: x * 3 + 1)(np.float32(2))
        counts = cache.hits, cache.misses
        cache.keep()
        cache.close()
        return counts

    assert host("first") == (0, 1)
    (program,) = (remote / FOLDER).iterdir()
    assert program.name.endswith("-cache") and host("second") == (1, 0)
    program.unlink()
    (remote / FOLDER).rmdir()
    (remote / FOLDER).write_text("no folder")
    assert host("third") == (0, 1) and "cannot be copied" in caplog.text, "the run goes on"


def test_idle_devices_are_seen_from_beside():
    class Busy:  # results that take as long
        def block_until_ready(self):
            time.sleep(0.3)

    devices = metrics.Devices()
    for step in (1, 2):
        devices.begin(step)
        devices.end(step, Busy())
        assert devices.figures(1) == {}
        time.sleep(0.6)
    assert devices.figures(2)["device_idle_share"] == pytest.approx(0.5, abs=0.12)  # 0.3 s of 0.6
    devices.close()
