"""The table of faults tells the truth, and no row that should be proved is empty."""

from pathlib import Path

import pytest

from tests.faults import FAULTS, LATER, README, Proof, proofs, rows_of, table, written

PROVED = {*range(1, 28), 29, 30, 46, 47, 48}
"""Rows that are about the spool, its age and what it hands on."""


@pytest.fixture(scope="module")
def found() -> list[Proof]:
    """All tests that name rows."""
    return proofs()


def test_the_table_is_up_to_date(found: list[Proof]) -> None:
    """Otherwise: ``python -m tests.faults --write``."""
    text = README.read_text(encoding="utf-8")
    assert written(text, table(found)) == text


@pytest.mark.parametrize("row", sorted(PROVED))
def test_each_row_of_the_spool_is_proved(row: int, found: list[Proof]) -> None:
    """By at least one test that names it."""
    assert [proof for proof in found if row in proof.rows], FAULTS[row]


def test_no_row_is_left_out_in_silence(found: list[Proof]) -> None:
    """It is proved, or it is said why it is not; and no test names one that there is not."""
    named = {row for proof in found for row in proof.rows}
    assert named <= FAULTS.keys()
    assert FAULTS.keys() - named <= LATER.keys()
    assert LATER.keys() <= FAULTS.keys()
    assert not PROVED & LATER.keys()
    assert list(FAULTS) == list(range(1, 49))


@pytest.mark.parametrize(
    ("text", "rows"),
    [
        ("Row 13: a rule.", (13,)),
        ("Rows 4, 5, 6: a rule.", (4, 5, 6)),
        ("Rows 8, 10 and 24: a rule.", (8, 10, 24)),
        ("Rows 1-3: a rule.", (1, 2, 3)),
        ("Rows 1 to 3, 7: a rule.", (1, 2, 3, 7)),
        ("A rule. Row 4: another.\n\nRow 8, too: more.", (4, 8)),
        ("Row 21, planted: a rule.", (21,)),
        ("Refusal 29: a rule. 12 rows, arrow 3.", ()),
    ],
)
def test_rows_are_found_wherever_they_are_named(text: str, rows: tuple[int, ...]) -> None:
    """As people write them."""
    assert rows_of(text) == rows


def test_tests_are_found_by_reading_alone(tmp_path: Path) -> None:
    """Functions, coroutines and methods; nothing is imported, and no helper counts."""
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "test_a.py").write_text(
        'raise SystemExit\n\n\ndef test_one():\n    """Row 5: a."""\n\n\n'
        'class TestAll:\n    async def test_two(self):\n        """Rows 6, 7: b."""\n\n\n'
        'def helper():\n    """Row 8: no test."""\n\n\ndef test_none():\n    """A rule."""\n'
    )
    (tmp_path / "other.py").write_text('def test_three():\n    """Row 9: not collected."""\n')
    found = proofs(tmp_path)
    assert found == [
        Proof("deep/test_a.py", "test_one", (5,)),
        Proof("deep/test_a.py", "test_two", (6, 7)),
    ]
    lines = table(found).splitlines()
    assert lines[1 + 5] == f"| 5 | {FAULTS[5]} | [deep/test_a.py](deep/test_a.py): one |"
    assert lines[1 + 8].endswith("*none yet* |")


def test_a_file_without_a_place_for_the_table_is_refused() -> None:
    """It is not overwritten."""
    with pytest.raises(ValueError, match="no lines"):
        written("# Tests\n", "|\n")
