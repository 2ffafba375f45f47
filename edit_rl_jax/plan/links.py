"""Says how fast the links along an axis of a mesh are, from where its devices stand in the torus."""

import numpy as np
from jax.sharding import Mesh

from edit_rl_jax.chips import Chip


def bandwidth(mesh: Mesh, axes: str, chip: Chip) -> float | None:
    """Bytes/s that reach a device from the others of its group along `axes` ("fsdp", "data+fsdp"), all links busy.

    Each side of the torus that the group spans has two links a device, of which a side that is no ring keeps one busy;
    a group across slices has the network's rate. None where that is not published.
    """
    named = [mesh.axis_names.index(axis) for axis in axes.split("+") if axis in mesh.axis_names]
    index = tuple(slice(None) if i in named else 0 for i in range(mesh.devices.ndim))
    group = np.ravel(mesh.devices[index])
    if len({getattr(d, "slice_index", None) or 0 for d in group}) > 1:
        return chip.dcn
    places = np.array([d.coords for d in group])
    grid = 1 + np.array([d.coords for d in mesh.devices.flat]).max(0)
    sides = [i for i in range(places.shape[1]) if len(set(places[:, i])) > 1]
    if not sides:  # cores of one chip
        return chip.ici
    ring = lambda i: len(set(places[:, i])) == grid[i] and grid[i] % chip.wraps == 0
    return sum(chip.ici / chip.dims * (1.0 if ring(i) else 0.5) for i in sides)
