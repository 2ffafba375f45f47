"""Gives XLA's flags with which tests compile: most of their time would be the compiler's, for programs of milliseconds.

In the suite's own process and in those that it starts, since a program is to round alike in both.
"""

import importlib.metadata
import os
from pathlib import Path

# LLVM's older emitters, and one part a program, take half the time. XLA ends a process at a flag that it does not know:
# only for the version of JAX that was tried.
EMITTERS = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
EMITTERS = EMITTERS if importlib.metadata.version("jax").startswith("0.10.") else ""
OPTIONS = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}  # of one program
PLAIN = " ".join(f"--{name}={value}".lower() for name, value in OPTIONS.items())
FLAGS = f"{PLAIN} {EMITTERS}"


def use() -> None:
    """Sets them for this process, before its first device, and for those that it starts."""
    import jax

    given = os.environ.get("XLA_FLAGS", "").replace(FLAGS, "")  # of a parent that did so, too
    os.environ["XLA_FLAGS"] = f"{given} {EMITTERS}"
    jax.devices()  # reads the flags
    os.environ["XLA_FLAGS"] = f"{given} {FLAGS}"
    jax.config.update("jax_disable_most_optimizations", True)  # the rest of them, which can be taken back


def environment(devices: int = 1, **more: str) -> dict[str, str]:
    """Gives the environment of a process of so many CPU devices that compiles so, small programs from its cache."""
    path = str(Path(__file__).resolve().parents[1])
    ours = {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu", "XLA_FLAGS": FLAGS, "JAX_NUM_CPU_DEVICES": str(devices)}
    return os.environ | ours | {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"} | more
