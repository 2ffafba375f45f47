"""Programs of full size lower for eight GPUs with cuDNN's attention: JAX refuses then what cuDNN cannot do. No GPU is
asked, and nothing is compiled."""

from pathlib import Path

import jax
import pytest
from jax._src.cudnn import fused_attention_stablehlo as cudnn

from edit_rl_jax.chips import CHIPS
from edit_rl_jax.nn import attention
from edit_rl_jax.plan import compiled, editing, gcpo, rl, scoring, training
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh

pytestmark = [pytest.mark.slow, pytest.mark.standard_promotion, pytest.mark.usefixtures("optimized")]

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
CHIP = CHIPS["v6e"]  # whose memory decides how wide stores are; nothing else of it is looked at


@pytest.fixture(autouse=True)
def a_gpu(monkeypatch):
    """JAX's checks of cuDNN take a GPU of Hopper's kind for granted, and we its attention."""

    def lower(program, *args, **static):
        traced = program.trace(*args, **static)
        return compiled.Lowered(traced.lower(lowering_platforms=("cuda",)), {}, traced.jaxpr.jaxpr)

    monkeypatch.setattr(cudnn, "check_cudnn_version", lambda: 91000)
    monkeypatch.setattr(cudnn, "check_compute_capability", lambda wanted: True)
    monkeypatch.setitem(attention.PLATFORM_DEFAULT, "cpu", "cudnn")
    for module in (training, scoring, rl, gcpo, editing):
        monkeypatch.setattr(module, "lower", lower)


def of(name, topology="h100:8"):
    """(a config as on eight GPUs of one host, their mesh)."""
    config = config_lib.load(
        CONFIGS / name, {"topology": topology, "model.dtype": "bfloat16", "model.attention": "cudnn"}
    )
    return config, on_mesh.make_mesh(config, jax.devices())


def asks_cudnn(jobs) -> dict[str, bool]:
    """{program: whether cuDNN attends in it}, all lowered."""
    texts = {job.name: job.lowered.stage.as_text() for job in jobs}
    assert not any("tpu_custom_call" in text for text in texts.values())
    return {name: "CustomSPMDPartitioning" in text for name, text in texts.items()}


@pytest.mark.parametrize(
    "name",
    ["rm.py:3b", "rm.py:7b", "rm.py:qwen3_8b", "rm.py:7b,editreward", "editor_omnigen2.py", "editor_flux_kontext.py"]
    + ["editor_qwen_image_edit.py", "editor_step1x_edit.py"],
)
def test_training_steps(name):
    assert all(asks_cudnn(training.jobs(*of(name), "all")).values())


@pytest.mark.parametrize("name", ["rm.py:7b", "rm.py:qwen3_8b"])
def test_scoring(name):
    config, mesh = of(name)
    cfg = interfaces.model(config).model_config(config)
    jobs = scoring.jobs(scoring.describe(cfg, CHIP, jax.devices(), attention="cudnn"), CHIP, 32)
    assert asks_cudnn(jobs) == {"prefill": False, "decode": False}, "they attend to stores, in plain XLA"


def test_rollout_and_update_of_a_verifier_s_rl():
    config, mesh = of("gcpo.py:7b")
    asked = asks_cudnn(gcpo.jobs(config, CHIP, jax.devices()))
    assert asked == {"prefill": False, "decode": False, "update": True}


@pytest.mark.parametrize("name", ["grpo_omnigen2_fast.py", "grpo_flux_kontext.py:nft"])
def test_rollout_and_update_of_an_editor_s_rl(name):
    config, mesh = of(name, topology="")
    asked = asks_cudnn(rl.jobs(config, CHIP, jax.devices()))
    assert asked["rollout"] and asked["update"]
