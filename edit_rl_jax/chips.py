"""Chips and topologies: what plan.py knows about machines that are not there, and the peak that MFU divides by.

Every figure is for one JAX *device*, dense bf16. Usable HBM is what the TPU compiler says it has ("exceeds available
HBM (15.75G)", read from libtpu 0.0.51), not the data sheet. FLOP/s and bandwidths: cloud.google.com/tpu/docs/v4, v5e,
v5p, v6e, tpu7x; v5p's HBM bandwidth there (2765 GB/s) disagrees with jax/_src/tpu_info.py (2460 GB/s): the lower one is
used. DCN: the same pages, a pod's divided by its chips. GPUs: NVIDIA's data sheets (the 1979 TFLOP/s also printed for
H100 counts 2:4 sparsity).
"""

import dataclasses
import os
import re
from typing import Any

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Chip:
    """One kind of accelerator.

    kinds: `device_kind`s as JAX prints them. flops: bf16 FLOP/s. hbm: usable bytes. bandwidth: HBM bytes/s.
    ici: bytes/s that a device sends over all its links together (one way). dims: of a topology name ("4x4x4" has 3).
    wraps: a side of the grid that is a multiple of it is a ring. mxu: side of a matrix unit.
    dcn: bytes/s between slices; None where not published. host: bytes/s between a chip and its host's memory, each
    way: not published by chip, assumed as the lower of what jax-ml's "How to Scale Your Model" says of PCIe.
    """

    name: str
    kinds: tuple[str, ...]
    flops: float
    hbm: int
    bandwidth: float
    ici: float
    dims: int
    wraps: int
    mxu: int = 128
    dcn: float | None = None
    per_chip: int = 1
    host: float = 16e9
    config_name: str = ""  # chip_config_name of get_topology_desc


CHIPS = {
    chip.name: chip
    for chip in (
        Chip("v4", ("TPU v4",), 275e12, int(30.75 * GIB), 1200e9, 270e9, 3, 4, config_name="megacore"),
        Chip("v5e", ("TPU v5 lite", "TPU v5e"), 197e12, int(15.75 * GIB), 819e9, 200e9, 2, 16, dcn=3.125e9),
        Chip("v5p", ("TPU v5", "TPU v5p"), 459e12, int(95.74 * GIB), 2460e9, 600e9, 3, 4, dcn=6.25e9),
        Chip("v6e", ("TPU v6 lite", "TPU v6e"), 918e12, int(31.25 * GIB), 1638e9, 400e9, 2, 16, 256, dcn=12.5e9),
        Chip(
            "tpu7x", ("TPU7x", "TPU v7x"), 1153.5e12, int(94.75 * GIB), 3690e9, 300e9, 3, 4, 256, dcn=6.25e9, per_chip=2
        ),
    )
}
GPU_FLOPS = {"A100": 312e12, "H100": 989e12, "H200": 989e12, "B200": 2250e12}


def peak_flops(device_kind: str) -> float:
    """Dense bf16 FLOP/s of one device of that `device_kind`; 0.0 where unknown (a CPU), where no MFU is reported."""
    for chip in CHIPS.values():
        if device_kind in chip.kinds:
            return chip.flops
    return next((flops for name, flops in GPU_FLOPS.items() if name in device_kind), 0.0)


def parse(name: str) -> tuple[Chip, tuple[int, ...]]:
    """The chip and grid of a topology name such as "v5p:4x4x4". ValueError, with the right form, on anything else."""
    match = re.fullmatch(r"(\w+):(\d+(?:x\d+)+)", name)
    known = ", ".join(f"{chip.name}:{'x'.join('4' * chip.dims)}" for chip in CHIPS.values())
    if not match or match[1] not in CHIPS:
        raise ValueError(f"topology {name!r} is not CHIP:GRID with chips in a grid, such as {known}")
    chip, grid = CHIPS[match[1]], tuple(int(n) for n in match[2].split("x"))
    if len(grid) != chip.dims or 0 in grid:
        raise ValueError(f"topology {name!r}: {chip.name} has a grid of {chip.dims} dimensions, such as {known}")
    return chip, grid


def describe(name: str, slices: int = 1) -> tuple[Chip, list[Any]]:
    """The chip and the compile-only devices of a TPU topology; needs `libtpu`, no TPU.

    Set `JAX_PLATFORMS=cpu` and `TPU_SKIP_MDS_QUERY=1` before JAX is imported, else libtpu asks the network for a TPU.
    Takes no chip, so libtpu's lock against a second process is waived.
    Raises ValueError for a name or grid that does not exist, RuntimeError without libtpu.
    """
    chip, _ = parse(name)
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    from jax.experimental import topologies

    options = ({"chip_config_name": chip.config_name} if chip.config_name else {}) | (
        {"num_slices": slices} if slices > 1 else {}
    )
    try:
        return chip, list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
    except Exception as error:  # libtpu raises its own classes
        if "INVALID_ARGUMENT" in str(error) or "NOT_FOUND" in str(error):
            raise ValueError(f"topology {name!r}: {str(error).splitlines()[0]}") from error
        raise RuntimeError(f"no description of topology {name!r}; is libtpu installed? {error}") from error


def host(chip: Chip, devices: list[Any]) -> list[Any]:
    """The devices of one host of a described topology, described by themselves: a program for part of a slice does not
    compile against the whole of it."""
    count = sum(d.process_index == devices[0].process_index for d in devices)
    if count == len(devices):
        return devices
    grid = (2, count // chip.per_chip // 2, 1)[: chip.dims]
    return describe(f"{chip.name}:{'x'.join(map(str, grid))}")[1]
