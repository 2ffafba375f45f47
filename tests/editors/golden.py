"""Golden numbers of reference networks: weights and inputs drawn by name, outputs by a few of their figures."""

import zlib

import numpy as np


def draw(name: str, shape) -> np.ndarray:
    """Standard normal fp32 numbers that depend on the name alone."""
    return np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape).astype(np.float32)


def weight(name: str, shape) -> np.ndarray:
    """A weight by its name in the state dict of the reference."""
    if name.endswith("bias"):
        return np.float32(0.1) * draw(name, shape)
    if len(shape) == 1 or name.endswith("gamma"):
        return 1 + np.float32(0.1) * draw(name, shape)
    return draw(name, shape) / np.float32(np.sqrt(np.prod(shape[1:])))


def figures(x) -> list[float]:
    """Mean, standard deviation, sum of absolute values, the first four and the last two numbers."""
    x = np.asarray(x, np.float64).reshape(-1)
    return [x.mean(), x.std(), np.abs(x).sum(), *x[:4], *x[-2:]]


def check(x, want: str, tolerance: float = 1e-5) -> None:
    """Compares an output with its line of figures; the third is a sum and is compared relatively."""
    want = np.array(want.split(), float)
    got = np.array(figures(x))
    scale = np.maximum(1, np.abs(want))
    assert (np.abs(got - want) <= tolerance * scale).all(), (got, want)
