"""The torch schedulers of OmniGen2's released RL code, which the `editscore` wheel carries as loose files."""

import importlib.util
import sys
from importlib.metadata import distribution
from types import ModuleType


def scheduler(name: str) -> ModuleType:
    """The module `scheduling_<name>.py`."""
    file = distribution("editscore").locate_file(f"examples/OmniGen2-RL/omnigen2/schedulers/scheduling_{name}.py")
    spec = importlib.util.spec_from_file_location(f"omnigen2_scheduling_{name}", file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module
