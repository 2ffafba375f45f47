"""EditWorld, the built-in world: scenes, edits, candidates and an oracle that scores any pixels. NumPy only.

Importing it holds NumPy's BLAS to one thread: the world's matrices are 84 x 84, where threads of a BLAS mostly wait for
each other: beside a training step that uses all cores, a record cost twenty times the CPU time.
"""

import numpy  # noqa: F401  the limit applies to libraries that are loaded
from threadpoolctl import threadpool_limits

threadpool_limits(limits=1, user_api="blas")
