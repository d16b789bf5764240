"""Columns on their way to DuckDB: what a file of rows may look like."""

import duckdb
import numpy as np
import pytest

from nodes.headquarters.arrow import Table
from nodes.headquarters.columns import Column, Lists, Numbers, Words

_NOTHING = np.zeros(0, np.int64)
_SIZES = np.zeros(3, np.int64)


@pytest.mark.parametrize(
    "column",
    [
        Lists(_SIZES, Words((), _NOTHING)),
        Lists(_SIZES, Words(("left over",), _NOTHING)),
        Lists(_SIZES, Numbers(np.zeros(0)), Words((), _NOTHING)),
        Lists(_SIZES, Words((), _NOTHING), Words((), _NOTHING)),
    ],
    ids=["words", "words of which none is used", "named numbers", "named words"],
)
def test_lists_that_are_all_empty_are_read(column: Column) -> None:
    """Rows of which none has a reason, or a label, are archived as others are."""
    table = Table([Numbers(np.arange(3)).field("n"), column.field("said")])
    with duckdb.connect(":memory:") as database:
        database.register("rows", table)
        found = database.execute("SELECT n, len(said) FROM rows").fetchall()
    assert found == [(0, 0), (1, 0), (2, 0)]
