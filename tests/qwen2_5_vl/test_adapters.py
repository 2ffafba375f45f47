"""Adapters as users have them: a table of what `peft` writes, the cases of the shared folder, where a base is found."""

import pytest

from tests.parity import ladder
from tests.qwen2_5_vl import adapters_table as table


@pytest.mark.parametrize("row", table.ROWS, ids=lambda row: row.name)
def test_an_adapter_computes_as_in_peft_or_is_refused(row):
    found = table.run(row)
    if row.right != table.EQUAL:
        assert isinstance(found, str) and row.right in found and "\n" not in found, found
    else:
        assert not isinstance(found, str), found
        error, effect = found
        assert error <= ladder.NETWORK and effect > 0.02
