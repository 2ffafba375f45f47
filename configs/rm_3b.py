"""`configs/rm.py` at 3B; it says hardware, recipe and licence: train_rm.py --config configs/rm_3b.py --workdir DIR"""

from edit_rl_jax.training.config import beside

get_config = beside(__file__, "rm.py:3b")
