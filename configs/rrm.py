"""`configs/rm.py` for Edit-R1's verifier; it says hardware, recipe and licence.

python scripts/train_rm.py --config configs/rrm.py:7b --config.topology=v5e:4x4 --workdir gs://BUCKET/rrm_7b
"""

from edit_rl_jax.training.config import beside


def get_config(size="7b"):
    return beside(__file__, f"rm.py:{size},edit_rrm")()
