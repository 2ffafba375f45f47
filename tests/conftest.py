"""What every test shares: 8 fake CPU devices, strict numerics, runtime-checked shapes, and the `shared` data folder.

Strictness: matrix products in full fp32; JAX's implicit dtype and rank promotion are errors (write `bias[None]` or
broadcast by name); the package's jaxtyping annotations are checked by beartype at every call, in tests only. optax
raises an int32 step count to a float power, so tests that run an optimizer are marked `standard_promotion` (a test, or
`pytestmark` for a file).
"""

import gc
import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # compiling for an absent TPU must not ask a metadata server for one
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")

import jax  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

from tests import quick  # noqa: E402

STRICT = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_default_matmul_precision", "highest")
quick.use()  # not for those that ask for `optimized`
for _name, _value in STRICT.items():
    jax.config.update(_name, _value)

# Not where no shape is annotated: the built-in world would be drawn five times more slowly. PEP 484: an int is welcome
# where a float is.
_ROOT = Path(__file__).resolve().parents[1]
_SOURCES = [path for path in (_ROOT / "edit_rl_jax").rglob("*.py") if "jaxtyping" in path.read_text()]
install_import_hook(
    [".".join(path.relative_to(_ROOT).with_suffix("").parts).removesuffix(".__init__") for path in _SOURCES],
    "beartype.beartype(conf=beartype.BeartypeConf(is_pep484_tower=True))",
)


# Files of minutes, the longest first: begun last, one of them would keep a single worker busy at the end.
LONG = [
    f"test_{name}.py"
    for name in "plan resume train_editor train_grpo engine program sharded_step update omnigen2_ladder".split()
]


def pytest_collection_modifyitems(items):
    items.sort(key=lambda item: (LONG + [item.path.name]).index(item.path.name))


def pytest_collection_finish():
    """Spare the garbage collector what stays to the end: it would take a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(200_000, 20, 100)


@pytest.fixture(scope="session")
def shared() -> Path:
    """Real photographs and Qwen's tokenizer: `shared` beside the checkout, or the folder EDIT_RL_SHARED."""
    beside = [parent / "shared" for parent in Path(__file__).resolve().parents[2:4]]
    folders = [Path(os.environ["EDIT_RL_SHARED"])] if "EDIT_RL_SHARED" in os.environ else beside
    folder = next((f for f in folders if (f / "data").is_dir()), None)
    if folder is None:
        pytest.skip("no shared data: it is looked for in ../shared, or in the folder that EDIT_RL_SHARED names")
    return folder


@pytest.fixture(scope="module")
def optimized():
    """For files about what the compiler makes of a program."""
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", True)


@pytest.fixture(autouse=True)
def _promotion(request):
    """Lift the strict promotion rules where a test is marked `standard_promotion`."""
    if not request.node.get_closest_marker("standard_promotion"):
        yield
        return
    with jax.numpy_dtype_promotion("standard"):
        yield
