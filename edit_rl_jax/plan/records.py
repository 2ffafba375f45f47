"""Fits how fast a TPU computes to public records of large trainings: `python -m edit_rl_jax.plan.records` prints it.

A chip takes (a / peak + b) seconds a FLOP: `a` is what the matrix units lose, `b` what else a FLOP of a transformer
costs and what no faster matrix unit shortens. Both are fitted to the records. A matrix unit of side 256 does attention
with heads of 128 at half its rate.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from edit_rl_jax.chips import CHIPS, Chip

HEAD = 128  # width of an attention head in the records and in the models planned (80 is padded to it)


@dataclasses.dataclass(frozen=True)
class Record:
    """A dense transformer trained with all weights, and the MFU that was published.

    recomputed: products that the backward pass repeats. whole: the record counts attention without the causal half.
    tokens: a second and chip, where published, to check the reading against.
    """

    name: str
    chip: str
    mfu: float
    width: int
    layers: int
    heads: int
    kv_heads: int
    hidden: int
    vocabulary: int
    length: int
    recomputed: tuple[str, ...] = ()
    whole: bool = False
    tokens: float = 0.0

    @property
    def products(self) -> dict[str, int]:
        """Entries of each product's weights, over all layers."""
        d, n = self.width, self.layers
        inner, kv = self.heads * HEAD, self.kv_heads * HEAD
        return {"q": n * d * inner, "kv": 2 * n * d * kv, "o": n * inner * d} | {
            "gate_up": 2 * n * d * self.hidden,
            "down": n * self.hidden * d,
            "head": d * self.vocabulary,
        }

    @property
    def attention(self) -> float:
        """FLOPs a token of causal attention, forward."""
        return 2 * self.length * self.heads * HEAD * self.layers

    @property
    def model(self) -> float:
        """FLOPs a token that the record's MFU counts."""
        return 3 * (2 * sum(self.products.values()) + self.attention * (2 if self.whole else 1))

    @property
    def executed(self) -> tuple[float, float]:
        """FLOPs a token that are done: (in products, in attention). The scores are computed forward, again for the
        backward pass and once more in its kernel: 1 + 1 + 2.5 forwards."""
        repeated = sum(self.products[name] for name in self.recomputed)
        return 2 * (3 * sum(self.products.values()) + repeated), 4.5 * self.attention

    @property
    def work(self) -> float:
        """FLOPs a token as the matrix units feel them."""
        return effective(CHIPS[self.chip], *self.executed)

    @property
    def utilization(self) -> float:
        """Share of the peak at which `work` was done."""
        return self.mfu * self.work / self.model


_32B = dict(width=8192, layers=32, heads=64, kv_heads=64, hidden=28672, vocabulary=32000, length=2048)
_LLAMA = dict(kv_heads=8, vocabulary=128256, length=8192, whole=True)
RECORDS = (
    # MaxText, configs/tpu/v5p/32b.sh (remat minimal) and v5e/32b.sh (remat full), MFU of their README.md
    Record("32B on v5p", "v5p", 0.715, **_32B),
    Record("32B on v5e", "v5e", 0.669, **_32B, recomputed=("q", "kv", "o", "gate_up")),
    # tpu-recipes, training/trillium/Llama3.1-{8B,70B}-MaxText/v6e-256
    Record(
        "Llama-3.1-8B on v6e", "v6e", 0.455, 4096, 32, 32, hidden=14336, **_LLAMA, recomputed=("gate_up",), tokens=7207
    ),
    Record(
        "Llama-3.1-70B on v6e",
        "v6e",
        0.504,
        8192,
        80,
        64,
        hidden=28672,
        **_LLAMA,
        recomputed=("o", "gate_up"),
        tokens=960,
    ),
)


def effective(chip: Chip, products: float, attention: float) -> float:
    """FLOPs as the matrix units feel them: attention's heads fill a part of a wide unit."""
    return products + attention * max(1.0, chip.mxu / HEAD)


@dataclasses.dataclass(frozen=True)
class Efficiency:
    """Time a FLOP of a device: `matrix` / peak + `other` (seconds)."""

    matrix: float
    other: float

    def seconds(self, chip: Chip, work: float) -> float:
        """Seconds that a device takes for so many (`effective`) FLOPs."""
        return work * (self.matrix / chip.flops + self.other)

    def utilization(self, chip: Chip) -> float:
        """Share of the peak that it reaches."""
        return 1 / (self.matrix + self.other * chip.flops)


def fit(records: Sequence[Record] = RECORDS) -> Efficiency:
    """Fits by least squares of the relative error of the time."""
    rows = [[r.utilization, r.utilization * CHIPS[r.chip].flops] for r in records]
    scale = np.array([1.0, 1e-15])  # both unknowns near 1
    matrix, other = np.linalg.lstsq(np.array(rows) * scale, np.ones(len(rows)), rcond=None)[0] * scale
    return Efficiency(float(matrix), float(other))


def leave_one_out(records: Sequence[Record] = RECORDS) -> dict[str, tuple[float, float]]:
    """Gives {record: (its MFU, the MFU that a fit to the others predicts)}."""
    out = {}
    for left in records:
        found = fit([r for r in records if r is not left]).utilization(CHIPS[left.chip])
        out[left.name] = (left.mfu, found * left.model / left.work)
    return out


def main() -> None:
    """Prints the fit and its leave-one-out errors."""
    found = fit()
    print(f"time a FLOP = {found.matrix:.3f} / peak + {found.other * 1e15:.3f} fs; share of the peak reached:")
    print("  " + ", ".join(f"{c.name} {found.utilization(c):.2f}" for c in CHIPS.values()))
    for name, (said, predicted) in leave_one_out().items():
        print(f"{name:22} MFU {said:.3f}, predicted from the others {predicted:.3f}: {predicted / said - 1:+.1%}")


if __name__ == "__main__":
    main()
