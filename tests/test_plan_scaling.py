"""The table of configs by slices: what a cell is, what is compiled again, what the page says, and two real cells."""

import dataclasses
import importlib.util
import json
from pathlib import Path

import pytest

from edit_rl_jax.plan import scaling
from edit_rl_jax.training import config as config_lib

ROOT = Path(__file__).resolve().parents[1]
PRICES = {"v5e": 1.0, "v6e": 10.0, "v5p": 2.0}


@pytest.fixture(scope="module")
def cells():
    return list(scaling.cells(ROOT))


def layout(name, where):
    return scaling.layout(config_lib.load(ROOT / "configs" / name), where)


def test_rows_a_device_stay_as_in_the_preset():
    assert layout("rm.py:7b", "v5e:4x4") == layout("grpo_omnigen2_fast.py", "v6e:4x4") == {}
    mesh = lambda data, fsdp, tensor: {"mesh.data": str(data), "mesh.fsdp": str(fsdp), "mesh.tensor": str(tensor)}
    wide, kept = mesh(16, 16, 1) | {"rows": "256", "accum": "1"}, {"model.remat": "gate_up"}
    assert layout("rm.py:7b", "v5e:16x16") == layout("rm.py:7b", "v6e:16x16") == wide | kept
    assert layout("rm.py:72b", "v6e:16x16") == mesh(4, 16, 4) | {"rows": "64", "accum": "1"} | kept
    assert layout("rm.py:72b", "v5e:16x16") == mesh(4, 16, 4) | {"rows": "64", "accum": "1"}  # copies of v4:4x4x4
    as_on_16 = {"rows": "96", "rl.prompts": "48"}  # 8 chips of 2 devices
    assert layout("grpo_omnigen2_fast.py", "tpu7x:2x2x2") == mesh(1, 16, 1) | as_on_16
    halves = kept | {"rows": "64", "rl.microbatches": "32", "rl.pairs": "256"}
    assert layout("gcpo.py:7b", "v5e:16x16") == mesh(64, 1, 4) | halves
    assert layout("grpo_omnigen2_fast.py", "v5p:4x4x4") == mesh(4, 16, 1) | {"rows": "384", "rl.prompts": "192"}


def test_what_another_chip_keeps_is_taken_where_there_is_room():
    remat = lambda name, where: layout(name, where).get("model.remat")
    assert remat("gcpo.py:7b", "v5p:4x4x4") == remat("editor_omnigen2.py", "v5p:2x2x8") == "gate_up"
    assert remat("rm.py:32b", "v5e:4x4") is remat("rm.py:72b", "v5e:16x16") is None  # v5p's, which has more


def test_the_table_has_every_cell_once_the_most_useful_first(cells):
    assert len({c.key for c in cells}) == len(cells) == 54 + 24
    assert {c.flags[-1] for c in cells[54:] if c.flags} == {"512x512", "1024x1024", "edit"}
    assert {c.topology for c in cells[54:]} == {"v5e:8x8", "v6e:4x4", "v5p:2x2x4"}
    assert [c.key for c in cells[:3]] == ["rm_7b on v5e:4x4", "rm_72b on v5e:4x4", "editreward_7b on v5e:4x4"]
    assert {c.topology for c in cells[:12]} == {"v5e:4x4", "v6e:4x4", "v5p:4x4x4"}
    for c in cells:  # a layout is one that the config takes
        config_lib.load(c.config, c.overrides)


def test_a_cell_is_made_of_its_own_preset_alone(cells, monkeypatch):
    """What another slice keeps makes nothing stale; what this one keeps does, and decides what there is to try."""
    load = config_lib.load

    def changed(file, overrides=None):
        config = load(file, overrides)
        if config.name == "rm_7b":
            config.presets["v6e:4x4"].model.remat = "nothing_saveable"
        return config

    monkeypatch.setattr(config_lib, "load", changed)
    now = {c.key: c for c in scaling.cells(ROOT)}
    copies = {f"rm_7b on {where}" for where in ("v6e:4x4", "v6e:16x16")}
    assert {c.key for c in cells if now[c.key].stamp != c.stamp} == copies
    was = {c.key: c.less for c in cells}
    for key in copies:
        assert was[key] == {"model.remat": "nothing_saveable"} and now[key].less == {}


def plan(per_s, peak=0.5):
    predicted = {"step_s": 1.0, "bound": "compute", "mfu": 0.5, "throughput": {"of": "packed rows", "per_s": per_s}}
    memory = {"together": int(peak * 2**34), "usable_hbm": 2**34}
    program = {"program": "step", "predicted": predicted, "bytes_per_device": memory, "flops": {}, "compile_s": 1.0}
    return {"status": "fits", "plan": {"devices": 16, "programs": [program]}}


def test_cells_are_compiled_once_and_failures_are_cells(cells, tmp_path):
    less = {"model.remat": "nothing_saveable"}
    todo = [dataclasses.replace(c, less=less) for c in cells if c.name == "rm_7b"]
    asked, table = [], {}

    def compile_cell(cell, more):
        asked.append((cell.topology, dict(more)))
        if cell.topology == "v6e:4x4" and not more:
            return {"status": "does not fit", "reason": "DOES NOT FIT by 1.50 GiB a device: rm.py on v6e:4x4"}
        if cell.topology == "v5p:4x4x4":
            return {"status": "failed", "reason": "plan.py: heads do not divide | by 3"}
        return plan(10.0 if cell.topology == "v5e:4x4" else 20.0)

    saved = []
    scaling.fill(todo[:4], table, compile_cell, lambda t: saved.append(len(t)), processes=2)
    assert saved == [1, 2, 3, 4] and len(asked) == 5 and ("v6e:4x4", less) in asked
    assert [c.key for c in todo if scaling.stale(c, table.get(c.key))] == [c.key for c in todo[4:]]
    assert not any(scaling.stale(c, table[c.key] | {"status": "failed"}) for c in todo[:4])
    assert scaling.stale(todo[0], table[todo[0].key] | {"status": "out of time"})
    text = scaling.page(table, cells, PRICES, "COMMAND")
    rows = {"".join(line.split("|")[1:3]).replace(" ", ""): line for line in text.splitlines() if line[:1] == "|"}
    # the price is that of 16 chips at 1 USD, 10 rows a second
    assert "| tpu7x:2x2x2 | v5e:4x4 | 10 packed rows/s | 0.444 |" in text and "`COMMAND`" in text
    assert "8.0 of 16.0 GiB (50%) | 1 s | 50% | compute | 10 packed rows/s | 0.444 | preset |" in text
    assert "nothing_saveable (as it stands it does not fit by 1.50 gib a device)" in rows["`rm_7b`v6e:4x4"].lower()
    assert "plan.py: heads do not divide / by 3; what fits: v5e:4x4, v6e:4x4" in rows["`rm_7b`v5p:4x4x4"]
    assert "not planned yet" in rows["`rm_7b`v5e:16x16"] and "74 of 78 cells are not planned yet, 0 were" in text
    assert {line.count("|") for line in rows.values()} == {6, 10}
    several = json.loads(json.dumps(table))
    made = several["rm_7b on v5e:4x4"]["programs"]
    several["rm_7b on v5e:4x4"]["programs"] = [made[0] | {"program": n, "mfu": m} for n, m in (("a", 0.4), ("b", 0.3))]
    assert "| a 1 s, b 1 s | a 40%, b 30% |" in scaling.page(several, cells, PRICES, "COMMAND")

    old = json.loads(json.dumps(table).replace(todo[0].stamp["source"], "other"))
    assert scaling.stale(todo[0], old[todo[0].key]) and not scaling.stale(todo[0], old[todo[0].key], old=True)
    changed = json.loads(json.dumps(table).replace(todo[0].stamp["config"], "other"))
    assert scaling.stale(todo[0], changed[todo[0].key], old=True)

    made, many = {}, lambda cell, more: compile_cell(cell, more) | {"quick": True}
    scaling.fill(todo[:4], made, many, lambda t: None)
    for cell in todo[:4]:  # whatever came of it
        assert not scaling.stale(cell, made[cell.key]) and scaling.stale(cell, made[cell.key], quick=False)
    text = scaling.page(made, cells, PRICES, "COMMAND")
    assert "| about 1 s | about 50% | compute | about 10 packed rows/s | about 0.444 | preset |" in text
    assert "| v5e:4x4 | about 10 packed rows/s | about 0.444 |" in text
    made[todo[0].key]["programs"][0]["bound"] = "hbm"
    text = scaling.page(made, cells, PRICES, "COMMAND")
    assert "| at most 1 s | at least 50% | hbm | at least 10 packed rows/s | at most 0.444 | preset |" in text

    scaling.fill(todo[4:], table, compile_cell, lambda t: saved.append(len(t)), seconds=-1)
    assert len(table) == 4, "no cell is begun when the time is over"


@pytest.mark.slow
@pytest.mark.standard_promotion
def test_two_real_cells(monkeypatch, tmp_path):
    """A small judge on 4 chips, and on a chip that does not exist; a second call compiles nothing."""
    spec = importlib.util.spec_from_file_location("scaling_script", ROOT / "benchmarks/scaling.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    small = ["--config.rows=8", "--config.model.attention=xla"]
    file = str(ROOT / "configs/rm_tiny.py")
    monkeypatch.setattr(scaling, "CONFIGS", {"rm_tiny": file})
    monkeypatch.setattr(scaling, "SLICES", ("v5e:2x2", "v5e:3x5"))
    monkeypatch.setattr(scaling, "EDITORS", {})
    monkeypatch.setattr(scaling, "layout", lambda config, where: dict(w[9:].split("=") for w in small))
    files = ["--json", str(tmp_path / "s.json"), "--page", str(tmp_path / "s.md"), "--processes", "2"]
    assert script.main(files) == 0
    good, bad = json.loads((tmp_path / "s.json").read_text()).values()
    (program,) = good["programs"]
    assert good["status"] == "fits" and 0 < program["peak"] < program["usable"] and program["mfu"] > 0
    assert bad["status"] == "failed" and "3x5" in bad["reason"]
    monkeypatch.setattr(script, "compile_cell", None)
    assert script.main(files) == 0
    assert "| v5e:2x2 | v5e:2x2 |" in (tmp_path / "s.md").read_text()
