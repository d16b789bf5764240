"""Fields added at the end of a layout: what was written before them still says the same."""

from dataclasses import dataclass, field

import pytest

from schemas.errors import Refused
from schemas.forms import COUNT, RANGES, layout, text
from schemas.ranges import Ranges


@dataclass(frozen=True, slots=True)
class Grown:
    """Two fields, and two that came later."""

    name: str
    count: int
    added: int = 7
    ranges: Ranges = field(default_factory=Ranges)


GROWN = layout(0, Grown, 2, name=text(10), count=COUNT, added=COUNT, ranges=RANGES)


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (Grown("a", 1), ("a", 1)),
        (Grown("a", 1, 8), ("a", 1, 8)),
        (Grown("a", 1, 7, Ranges(((1, 2),))), ("a", 1, 7, [1, 2])),
        (Grown("a", 1, 0, Ranges(((1, 2),))), ("a", 1, 0, [1, 2])),
    ],
)
def test_a_tail_is_written_as_far_as_it_says_something(
    message: Grown, plain: tuple[object, ...]
) -> None:
    """Defaults at the end are left out; each message has one shape, and comes back from it."""
    assert GROWN.writer()(message) == plain
    assert GROWN.parse(list(plain)) == message


@pytest.mark.parametrize("raw", [["a"], ["a", 1, 7, [], 1], [], "a", None, ["a", 1, "x"]])
def test_what_is_shorter_or_longer_is_refused(raw: object) -> None:
    """The fields that were there from the beginning must be there, and no unknown ones."""
    with pytest.raises(Refused):
        GROWN.parse(raw)
