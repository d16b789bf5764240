"""Interval sets against Python's own sets."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from schemas.ranges import Ranges, Span

_spans = st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60)), max_size=12)
_numbers = st.integers(0, 60)


def _set(spans: list[Span]) -> set[int]:
    return {n for start, stop in spans for n in range(start, stop)}


@given(_spans, _spans)
def test_unions_differences_and_intersections_are_those_of_sets(
    a: list[Span], b: list[Span]
) -> None:
    """Whatever the spans, in whatever order."""
    left, right = Ranges.of(a), Ranges.of(b)
    assert set(left | right) == _set(a) | _set(b)
    assert set(left - right) == _set(a) - _set(b)
    assert set(left & right) == _set(a) & _set(b)


@given(_spans)
def test_equal_sets_have_equal_spans(spans: list[Span]) -> None:
    """However they came about: in one go, in reverse, or number by number."""
    numbers = _set(spans)
    one_by_one = Ranges()
    for number in sorted(numbers, key=lambda n: (n * 7919) % 61):
        one_by_one = one_by_one.add(number, number + 1)
    assert Ranges.of(spans) == Ranges.of(reversed(spans)) == one_by_one
    assert hash(one_by_one) == hash(Ranges.of(spans))
    for (_, stop), (start, _) in zip(one_by_one.spans, one_by_one.spans[1:], strict=False):
        assert stop < start, "no two touch"


@given(_spans, _numbers, _numbers)
def test_adding_is_the_union_with_one_span(spans: list[Span], start: int, stop: int) -> None:
    """Also an empty one, which adds nothing."""
    assert set(Ranges.of(spans).add(start, stop)) == _set(spans) | set(range(start, stop))


@given(_spans, _numbers, _numbers)
def test_queries_are_those_of_sets(spans: list[Span], start: int, stop: int) -> None:
    """Length, membership, end, watermark, coverage, gaps."""
    numbers, held = _set(spans), Ranges.of(spans)
    assert len(held) == len(numbers)
    assert bool(held) == bool(numbers)
    assert list(held) == sorted(numbers)
    assert held.end == max(numbers, default=-1) + 1
    assert [n in held for n in range(62)] == [n in numbers for n in range(62)]
    assert held.watermark(start) == next(n for n in range(start, 62) if n not in numbers)
    assert held.covers(start, stop) == (set(range(start, stop)) <= numbers)
    assert set(held.gaps(start, stop)) == set(range(start, stop)) - numbers


def test_text_names_the_numbers_inclusively() -> None:
    """As a person says them."""
    assert str(Ranges(((3, 8), (9, 10)))) == "3-7, 9"
    assert str(Ranges()) == "none"
    assert "3" not in Ranges(((3, 8),))


@pytest.mark.parametrize(
    "spans", [((3, 3),), ((4, 3),), ((0, 2), (2, 3)), ((5, 6), (0, 1)), ((-2, -1),)]
)
def test_spans_that_break_an_invariant_are_refused(spans: tuple[Span, ...]) -> None:
    """Empty, touching, unsorted, negative."""
    with pytest.raises(ValueError, match="spans"):
        Ranges(spans)


def test_huge_spans_cost_nothing() -> None:
    """Numbers are 63 bits wide; nothing here counts them one by one."""
    everything = Ranges(((0, 2**63 - 1),))
    hole = Ranges(((2**62, 2**62 + 1),))
    assert len((everything - hole).spans) == 2
    assert (everything - hole) | hole == everything
    assert (everything & hole) == hole
