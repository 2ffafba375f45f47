"""Configs: wrong keys name the nearest right one, types hold, every shipped config loads, resuming compares."""

from pathlib import Path

import pytest

from edit_rl_jax.names import ConfigError
from edit_rl_jax.nn.attention import IMPLEMENTATIONS
from edit_rl_jax.nn.stack import REMAT_POLICIES
from edit_rl_jax.training import config as config_lib

CONFIGS = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize(
    ("key", "hint"),
    [
        ("lr", "optim.lr"),
        ("optim.learning_rate", "optim.lr"),
        ("optim.wieght_decay", "optim.weight_decay"),
        ("model.lora.rnak", "model.lora.rank"),
        ("epoch", "epochs"),
        ("chekpoint.every", "checkpoint.every"),
    ],
)
def test_wrong_override_names_the_nearest_key(key, hint):
    with pytest.raises(ConfigError, match=f"no config key '{key}' .did you mean '{hint}'"):
        config_lib.load(CONFIGS / "rm_7b.py", {key: "1"})


@pytest.mark.parametrize(
    ("line", "hint"), [("c.optim.weigth_decay = 1.0", "optim.weight_decay"), ("c.epoch = 1.0", "epochs")]
)
def test_wrong_key_in_a_file_names_the_nearest_key(tmp_path, line, hint):
    file = tmp_path / "mine.py"
    lines = ["from edit_rl_jax.training.config import default", "def get_config():", "    c = default()"]
    file.write_text("\n".join([*lines, f"    {line}", "    return c"]))
    with pytest.raises(ConfigError, match=f"mine.py: no config key .*did you mean '{hint}'"):
        config_lib.load(file)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("rows", "many", "takes int"),
        ("optim.lr", "fast", "takes float"),
        ("data.shuffle", "maybe", "true or false"),
        ("optim.name", "adam", "one of adamw, muon"),
        ("topology", "v5p:4x4", "no mesh preset"),
        ("model.init_from", "", "exactly one of"),
        ("data.worker_kind", "processes", "one of thread, process"),
        ("log.profile_steps", "10-13", "first:last"),
        ("rows", "0", "'rows' must be at least 1"),
        ("checkpoint.every", "0", "'checkpoint.every' must be at least 1"),
        ("model.remat", "all", "one of nothing_saveable"),
        ("model.attention", "flash", "one of , xla, cudnn, splash"),
    ],
)
def test_wrong_values(key, value, message):
    with pytest.raises(ConfigError, match=message):
        config_lib.load(CONFIGS / "rm_7b.py", {key: value})


def test_another_reward_as_the_config_says():
    """As configs/grpo_qwen_image_edit.py tells: EditReward's options are its own."""
    given = {"rl.rewards": "(('editreward', 1.0),)", "rl.judge.model": "runs/er"}
    assert config_lib.load(CONFIGS / "grpo_qwen_image_edit.py", given).rl.rewards == (("editreward", 1.0),)


def test_choices_are_those_of_the_code():
    """They are written out in `check`, so that a config needs no JAX."""
    for key, names in {"model.remat": [*REMAT_POLICIES, "none"], "model.attention": ["", *IMPLEMENTATIONS]}.items():
        with pytest.raises(ConfigError, match=f"is one of {', '.join(names)}; got"):
            config_lib.load(CONFIGS / "rm_7b.py", {key: "?"})


def test_names_that_a_network_lacks_are_refused():
    """Nothing in an autoencoder bears them: it would save nothing, without a word."""
    for file in ("rm_7b.py", "editor_omnigen2.py"):
        assert config_lib.load(CONFIGS / file, {"model.remat": "gate_up"}).model.remat == "gate_up"
    for name in sorted(REMAT_POLICIES.keys() - {"nothing_saveable", "dots", "everything_saveable"}):
        with pytest.raises(ConfigError, match=rf"model.remat.*'{name}' names parts of a transformer's layer"):
            config_lib.load(CONFIGS / "vae_tiny.py", {"model.remat": name})


def test_overrides_keep_types():
    c = config_lib.load(
        CONFIGS / "rm_7b.py",
        {"optim.lr": "3e-4", "rows": "32", "data.shuffle": "false", "data.buckets": "((64,1,64,8),)"},
    )
    assert (c.optim.lr, c.rows, c.data.shuffle, c.data.buckets) == (3e-4, 32, False, ((64, 1, 64, 8),))


def test_presets_of_a_topology_give_way_to_what_is_said(tmp_path):
    file = tmp_path / "c.py"
    file.write_text(
        "from edit_rl_jax.training.config import default\n"
        "def get_config():\n"
        "    c = default()\n"
        "    c.steps, c.model.init_from = 1, 'somewhere'\n"
        "    with c.unlocked():\n"
        "        c.mesh_presets = {'a': {'fsdp': 4}, 'b': {'fsdp': 8}}\n"
        "        c.presets = {'a': {'rows': 32, 'model': {'remat': 'gate_up'}}}\n"
        "    return c\n"
    )
    keys = lambda **given: (lambda c: (c.rows, c.model.remat))(config_lib.load(file, given))
    plain = keys()
    assert plain == keys(topology="b") and plain != (32, "gate_up") == keys(topology="a")
    assert keys(topology="a", rows="16") == (16, "gate_up")


FAMILIES = [f"rm.py:{size}{what}" for size in ("3b", "7b", "32b", "72b", "qwen3_8b") for what in ("", ",editreward")]


@pytest.mark.parametrize("name", [*FAMILIES, *(f"{f}.py:{size}" for f in ("rrm", "gcpo") for size in ("3b", "7b"))])
def test_presets_of_a_family_load_and_divide(name):
    """What a slice's preset says is taken, and its rows are whole rows of each device."""
    for where, mesh in config_lib.load(CONFIGS / name).mesh_presets.items():
        config = config_lib.load(CONFIGS / name, {"topology": where})
        across = mesh.get("data", 1) * mesh.get("fsdp", 1)
        assert config.rows % across == 0 and config.rows >= across, (where, config.rows)
        if config.presets.get(where):
            assert config.model.remat == config.presets[where].model.remat


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.py")), ids=lambda p: p.stem)
def test_shipped_configs_load_and_say_how_to_run(path):
    config = config_lib.load(path)
    several = path.stem in ("rm", "rrm", "gcpo")  # a file of several sizes
    assert config.name == path.stem or several
    assert f"--config configs/{path.name}" in path.read_text()
    if config.data.train.startswith("data/"):  # validation needs a split of its own
        text = (path.with_name("rm.py") if path.stem.startswith("rm_") or several else path).read_text()
        assert "prepare_data.py" in text and "--validation 0.02" in text


def test_a_file_makes_several_configs():
    """`rm.py:72b` is what the file of that size gives, with overrides; a wrong size is one line."""
    for size in ("3b", "7b", "32b", "72b"):
        one, other = (config_lib.load(CONFIGS / name.format(size), {"rows": 32}) for name in ("rm_{}.py", "rm.py:{}"))
        assert one == other and one.name == f"rm_{size}" and one.rows == 32
    assert config_lib.load(CONFIGS / "rm.py").name == "rm_7b"
    assert config_lib.load(CONFIGS / "rrm.py:3b") == config_lib.load(CONFIGS / "rm.py:3b,edit_rrm")
    with pytest.raises(ConfigError, match="rm.py: ValueError: no size '8b'; sizes: 3b, 7b"):
        config_lib.load(CONFIGS / "rm.py:8b")
    with pytest.raises(ConfigError, match="no objective 'reward'"):
        config_lib.load(CONFIGS / "rm.py:7b,reward")
    for size in ("4b", "8b", "32b"):
        config = config_lib.load(CONFIGS / f"rm.py:qwen3_{size}")
        assert (config.name, config.model.kind, config.data.min_pixels) == (f"rm_qwen3_{size}", "qwen3_vl", 65536)
        assert config.model.init_from == f"Qwen/Qwen3-VL-{size.upper()}-Instruct"
        assert config_lib.load(CONFIGS / f"rm.py:qwen3_{size},editreward").name == f"editreward_qwen3_{size}"
    other = config_lib.load(CONFIGS / "rm.py:7b,editreward")
    assert (other.objective, other.name, other.rows * other.accum) == ("editreward", "editreward_7b", 64)


def test_a_config_has_no_keys_of_others():
    judge, editor = config_lib.default(), config_lib.default("omnigen2", "flow_matching")
    assert not {"flow", "autoencoder", "rl"} & set(judge) and "vae" not in judge.model
    assert "autoencoder" not in editor and not {"pairs", "passes"} & set(editor.eval) and "prompts" not in editor.model
    with pytest.raises(ConfigError, match="no section 'flow': start from config.default.*objective='flow_matching'"):
        config_lib.load(CONFIGS / "rm_7b.py", {"objective": "flow_matching"})


def test_a_run_of_an_earlier_version_goes_on():
    """Then every config had every key: those that this one does not have are not compared, a wrong one still is."""
    new = config_lib.load(CONFIGS / "rm_7b.py").to_dict()
    old = new | {"flow": {"times": "uniform"}, "model": new["model"] | {"vae": "", "train_text": False}}
    assert config_lib.difference(old, new) == {}
    assert config_lib.difference({k: v for k, v in old.items() if k != "presets"}, new) == {}
    assert config_lib.difference(old | {"mine": {"depth": 3}}, new) == {"mine.depth": (3, None)}


def test_missing_file_names_the_nearest():
    with pytest.raises(ConfigError, match="did you mean '.*rm_7b.py'"):
        config_lib.load(CONFIGS / "rm_7.py")


def test_difference_between_a_run_and_its_resumption():
    old = config_lib.load(CONFIGS / "rm_7b.py").to_dict()
    new = config_lib.load(CONFIGS / "rm_7b.py", {"optim.lr": "2e-4", "log.every": "7", "data.workers": "3"}).to_dict()
    assert config_lib.difference(old, new) == {"optim.lr": (1e-4, 2e-4)}


def test_worker_processes_are_fixed_for_a_run():
    """Each keeps a state of its own: another number of them, or threads instead, could not continue the order."""

    def load(**overrides):
        return config_lib.load(CONFIGS / "rm_7b.py", {f"data.{k}": v for k, v in overrides.items()}).to_dict()

    three, four = (load(worker_kind="process", workers=n) for n in ("3", "4"))
    assert config_lib.difference(three, three) == {}
    assert config_lib.difference(three, four) == {"data.workers": (3, 4)}
    assert config_lib.difference(load(workers="3"), three) == {"data.worker_kind": ("thread", "process")}
    assert "data.worker_kind" in config_lib.difference(three, load(workers="0"))


def test_an_adapter_needs_a_base_and_lora():
    with pytest.raises(ConfigError, match="model.train_text.*trainable=full"):
        config_lib.load(CONFIGS / "editor_omnigen2.py", {"model.train_text": "True", "model.trainable": "lora"})
    with pytest.raises(ConfigError, match="data.buckets.*128 text tokens are fewer than model.text=512"):
        config_lib.load(CONFIGS / "editor_flux_kontext.py", {"data.buckets": "((128, 1, 512, 512),)"})
    with pytest.raises(ConfigError, match="model.init_adapter.*trainable=lora"):
        config_lib.load(CONFIGS / "rm_7b.py", {"model.init_adapter": "a", "model.trainable": "full"})


def test_overrides_of_a_command_line():
    words = ["--config", "c.py", "--config.optim.lr=3e-4", "--workdir", "w", "--config.rows", "4", "--config.name=a=b"]
    rest, overrides = config_lib.split_overrides(words)
    assert rest == ["--config", "c.py", "--workdir", "w"]
    assert overrides == {"optim.lr": "3e-4", "rows": "4", "name": "a=b"}


def test_packaged_assets_are_named_without_their_place():
    name = "edit_rl_jax/assets/tiny_vl"
    assert {config_lib.portable(f"{at}{name}") for at in ("/x/", "/y z/edit_rl_jax/", "")} == {name}
    for other in ("/x/assets/tiny_vl", "Qwen/Qwen2.5-VL-7B-Instruct", f"/x/{name}/checkpoint", 3, None):
        assert config_lib.portable(other) == other
