"""What a row of real pump data takes at rest. The data is not part of the repository."""

import pytest

from schemas.messages import Codec
from tests.bench import skab

pytestmark = pytest.mark.skipif(not skab.FOLDER.is_dir(), reason="the SKAB data is not here")


def test_a_row_of_eight_sensors_takes_few_bytes() -> None:
    """Whole batch files, headers and both clocks included, over seven files: at most 11.9 a row."""
    tables = skab.load()
    made = [item for table in tables for item in skab.batches(table.rows)]
    assert {item.header.codec for item in made} == {Codec.COLUMNS}
    rows = sum(len(table.rows) for table in tables)
    assert sum(len(item.data) for item in made) / rows <= 11.9


def test_a_minute_takes_a_fraction_of_its_rows() -> None:
    """Batches of some fifty readings, where the header weighs most."""
    rows = skab.load()[1].rows[:55]
    narrow, wide = skab.batches(rows), skab.batches(rows, rows_only=True)
    assert sum(len(it.data) for it in narrow) < sum(len(it.data) for it in wide) / 2
