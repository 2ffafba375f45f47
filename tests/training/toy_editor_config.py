"""A run of seconds: a micro editor on scenes of 16 pixels.

python scripts/train_editor.py --config tests/training/toy_editor_config.py --workdir runs/toy_editor
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from tests.training import micro_editor  # noqa: E402


def get_config():
    return micro_editor.config(data__workers=2)
