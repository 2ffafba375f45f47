"""Predicts the time, throughput and price of a program from what its compiled module does."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from edit_rl_jax.chips import CHIPS, Chip
from edit_rl_jax.plan import records

PRICES = Path(__file__).with_name("prices.toml")
ASSUMPTIONS = (
    "computation at the efficiency fitted to public records (python -m edit_rl_jax.plan.records), which holds what "
    "those runs did not overlap; HBM and links at their data sheets' rates, what is offloaded to the host's memory at "
    "16 GB/s a chip and way (assumed, not published); a step takes as long as the slowest of these, no_overlap_s all "
    "one after another; input and the host's work not counted",
    "HBM traffic: each instruction reads and writes once what is not on the chip, kernels too",
    "links: both directions busy, a side of the torus that is no ring at half its rate",
    "MFU: FLOPs that the mathematics needs (4N a token with LoRA, 6N with all weights, causal attention by whole "
    "blocks) over the peak",
)
QUICK = (
    "quick: compiled with the least effort; FLOPs and links as of the whole compilation, peaks within 6% of it, HBM "
    "traffic up to 2.3 times as much, so that steps take at most the predicted time where HBM bounds them"
)


def prices(file: str | Path = PRICES) -> dict[str, float]:
    """Reads {chip: US dollars a chip and hour}. Raises ValueError, naming the file, where it is not that."""
    try:
        found = tomllib.loads(Path(file).read_text())["usd_per_chip_hour"]
        if not all(isinstance(v, (int, float)) and not isinstance(v, bool) and v > 0 for v in found.values()):
            raise ValueError("a price is a number above 0")
        if unknown := sorted(found.keys() - CHIPS.keys()):
            raise ValueError(f"no chip '{unknown[0]}'; chips: {', '.join(CHIPS)}")
    except (OSError, KeyError, AttributeError, ValueError) as e:
        raise ValueError(f"{file}: no table [usd_per_chip_hour] of chip = price: {e}") from e
    return {name: float(v) for name, v in found.items()}


def predict(
    chip: Chip,
    devices: int,
    *,
    flops: Mapping[str, int],
    traffic: int,
    links: Mapping[str, tuple[int, float | None]],
    host: int = 0,
    model: int | None = None,
    items: tuple[int, str] | None = None,
    price: float | None = None,
) -> dict[str, Any]:
    """Predicts one run of a program.

    flops, traffic: of a device (`counts`). links: {mesh axes: (bytes that reach a device, bytes/s or None)}. host:
    bytes to or from the host's memory, the larger. model: FLOPs over all devices that the mathematics needs. items:
    (how many of what a run handles). price: a chip and hour. Returns seconds and what follows of them; "bound" names
    the slowest part, "unknown" links without a published rate.
    """
    work = records.effective(chip, sum(flops.values()) - flops.get("kernel", 0), flops.get("kernel", 0))
    parts = {"compute": records.fit().seconds(chip, work), "hbm": traffic / chip.bandwidth}
    parts |= {f"links {axes}": size / rate for axes, (size, rate) in links.items() if rate}
    parts |= {"host": host * chip.per_chip / chip.host} if host else {}
    bound = max(parts, key=lambda name: parts[name])
    step = parts[bound]
    out: dict[str, Any] = {"seconds": parts, "step_s": step, "no_overlap_s": sum(parts.values()), "bound": bound}
    if unknown := [axes for axes, (_, rate) in links.items() if not rate]:
        out["unknown"] = unknown
    if model is not None and step:
        out["mfu"] = model / devices / chip.flops / step
    if items and step:
        out["throughput"] = {"of": items[1], "per_s": items[0] / step}
        if price is not None:
            out["usd_per_thousand"] = price * devices / chip.per_chip * step / 3600 / items[0] * 1000
    return out
