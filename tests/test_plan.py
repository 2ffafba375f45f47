"""Planning: topologies, collectives, refusals, FLOPs of the real sizes, and one real compilation for a TPU."""

import dataclasses
import importlib.util
import json
import subprocess
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from edit_rl_jax import chips, flops, sharding
from edit_rl_jax.names import ConfigError
from edit_rl_jax.plan import compiled, counts, editing, hlo, scoring
from edit_rl_jax.plan import gcpo as gcpo_plan
from edit_rl_jax.plan import rl as rl_plan
from edit_rl_jax.training import config as config_lib
from edit_rl_jax.training import interfaces, on_mesh
from edit_rl_jax.training.program import build_program
from edit_rl_jax.vlm.qwen2_5_vl.config import Config
from edit_rl_jax.vlm.qwen2_5_vl.model import Qwen25VL

pytestmark = pytest.mark.usefixtures("optimized")

ROOT = Path(__file__).resolve().parents[1]


def test_names_of_topologies():
    chip, grid = chips.parse("v5p:4x4x4")
    assert (chip.name, grid) == ("v5p", (4, 4, 4))
    for wrong in ("v5litepod-16", "v5e:4x4x4", "v9:2x2", "v6e"):
        with pytest.raises(ValueError, match="v5e:4x4"):
            chips.parse(wrong)
    with pytest.raises(ValueError, match="3x5"):
        chips.describe("v5e:3x5")


def test_devices_and_peaks():
    for name, count in (("v5p:4x4x4", 64), ("v5e:4x4", 16), ("v6e:2x4", 8), ("v4:2x2x2", 8), ("tpu7x:2x2x1", 8)):
        chip, devices = chips.describe(name)
        assert len(devices) == count
        assert chips.peak_flops(devices[0].device_kind) == chip.flops
    for name, count in (("v5e:4x4", 4), ("v5p:2x2x4", 4), ("tpu7x:2x2x2", 8), ("v6e:2x2", 4)):
        assert [d.id for d in chips.host(*chips.describe(name))] == list(range(count))
    assert chips.peak_flops("NVIDIA H100 80GB HBM3") == 989e12
    assert chips.peak_flops("cpu") == 0.0


def lowered_scan(layers=5, width=256):
    """A scan of `layers` products whose weights are sharded over 4 chips, lowered for a v5e."""
    chip, devices = chips.describe("v5e:2x2")
    mesh = sharding.make_mesh({"fsdp": 4}, devices)
    spec = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.bfloat16, sharding=NamedSharding(mesh, P(*axes)))
    body = lambda x, w: (jax.lax.with_sharding_constraint(jnp.tanh(x @ w), NamedSharding(mesh, P("fsdp"))), None)
    step = jax.jit(lambda x, w: jax.lax.scan(body, x, w)[0])
    return step.lower(spec((64, width), "fsdp"), spec((layers, width, width), None, "fsdp"))


def compiled_scan():
    return lowered_scan().compile()


def test_collectives_are_counted_through_loops():
    found = hlo.collectives(compiled_scan().as_text())
    moved = sum(c["bytes"] for c in found.values())
    # Every layer's weights come together on every chip: 3/4 of them from the others.
    assert moved == pytest.approx(5 * 256 * 256 * 2 * 3 / 4, rel=0.35), found


def test_the_least_effort_tells_memory_flops_and_collectives():
    """It differs from the whole compilation in how instructions are fused, and leaves the setting as it was."""
    read, found = lambda: getattr(jax.config, compiled.EFFORT), {}
    before, texts = read(), set()
    for quick in (False, True):
        made = compiled.compile_fitting(lowered_scan(width=1024), quick)  # one that is lowered is compiled once
        texts.add(made.as_text())
        module = hlo.Module(made.as_text())
        moved = {kind: c["bytes"] for kind, c in hlo.collectives(module).items()}
        found[quick] = made.memory_analysis().peak_memory_in_bytes, sum(counts.flops(module, {})[0].values()), moved
    assert read() == before and len(texts) == 2
    (peak, *rest), (quick_peak, *quick_rest) = found[False], found[True]
    assert quick_peak == pytest.approx(peak, rel=0.05) and quick_rest == rest


def test_refusal_says_by_how_much():
    texts = {
        "RESOURCE_EXHAUSTED: Ran out of memory in memory space hbm. Used 29.95G of 15.75G hbm. Exceeded hbm capacity "
        "by 14.20G.": 14.20,
        "RESOURCE_EXHAUSTED: Ran out of memory on HBM, the total memory required for HLO temporaries (5.00T) exceeds "
        "available HBM (15.75G).": 5 * 1024 - 15.75,
    }
    for text, gib in texts.items():
        assert compiled._refusal(text).over == pytest.approx(gib * 2**30)


def test_the_compiler_itself_refuses():
    _, devices = chips.describe("v5e:2x2")
    mesh = sharding.make_mesh({"fsdp": 1}, devices)
    # A product of 16 GiB on a chip with 15.75 GiB.
    x = jax.ShapeDtypeStruct((2**16, 128), jnp.float32, sharding=NamedSharding(mesh, P()))
    with pytest.raises(compiled.DoesNotFit) as refused:
        compiled.compile_fitting(jax.jit(lambda x: x @ x.T).lower(x))
    assert refused.value.over is not None and 0 < refused.value.over < 2**30


def real(name, **changes):
    config = config_lib.load(ROOT / "configs" / f"{name}.py", {"model.attention": "splash", **changes})
    _, devices = chips.describe("v5e:4x4")
    mesh = on_mesh.make_mesh(config, devices)
    program = build_program(config, mesh, steps=10)
    return program, next(iter(program.batches))


@pytest.mark.parametrize(("trainable", "times"), [("lora", 4), ("full", 6)])
def test_model_flops_of_7b_are_4n_or_6n(trainable, times):
    """Of the decoder: every token costs 2N a pass; 2 passes with LoRA, 3 with all weights; plus attention."""
    program, _ = real("rm_7b", **{"model.trainable": trainable})
    cfg, rows, length = program.model_config.text, 16, 2048
    kv = 2 * cfg.num_key_value_heads * cfg.head_dim
    attention = cfg.hidden_size * (2 * cfg.hidden_size + kv)
    n = cfg.num_hidden_layers * (attention + 3 * cfg.hidden_size * cfg.intermediate_size)

    def loss(trainable, frozen, batch):
        return jnp.sum(program.merge(trainable, frozen).hidden(batch).astype(jnp.float32))

    batch = {
        "tokens": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "segments": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "image_index": jax.ShapeDtypeStruct((rows, length), jnp.int32),
        "positions": jax.ShapeDtypeStruct((rows, 3, length), jnp.int32),
    }
    with jax.set_mesh(program.mesh):
        kinds = flops.count_by_kind(jax.grad(loss), program.trainable, program.frozen, batch)
    assert kinds["linear"] == pytest.approx(times * n * rows * length, rel=0.05)
    blocks = -(-length // 512)
    dense = 3 * 4 * cfg.num_hidden_layers * rows * length**2 * cfg.num_attention_heads * cfg.head_dim
    assert kinds["kernel"] == pytest.approx(dense * (blocks + 1) / (2 * blocks), rel=1e-6)


def test_vision_attention_adds_little_to_the_linear_layers():
    """Two pictures of 512 x 512, 36 x 36 patches each, fill 41 groups of 64 slots; and every row of the big configs."""
    program, _ = real("rm_7b")
    big = [config_lib.load(ROOT / "configs" / f"rm_{size}.py").data.buckets for size in ("3b", "7b", "32b", "72b")]
    rows = {(1, 2624)} | {bucket[1:3] for buckets in big for bucket in buckets}

    def tower(trainable, frozen, arrays):
        return program.merge(trainable, frozen).image_features(arrays)

    for row in rows:
        shape = lambda *s, dtype=jnp.int32: jax.ShapeDtypeStruct((16, *row, *s), dtype)  # noqa: B023
        arrays = {"patches": shape(1176, dtype=jnp.float32), "patch_segments": shape(), "window_segments": shape()}
        arrays["patch_hw"] = shape(2)
        with jax.set_mesh(program.mesh):
            kinds = flops.count_by_kind(tower, program.trainable, program.frozen, arrays)
        assert sum(kinds.values()) <= 1.06 * kinds["linear"], (row, kinds)


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("plan_script", ROOT / "scripts" / "plan.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


CONFIG = str(ROOT / "configs" / "rm_7b.py")


def test_wrong_arguments_end_with_one_line(script, capsys):
    assert script.main(["--config", CONFIG, "--topology", "v5litepod-16"]) == 1
    assert "v5e:4x4" in capsys.readouterr().err
    assert script.main(["--config", CONFIG, "--topology", "v5e:4x4", "--config.rows=3"]) == 1
    assert "does not divide" in capsys.readouterr().err
    editor, rl = (str(ROOT / "configs" / name) for name in ("editor_tiny.py", "grpo_omnigen2.py"))
    for config, words, said in (
        (CONFIG, ["--job", "edit"], "--job edit does not go with this config, which is of editscore"),
        (editor, ["--job", "score"], "--job score does not go with"),
        (rl, ["--job", "score"], "--job score does not go with"),
        (CONFIG, ["--topology", "v5e:4x4", "--buckets", "256x256"], "no bucket is named '256x256'; there are T"),
        (CONFIG, ["--search", "--config.mesh.tensor=2"], "config key 'mesh.tensor' is what --search looks for"),
        (CONFIG, ["--search", "--config.model.remat=gate"], "config key 'model.remat' is what --search looks for"),
        (CONFIG, ["--search", "--buckets", "all"], "--search takes one bucket"),
    ):
        assert script.main(["--config", config, "--topology", "v5e:2x2", *words]) == 1, words
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"plan.py: {said}"), line


def test_of_all_plans_one_that_was_killed_fails_and_leaves_none(script, tmp_path, monkeypatch):
    found = {name: tmp_path / f"{name}.json" for name in ("killed", "made")}
    for file in found.values():
        file.write_text("of another version")

    def run(command, **_):
        if (target := Path(command[-1])) == found["made"]:
            target.write_text("{}")
        return subprocess.CompletedProcess(command, 0 if target == found["made"] else -9)

    monkeypatch.setattr(script, "presets", lambda output: [(file, []) for file in found.values()])
    monkeypatch.setattr(script.subprocess, "run", run)
    assert script.plan_all(tmp_path, quick=True) == 1
    assert found["made"].read_text() == "{}" and not found["killed"].exists()


@pytest.mark.standard_promotion
def test_a_training_step_compiles_for_a_tpu(script, tmp_path):
    """The tiny reward model's, in seconds; at full width and depth below and by `make plans`."""
    out, config = tmp_path / "plan.json", str(ROOT / "configs" / "rm_tiny.py")
    few = ["--config.rows=8", "--config.model.attention=xla", "--config.mesh.fsdp=4"]
    with jax.default_matmul_precision("default"):
        assert script.main(["--config", config, "--topology", "v5e:2x2", "--json", str(out), *few]) == 0
    (bucket,) = json.loads(out.read_text())["programs"]
    memory = bucket["bytes_per_device"]
    assert 0 < memory["arguments"] < memory["peak"] < memory["usable_hbm"]
    assert 0.9 < bucket["flops"]["executed"] / bucket["flops"]["model"] < 1.1, "nothing is rematerialised"
    assert bucket["flops"]["program"] == pytest.approx(bucket["flops"]["executed"], rel=0.02)
    assert bucket["not_counted"] == {"kernels": {}, "loops": []} and bucket["hbm_traffic"] > memory["arguments"] / 2
    tiny = config_lib.load(config, {"rows": "8", "model.attention": "xla", "mesh.fsdp": "4"})
    program = build_program(tiny, on_mesh.make_mesh(tiny, chips.describe("v5e:2x2")[1]))
    lies = {"frozen": program.frozen, "trainable": program.trainable, "optimizer": program.state["opt_state"]}
    assert {kind: memory["by_kind"][kind] for kind in lies} == {k: compiled.resident(v) for k, v in lies.items()}
    assert bucket["host_bytes"]["checkpoint"] >= compiled.resident(program.state)
    predicted = bucket["predicted"]
    assert predicted["step_s"] == max(predicted["seconds"].values()) and predicted["usd_per_thousand"] > 0
    assert bucket["collectives_by_axes"].keys() == {"fsdp"}
    assert sum(c["bytes"] for c in bucket["collectives"].values()) > 3 / 4 * 2 * 2_940_480, "the weights are gathered"


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_rm_7b_compiles_for_a_v5e_and_fits(script, capsys, tmp_path):
    """The whole step at full width and depth; one to three minutes. The other plans: `make plans`."""
    out = tmp_path / "plan.json"
    with jax.default_matmul_precision("default"):  # as users run it, not as the parity tests do
        assert script.main(["--config", CONFIG, "--topology", "v5e:4x4", "--json", str(out)]) == 0
    (bucket,) = json.loads(out.read_text())["programs"]
    memory = bucket["bytes_per_device"]
    assert 2**30 < memory["arguments"] < memory["peak"] <= memory["usable_hbm"] == int(15.75 * 2**30)
    assert memory["peak"] <= 0.9 * memory["usable_hbm"]
    # The preset keeps gate and up, the widest products: little is computed twice (1.5 times with nothing kept).
    assert 1.02 < bucket["flops"]["executed"] / bucket["flops"]["model"] < 1.15
    # In each of the 2 microbatches, forward and backward: the layers once, the head once for each of its 5 chunks.
    gathered = 2 * 2 * (7.2e9 + 5 * 152064 * 3584) * 2 * 15 / 16
    assert sum(c["bytes"] for c in bucket["collectives"].values()) == pytest.approx(gathered, rel=0.15)
    assert "it fits" in capsys.readouterr().out


@pytest.mark.standard_promotion
def test_rl_of_a_verifier_is_planned_over_a_host_and_over_all():
    """Replies are written by each host with whole copies of the weights; the update goes over all chips."""
    more = {"model.init_from": str(ROOT / "edit_rl_jax/assets/tiny_vl"), "mesh.data": "16", "rows": "16"}
    config = config_lib.load(ROOT / "configs/gcpo_tiny.py", more | {"model.attention": "xla", "rl.microbatches": "2"})
    chip, devices = chips.describe("v5e:4x4")
    jobs = {job.name: job for job in gcpo_plan.jobs(config, chip, devices)}
    assert {name: job.devices for name, job in jobs.items()} == {"prefill": 4, "decode": 4, "update": 16}
    moments = 2 * 4 * 512_000  # of the trained LoRA
    assert moments <= jobs["decode"].beside["optimizer"] < 1.01 * moments
    assert jobs["decode"].more["shape"]["answers"] == 8
    answers = 2 * 2 * 5 * 2 * 32 * 320 * 64 // 4  # keys and values, bf16, 5 layers, 2 heads of 32, a chip's of 64 slots
    assert answers < jobs["update"].beside["engine's stores"] < 10 * answers
    twice = config_lib.load(ROOT / "configs/gcpo_tiny.py", more | {"model.attention": "xla", "rl.microbatches": "4"})
    twice = next(job for job in gcpo_plan.jobs(twice, chip, devices) if job.name == "update")
    assert 1e9 < jobs["update"].model <= jobs["update"].executed < 1.01 * twice.executed / 2  # a scan's length counts
    assert twice.executed / 2 < 1.01 * jobs["update"].executed


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--all", "--config", "x.py"], "--config has no say in --all"),
        (["--all", "--slices", "2"], "--slices has no say in --all"),
        (["--all", "--config.rows=1"], "--config.rows has no say in --all"),
        (["--config", "x.py", "--topology", "v5e:4x4", "--slots", "3"], "--slots is of --job score"),
        (
            ["--config", "x.py", "--topology", "v5e:4x4", "--job", "edit", "--buckets", "all"],
            "--buckets is of --job train",
        ),
    ],
)
def test_flags_that_would_have_no_say_are_refused(script, words, said, capsys):
    with pytest.raises(SystemExit):
        script.parse(words)
    assert said in capsys.readouterr().err


def test_a_search_that_has_nothing_to_try_says_why(script, capsys):
    assert script.main(["--config", CONFIG, "--topology", "v5p:8x8x8", "--search"]) == 1
    assert "32 rows an update divide over no mesh of 512 chips" in capsys.readouterr().err


def test_scoring_over_several_hosts_is_told(script, monkeypatch):
    """No script scores so; the compiler's word is about memory alone."""
    monkeypatch.setattr(script.scoring, "jobs", lambda *args: iter(()))
    told = lambda where: script.plan(*script.parse(["--config", CONFIG, "--topology", where, "--job", "score"]))
    for where, several in (("v5e:4x4", True), ("v5p:2x2x2", True), ("v5e:2x2", False)):
        assert (script.SEVERAL_HOSTS in told(where)["assumptions"]) == several


def test_checked_in_plans_fit():
    """The plans of `make plans` that the project promises: each compiled, each under its chip's memory."""
    promised = ("rm_72b__v5p-4x4x4", "rm_7b__v5e-4x4", "rm_7b__v6e-2x4")
    promised += ("editreward_7b__v5e-4x4", "editreward_32b__v5e-4x4")
    promised += tuple(f"{name}_7b__{c}" for name in ("rrm", "gcpo") for c in ("v5e-4x4", "v6e-2x4", "v5p-2x2x4"))
    chips = ("v5e-4x4", "v6e-2x4", "v5p-2x2x4")
    promised += tuple(f"editor_omnigen2__{job}__{c}" for job in ("512", "1024", "edit") for c in chips)
    chips = ("v5e-4x4", "v6e-4x4", "v5p-2x2x4")
    promised += tuple(f"grpo_omnigen2{kind}__{c}" for kind in ("", "_fast") for c in chips)
    promised += tuple(f"rm_qwen3_{b}__{c}" for b in ("4b", "8b", "32b") for c in ("v5e-4x4", "v6e-2x4", "v5p-2x2x4"))
    promised += tuple(f"editor_qwen_image_edit__1024__{c}" for c in ("v5e-8x8", "v5p-2x2x4"))
    promised += tuple(f"editor_flux_kontext__{job}__v5p-2x2x4" for job in ("1024", "edit"))
    promised += ("nft_qwen_image_edit__v5p-2x2x4",)
    plans = {p.stem: json.loads(p.read_text()) for p in (ROOT / "benchmarks/plans").glob("*.json")}
    assert set(promised) <= plans.keys()
    for name, figures in plans.items():
        for program in figures["programs"]:
            memory = program["bytes_per_device"]
            together = memory["peak"] + sum(memory["beside"].values())
            assert together == memory["together"] <= memory["usable_hbm"], name


def test_checked_in_plans_are_those_of_the_configs():
    for file in (ROOT / "benchmarks/plans").glob("*.json"):
        made = json.loads(file.read_text())
        objective, _, size = made["config"].partition("_")
        families = {"editreward": f"rm.py:{size},editreward"} | {k: f"{k}.py:{size}" for k in ("rrm", "gcpo")}
        families |= {"rm": f"rm.py:{size}", "nft": f"grpo_{size}.py:nft"}
        name = families.get(objective, f"{made['config']}.py")
        where = made["topology"]
        config = config_lib.load(ROOT / "configs" / name, {"topology": where})
        assert made["config"] == config.name and where in config.mesh_presets
        now = dict(rows=config.rows, accum=config.get("accum", 1))
        if made["job"] != "edit":  # which has no backward pass
            now["remat"] = config.model.remat
        if made["config"] in ("grpo_omnigen2", "grpo_omnigen2_fast"):  # made before plans of RL told them
            assert not now.keys() & made.keys()
            continue
        assert {k: made[k] for k in now} == now, file.name


@pytest.mark.slow  # a real compilation
def test_a_decode_loop_copies_no_weights_first():
    """29,568 / 16 is no multiple of 128: as the compiler lays weights, each call first copied two matrices of three."""
    chip, devices = chips.describe("v5e:4x4")
    config = config_lib.load(ROOT / "configs/rm_72b.py")
    cfg = interfaces.model(config).model_config(config)
    cfg = dataclasses.replace(cfg, text=dataclasses.replace(cfg.text, num_hidden_layers=4))
    engine = scoring.describe(cfg, chip, devices, tensor=16)
    with jax.default_matmul_precision("default"):
        decode = next(job for job in scoring.jobs(engine, chip, 4) if job.name == "decode")
        memory = decode.lowered.stage.compile().memory_analysis()
    matrices = 2 * 4 * 8192 * 29568 // 16 * 2  # bytes of gate and up on a chip
    assert memory.argument_size_in_bytes > matrices > 10 * memory.temp_size_in_bytes


@pytest.mark.slow  # over a minute; the checked-in plans say the same, below
def test_scoring_of_rm_7b_compiles_and_moves_no_weights(script, capsys, tmp_path):
    """Prefill and decode at full width and depth. The other chips and sizes: `make plans`."""
    out = tmp_path / "plan.json"
    with jax.default_matmul_precision("default"):
        arguments = ["--config", CONFIG, "--topology", "v6e:2x4", "--job", "score", "--json", str(out)]
        assert script.main(arguments) == 0
    programs = json.loads(out.read_text())["programs"]
    assert [p["program"] for p in programs] == ["prefill", "decode"]
    for p in programs:
        memory = p["bytes_per_device"]
        assert 0.8 * p["weight_bytes"] / p["mesh"]["tensor"] < memory["peak"] <= memory["usable_hbm"]
    assert 0 < programs[1]["largest_gather"] < programs[1]["smallest_weight_matrix"]
    assert "it fits" in capsys.readouterr().out


def test_checked_in_scoring_plans_gather_no_weights():
    plans = {p.stem: json.loads(p.read_text()) for p in (ROOT / "benchmarks/plans/score").glob("*.json")}
    assert {"rm_7b__v5e-4x4", "rm_7b__v6e-2x4", "rm_7b__v5p-2x2x4", "rm_72b__v5p-2x2x4"} <= plans.keys()
    qwen3 = {f"rm_qwen3_{b}__{c}" for b in ("4b", "8b", "32b") for c in ("v5e-4x4", "v6e-2x4", "v5p-2x2x4")}
    assert qwen3 <= plans.keys()
    for name, plan in plans.items():
        _, decode = plan["programs"]
        for program in plan["programs"]:
            assert program["bytes_per_device"]["together"] <= program["bytes_per_device"]["usable_hbm"], name
        assert decode["largest_gather"] < decode["smallest_weight_matrix"], name


@pytest.mark.slow
def test_editing_is_planned():
    """The tiny editor for 4 chips: 50 steps, of which 31 are guided by 3 branches, are 112 forwards."""
    config = config_lib.load(ROOT / "configs" / "editor_tiny.py", {"model.attention": "xla", "rows": "4"})
    chip, devices = chips.describe("v5e:2x2")
    mesh = sharding.make_mesh({"fsdp": 4}, devices)
    found = [compiled.compile_job(job, chip) for job in editing.jobs(config, mesh, side=84)]
    plans = {p["program"].split()[0]: p for p in found}
    assert list(plans) == ["encode", "condition", "sample", "decode"]
    cfg = interfaces.model(config).model_config(config).transformer
    # of the layers alone: each has four square products of attention, with adapters, and three of the feed-forward
    text, images = editing.TEXT, 9
    tokens, alone = text + 2 * images, text**2 + 2 * images**2
    attended = 4 * (cfg.hidden_size**2 + 2 * cfg.hidden_size * config.model.lora.rank)
    per_token = 2 * (attended + 3 * cfg.hidden_size * cfg.ffn_size)
    linear = per_token * (cfg.num_layers + cfg.num_refiner_layers) * tokens
    attention = 4 * cfg.hidden_size * (cfg.num_layers * tokens**2 + cfg.num_refiner_layers * alone)
    assert plans["sample"]["flops"]["executed"] == pytest.approx(4 * 112 * (linear + attention), rel=0.05)
    for p in plans.values():
        assert p["bytes_per_device"]["arguments"] <= p["bytes_per_device"]["peak"] < chip.hbm


def test_rl_is_planned_with_the_reward_model_that_the_config_names(tmp_path):
    """By hub id without a download, by a folder, by an adapter's base; a reward elsewhere takes no room here."""
    file = ROOT / "configs" / "grpo_omnigen2.py"
    load = lambda **changes: config_lib.load(file, {f"rl.{k}": v for k, v in changes.items()})
    size = lambda config: rl_plan.judge_architecture(config).text.hidden_size
    assert size(load()) == 3584
    assert size(load(**{"judge.base": "Qwen/Qwen2.5-VL-72B-Instruct"})) == 8192
    tiny = ROOT / "edit_rl_jax/assets/tiny_vl"
    assert size(load(**{"judge.base": "", "judge.model": str(tiny)})) == Config.from_hf(tiny).text.hidden_size
    adapter = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
    adapter["base_model_name_or_path"] = "Qwen/Qwen2.5-VL-3B-Instruct"
    (tmp_path / "adapter_config.json").write_text(json.dumps(adapter))
    assert size(load(**{"judge.base": "", "judge.model": str(tmp_path)})) == 2048
    assert rl_plan.judge_architecture(load(rewards="(('server', 1.0),)")) is None
    for changes in ({"judge.model": ""}, {"judge.base": str(tmp_path / "gone")}):
        with pytest.raises(ConfigError, match=r"rl\.judge"):
            rl_plan.judge_architecture(load(**changes))


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_rl_is_planned_with_what_lies_beside_each_program():
    """The tiny editor and the tiny reward model on the same 4 chips; and too many weights are refused."""
    changes = {"rl.prompts": "4", "rl.group": "4", "rows": "8", "rl.updates": "2", "rl.judge.tensor": "2"}
    config = config_lib.load(ROOT / "configs" / "grpo_tiny.py", {"model.attention": "xla", "mesh.fsdp": "4", **changes})
    config.rl.judge.model = str(ROOT / "edit_rl_jax/assets/tiny_vl")
    judge = config_lib.load(ROOT / "configs" / "rm_tiny.py")
    chip, devices = chips.describe("v5e:2x2")
    with jax.default_matmul_precision("default"):
        found = [compiled.compile_job(job, chip) for job in rl_plan.jobs(config, chip, devices)]
    programs = {p["program"]: p["bytes_per_device"] for p in found}
    assert list(programs) == ["rollout", "update", "prefill", "decode"]
    for p in found[:2]:  # what its trace says is what the compiler makes of it, but for the padding of convolutions
        assert 0.9 < p["flops"]["program"] / p["flops"]["executed"] < 1.001
        assert p["predicted"]["mfu"] == pytest.approx(p["flops"]["model"] / 4 / chip.flops / p["predicted"]["step_s"])
    for p in programs.values():
        assert p["together"] == p["peak"] + sum(p["beside"].values()) <= chip.hbm
    # one call of the update trains a half of the samples
    rates = {p["program"]: p["predicted"] for p in found}
    for name, edits in (("rollout", 16), ("update", 8)):
        assert rates[name]["throughput"]["per_s"] * rates[name]["step_s"] == pytest.approx(edits)
    # of the reward model bf16 in two halves; each of its stores lies beside what does not take it
    weights = nnx.eval_shape(lambda: Qwen25VL(interfaces.model(judge).model_config(judge), rngs=nnx.Rngs(0)))
    count = sum(x.size for x in jax.tree.leaves(nnx.state(weights)))
    engine = scoring.describe(interfaces.model(judge).model_config(judge), chip, devices, 2)
    stores, features = scoring.abstract_stores(engine, scoring.usual(engine, config.rl.judge.rows))
    weights_of = "reward model edit_rl_jax/assets/tiny_vl"
    for name, more in (("rollout", {"optimizer"}), ("update", set())):
        beside = dict(programs[name]["beside"])
        assert beside.keys() == {weights_of, "reward model's stores"} | more
        assert beside[weights_of] == pytest.approx(2 * count / 2, rel=0.01)
        assert beside["reward model's stores"] == compiled.resident((stores, features))
    # fp32: two moments and the old weights, in quarters
    assert programs["rollout"]["beside"]["optimizer"] == pytest.approx(3 * 4 * 3_078_504 / 4, rel=0.02)
    idle = [programs[name]["beside"].pop("idle stores") for name in ("prefill", "decode")]
    assert idle == [compiled.resident((stores.answers, stores.tiles)), compiled.resident((stores.contexts, features))]
    # beside it 16 images in 8 bits on every chip; of the policy fp32 weights, the old ones and two moments in quarters
    beside = programs["decode"]["beside"]
    assert beside == programs["prefill"]["beside"] and beside["images"] == 16 * 84 * 84 * 3
    assert programs["update"]["peak"] > beside["policy"] > 4 * 4 * 3_078_504 / 4
    assert 0 < beside["rollout"] < 4 * beside["images"]
    worst = max(found, key=lambda p: p["bytes_per_device"]["together"])
    memory = worst["bytes_per_device"]
    compiled.refuse(worst | {"bytes_per_device": memory | {"usable_hbm": memory["together"]}})
    with pytest.raises(compiled.DoesNotFit, match=f"{worst['program']}.*what lies beside it") as refused:
        compiled.refuse(worst | {"bytes_per_device": memory | {"usable_hbm": memory["together"] - 1}})
    assert refused.value.over == 1
