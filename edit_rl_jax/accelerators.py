"""Keeps JAX from starting libtpu where there is no TPU: it would print alarms in every command.

The package calls `spare_libtpu` when it is imported, before JAX starts its backends. It imports no JAX itself.
"""

import os
import sys
from collections.abc import MutableMapping
from importlib.util import find_spec
from pathlib import Path

# Set by TPU machines, their launchers, or users who know better: any of them, and all is left to JAX.
TOLD = ("TPU_NAME", "TPU_WORKER_ID", "TPU_WORKER_HOSTNAMES", "TPU_ACCELERATOR_TYPE", "TPU_TOPOLOGY")
TOLD += ("TPU_CHIPS_PER_HOST_BOUNDS", "TPU_CHIPS_PER_PROCESS_BOUNDS", "TPU_VISIBLE_CHIPS", "TPU_VISIBLE_DEVICES")
TOLD += ("CLOUD_TPU_TASK_ID", "COLAB_TPU_ADDR", "JAX_FORCE_TPU_INIT", "JAX_PLATFORM_NAME")
NVIDIA = ("nvidia0", "nvidiactl", "dxg")  # the last on Windows' Linux
CUDA = ("jax_cuda12_plugin", "jax_cuda13_plugin")


def platforms(env: MutableMapping[str, str], root: Path = Path("/")) -> str | None:
    """The value for JAX_PLATFORMS that leaves the TPU out; None where JAX should choose for itself.

    It does where libtpu is not installed, where there is a TPU or a sign of one, where the user has chosen, and where
    accelerators are installed that this function does not know.
    """
    if env.get("JAX_PLATFORMS") or any(name in env for name in TOLD) or find_spec("libtpu") is None or has_tpu(root):
        return None
    if find_spec("jax_plugins") is None and not any(map(find_spec, CUDA)):
        return "cpu"
    hidden = env.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1")
    if any(map(find_spec, CUDA)) and not hidden and any((root / "dev" / name).exists() for name in NVIDIA):
        return "cuda,cpu"
    return None


def has_tpu(root: Path = Path("/")) -> bool:
    """Whether the machine shows a TPU: a device file, or a PCI device of Google's that is no network and no disk."""
    if any((root / "dev").glob("accel[0-9]*")) or any((root / "dev/vfio").glob("[0-9]*")):
        return True
    for device in (root / "sys/bus/pci/devices").glob("*"):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == "0x1ae0" and kind[:4] not in ("0x01", "0x02"):
            return True
    return False


def spare_libtpu() -> None:
    """Sets JAX's platforms, for JAX as it will be imported or has been."""
    if chosen := platforms(os.environ):
        os.environ["JAX_PLATFORMS"] = chosen
        if (jax := sys.modules.get("jax")) and not jax.config.jax_platforms:
            jax.config.update("jax_platforms", chosen)
