"""``holdfast replay``: a table becomes readings, row by row, and says what is wrong with it."""

from pathlib import Path

import orjson
import pytest

from simulator.replay import Table


def table(tmp_path: Path, text: str, **kwargs: object) -> Table:
    """A table of this text."""
    path = tmp_path / "table.csv"
    path.write_text(text, encoding="utf-8")
    settings = {"delimiter": "", "time": "", "ignore": set(), "rename": {}} | kwargs
    return Table(path, **settings)


def test_columns_are_mapped_ignored_and_numbered(tmp_path: Path) -> None:
    """Named columns are renamed, ignored ones left out, and rows count from 0."""
    rows = table(
        tmp_path,
        "when;a b;label\n2020-01-01 00:00:01;1.5;0\n2020-01-01 00:00:02;2;1\n",
        delimiter=";",
        time="when",
        ignore={"label"},
        rename={"a b": "pressure"},
    )
    first, second = rows.rows()
    assert (first.number, first.fields) == (0, {"pressure": 1.5})
    assert first.at_ms == 1_577_836_801_000
    assert second.at_ms == 1_577_836_802_000


def test_a_reading_carries_its_row_and_says_that_it_is_late(tmp_path: Path) -> None:
    """Replayed readings say so, unless they stand for live ones."""
    rows = table(tmp_path, "a\n1\n2\n")
    row = list(rows.rows())[1]
    late = orjson.loads(rows.payload(row, 99, as_live=False))
    assert late == {"a": 2.0, "t": 99, "n": 1, "replay": True}
    assert "replay" not in orjson.loads(rows.payload(row, 99, as_live=True))


def test_cells_that_are_no_numbers_are_left_to_the_edge(tmp_path: Path) -> None:
    """An empty cell is no field; text stays text, so that the edge refuses it and counts it."""
    (row,) = table(tmp_path, "a,b,c\n1,,x\n").rows()
    assert row.fields == {"a": 1.0, "c": "x"}


def test_a_missing_column_is_named_with_those_that_are_there(tmp_path: Path) -> None:
    """A wrong delimiter shows at once."""
    with pytest.raises(ValueError, match=r"has no column when; it has when;a"):
        table(tmp_path, "when;a\n1;2\n", time="when", delimiter=",")


def test_a_time_that_is_none_is_named_with_its_row(tmp_path: Path) -> None:
    """The row is said, so that it can be found."""
    rows = table(tmp_path, "when,a\n2020-01-01,1\nyesterday,2\n", time="when")
    with pytest.raises(ValueError, match="row 1: 'yesterday'"):
        list(rows.rows())


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_and_the_time_are_found_out(tmp_path: Path, delimiter: str) -> None:
    """A table as most programs write it needs no options."""
    text = f"Datetime{delimiter}a\n2020-01-01 00:00:01{delimiter}1.5\n"
    (row,) = table(tmp_path, text).rows()
    assert (row.at_ms, row.fields) == (1_577_836_801_000, {"a": 1.5})
