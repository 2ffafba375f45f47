"""Predicting: links of a torus, the fit to public records, bytes on a host, time and price by hand."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from edit_rl_jax import chips, sharding
from edit_rl_jax.plan import host, links, predict, records


def test_links_are_those_of_the_sides_that_a_group_spans():
    chip, devices = chips.describe("v5e:4x4")
    rate = lambda axes, **mesh: links.bandwidth(sharding.make_mesh(mesh, devices), axes, chip)
    assert rate("fsdp", fsdp=16) == 100e9  # both sides, neither a ring
    assert rate("tensor", fsdp=4, tensor=4) == rate("fsdp", fsdp=4, tensor=4) == 50e9  # one side each
    assert rate("fsdp+tensor", fsdp=4, tensor=4) == 100e9
    chip, devices = chips.describe("v5p:4x4x4")
    assert rate("fsdp", fsdp=64) == 600e9  # three rings
    assert rate("tensor", fsdp=16, tensor=4) == 200e9 and rate("fsdp", fsdp=16, tensor=4) == 400e9
    chip, devices = chips.describe("v6e:2x4", slices=2)
    assert rate("data", data=2, fsdp=8) == 12.5e9  # the network
    assert rate("fsdp", data=2, fsdp=8) == 200e9
    chip, devices = chips.describe("v4:2x2x1", slices=2)
    assert rate("data", data=2, fsdp=4) is None  # not published


def test_records_are_read_as_they_were_meant():
    """The tokens a second that follow from MFU and shapes are those that were published beside it."""
    for r in records.RECORDS:
        if r.tokens:
            assert r.mfu * chips.CHIPS[r.chip].flops / r.model == pytest.approx(r.tokens, rel=0.002)
    small = records.Record("by hand", "v6e", 0.5, 256, 2, 2, 1, 512, 1000, 64, recomputed=("o", "down"))
    weights = 2 * (256 * 256 + 2 * 256 * 128 + 256 * 256 + 3 * 256 * 512) + 256 * 1000
    scores = 2 * 2 * (64 / 2) * 256 * 2  # 2 products, half of 64 keys, 2 heads of 128, 2 layers
    assert small.model == 6 * weights + 3 * scores
    assert small.executed == (6 * weights + 2 * 2 * (256 * 256 + 256 * 512), 4.5 * scores)
    assert small.work == small.executed[0] + 2 * small.executed[1]  # half of a unit of side 256


def test_each_record_is_predicted_from_the_others(capsys):
    left = records.leave_one_out()
    assert {said for said, _ in left.values()} == {0.715, 0.669, 0.455, 0.504}
    assert max(abs(found / said - 1) for said, found in left.values()) <= 0.15
    # a record as the fit would have it changes nothing
    fit = records.fit()
    like = records.dataclasses.replace(
        records.RECORDS[1], mfu=0.669 * fit.utilization(chips.CHIPS["v5e"]) / records.RECORDS[1].utilization
    )
    assert records.fit([*records.RECORDS, like]).matrix == pytest.approx(fit.matrix)
    records.main()
    assert capsys.readouterr().out.count("predicted from the others") == 4


def test_prices_of_a_chip_that_is_none_are_refused(tmp_path):
    file = tmp_path / "prices.toml"
    for text, said in (("v6E = 1.0", "no chip 'v6E'; chips: v4, v5e"), ("v6e = 0", "above 0")):
        file.write_text(f"[usd_per_chip_hour]\n{text}\n")
        with pytest.raises(ValueError, match=said):
            predict.prices(file)


def test_time_and_price_by_hand():
    chip = chips.CHIPS["v6e"]
    flops = {"convolution": 10**15, "kernel": 10**14}
    sizes = {"fsdp": (4 * 10**11, 4e11), "data": (10**6, None)}
    out = predict.predict(
        chip, 8, flops=flops, traffic=1638 * 10**9, links=sizes, model=6 * 10**15, items=(16, "rows"), price=2.7
    )
    compute = records.fit().seconds(chip, 10**15 + 2 * 10**14)
    assert out["seconds"] == {"compute": compute, "hbm": 1.0, "links fsdp": 1.0} and out["unknown"] == ["data"]
    assert out["bound"] == "compute" and out["step_s"] == compute and out["no_overlap_s"] == compute + 2
    assert out["mfu"] == pytest.approx(6e15 / 8 / 918e12 / compute)
    assert out["throughput"] == {"of": "rows", "per_s": 16 / compute}
    assert out["usd_per_thousand"] == pytest.approx(2.7 * 8 * compute / 3600 / 16 * 1000)
    assert predict.predict(chip, 8, flops={}, traffic=1, links=sizes)["bound"] == "links fsdp"


def test_prices_are_a_file(tmp_path):
    assert predict.prices()["v5e"] == 1.2 and predict.prices().keys() <= chips.CHIPS.keys()
    mine = tmp_path / "mine.toml"
    for text in ("[usd_per_chip_hour]\nv5e = -1", "v5e = 1", "[usd_per_chip_hour]\nv5e = 'cheap'", "v5e"):
        mine.write_text(text)
        with pytest.raises(ValueError, match="mine.toml"):
            predict.prices(mine)
    mine.write_text("[usd_per_chip_hour]\nv5e = 1")
    assert predict.prices(mine) == {"v5e": 1.0}


def test_bytes_on_a_host():
    """v5e:4x4 has 4 hosts of 4 chips; what lies on several of a host's chips is held once."""
    mesh = sharding.make_mesh({"data": 2, "fsdp": 8}, chips.describe("v5e:4x4")[1])
    arg = lambda shape, *axes: jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*axes)))
    stacked, whole = arg((3, 64, 64), None, "fsdp"), arg((10, 10))
    own = {str(i) for d, i in stacked.sharding.devices_indices_map((3, 64, 64)).items() if d.process_index == 0}
    assert host.share(stacked, 0) == len(own) * 3 * 8 * 64 * 4 and host.share(whole, 0) == 400
    found = host.memory({"w": stacked}, {"trainable": {"w": stacked}, "count": whole})
    most = max(host.share(stacked, p) for p in range(4))
    assert found == {"load": most + 64 * 64 * 4, "checkpoint": most + 400}
