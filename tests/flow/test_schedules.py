"""Schedules against published tables and the reference."""

import numpy as np
import pytest

from edit_rl_jax.flow.schedules import Schedule, shift_times
from tests.editors.upstream import upstream

RL_TABLE = """0 .0170 .0352 .0547 .0758 .0986 .1233 .1502 .1795 .2116
              .2471 .2862 .3298 .3786 .4336 .4961 .5676 .6503 .7470 .8618 1"""


@pytest.mark.parametrize(
    "schedule, side, first, last",
    [
        (Schedule(50), 1024, "0 .0063 .0129 .0196 .0265 .0336 .0409", ".7377 .7823 .8304 .8824 .9387 1"),
        (Schedule(28), 1024, "0 .0114 .0235 .0361 .0495", ".7225 .8025 .8940 1"),
        (Schedule(50), 512, "0 .0126 .0254 .0384 .0515", ".9073 .9375 .9684 1"),
        (Schedule(20, base_res=168), 512, RL_TABLE, RL_TABLE),
    ],
)
def test_dynamic_shift_tables(schedule, side, first, last):
    times = schedule.times((side // 8) ** 2)
    assert times.dtype == np.float32 and len(times) == schedule.steps + 1
    for golden, part in ((first, times), (last, times[::-1])):
        golden = np.array(golden.split(), float)
        if part is not times:
            golden = golden[::-1]
        np.testing.assert_allclose(part[: len(golden)], golden, atol=5.1e-5)


def test_dynamic_shift_factors():
    at = lambda side, base: Schedule(1, base_res=base).factor((side // 8) ** 2)
    np.testing.assert_allclose(
        [at(1024, 320), at(512, 320), at(512, 168), at(1024, 168)], [3.2, 1.6, 3.048, 6.095], atol=5e-4
    )
    assert at(320, 320) == 1.0


def test_rows_of_a_batch_equal_the_reference_and_each_alone():
    cells = [32 * 32, 64 * 64, 40 * 90]
    torch_side = upstream(
        "schedulers.scheduling_flow_match_euler_maruyama_discrete"
    ).FlowMatchEulerMaruyamaDiscreteScheduler(time_shift_base_res=168)
    torch_side.set_timesteps(20, num_tokens=cells)
    schedule = Schedule(20, base_res=168)
    np.testing.assert_allclose(schedule.times(cells), torch_side._timesteps.numpy(), atol=2e-7)
    for row, one in zip(schedule.times(cells), cells):
        np.testing.assert_array_equal(row, schedule.times(one))


def test_static_shift_is_that_of_diffusers():
    # diffusers' SD3 pipeline: shift 3 applied to evenly spaced *already shifted* noise levels (1 to shift(1/1000)).
    levels = np.linspace(1, 1 - shift_times(np.array([0.999]), 3.0)[0], 10)
    twice = np.append(1 - shift_times(1 - levels, 3.0), 0.0)
    golden = "1 .9601 .9133 .8577 .7904 .7073 .6022 .4649 .2780 .0089 0"
    np.testing.assert_allclose(twice, np.array(golden.split(), float), atol=5.1e-5)

    from diffusers import FlowMatchEulerDiscreteScheduler

    torch_side = FlowMatchEulerDiscreteScheduler(shift=3.0)
    torch_side.set_timesteps(sigmas=np.linspace(1, 0, 13)[:-1])
    np.testing.assert_allclose(1 - Schedule(12, "static").times(), torch_side.sigmas.numpy(), atol=2e-7)


def test_linear_and_impossible():
    np.testing.assert_array_equal(Schedule(4, "linear").times(), np.float32([0, 0.25, 0.5, 0.75, 1]))
    with pytest.raises(ValueError, match="latent cells"):
        Schedule(4).times()
    with pytest.raises(ValueError, match="impossible"):
        Schedule(0)


FLUX = {
    (28, 1024): "1 .98066 .96064 .93993 .91847 .89623 .87317 .84923 .82438 .79854 .77167 .74371 .71457 .68419 .65249 "
    ".61938 .58475 .54852 .51055 .47073 .42891 .38494 .33866 .28986 .23835 .18388 .12620 .06502 0",
    (28, 4096): "1 .98841 .97622 .96339 .94987 .93560 .92051 .90453 .88758 .86958 .85041 .82996 .80810 .78467 .75951 "
    ".73241 .70314 .67143 .63696 .59936 .55816 .51284 .46275 .40708 .34485 .27483 .19545 .10472 0",
    (6, 1024): "1 .90374 .78970 .65249 .48422 .27300 0",
    (6, 4096): "1 .94044 .86332 .75951 .61227 .38712 0",
}
QWEN = {
    (10, 1024): "1 .92897 .85148 .76662 .67328 .57012 .45550 .32740 .18330 .02 0",
    (6, 1024): "1 .86248 .70279 .51511 .29134 .02 0",
    (10, 4096): "1 .93698 .86695 .78868 .70062 .60082 .48675 .35512 .20153 .02 0",
}


@pytest.mark.parametrize(
    "golden, options", [(FLUX, {}), (QWEN, {"max_shift": 0.9, "max_tokens": 8192, "terminal": 0.02})]
)
def test_exponential_schedules_are_the_recorded_ones(golden, options):
    """FLUX.1-Kontext's and Qwen-Image's, run by diffusers' scheduler; sigma is 1 - t."""
    for (steps, tokens), want in golden.items():
        found = 1 - Schedule(steps, "exponential", **options).times(4 * tokens)
        np.testing.assert_allclose(found, np.array(want.split(), float), atol=6e-6)
    one = Schedule(28, "exponential", **options)
    both = one.times([4 * 1024, 4 * 4096])
    np.testing.assert_array_equal(both[1], one.times(4 * 4096))
    with pytest.raises(ValueError, match="needs the number of latent cells"):
        one.times()
