"""The tiny base of either family has as many parameters."""

from pathlib import Path

import jax
import pytest

from edit_rl_jax.names import ConfigError
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import on_mesh
from edit_rl_jax.training.program import build_program

pytestmark = pytest.mark.standard_promotion
BASE = str(Path(__file__).resolve().parents[2] / "configs/base_tiny.py")


def program_of(family):
    config = config_lib.load(f"{BASE}:{family}")
    return build_program(config, on_mesh.make_mesh(config, jax.devices()[:1]), steps=10)


@pytest.mark.slow  # both programs are built
def test_families_have_as_many_parameters():
    count = lambda program: sum(x.size for x in jax.tree.leaves(program.trainable))
    assert {f: count(program_of(f)) for f in ("qwen2_5_vl", "qwen3_vl")} == {"qwen2_5_vl": 2940480, "qwen3_vl": 2937984}
    assert config_lib.load(BASE).to_dict() == config_lib.load(f"{BASE}:qwen2_5_vl").to_dict()
    with pytest.raises(ConfigError, match="no family 'qwen4_vl'; there are qwen2_5_vl, qwen3_vl"):
        config_lib.load(f"{BASE}:qwen4_vl")
