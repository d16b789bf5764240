"""Numbers of one lane that were released, and whose frames still stand in journals. Pure.

Nobody remembers those frames one by one: of a journal only the numbers are known, which are few
spans. When a holder has lost some of them they are *wanted*: pending at once, and found again by
reading their journal, once somebody asks for them. Invariants: a number that is kept is released; a
number that is wanted is not, and stands in no frame that the backlog knows.
"""

from collections.abc import Iterable, Mapping
from types import MappingProxyType

from schemas.ranges import Ranges, Span

__all__ = ["Kept", "touches"]

_NONE = Ranges()


def touches(numbers: Ranges, first: int, stop: int) -> bool:
    """Whether any of ``first <= n < stop`` is among the numbers."""
    return len(numbers.gaps(first, stop)) < stop - first


class Kept:
    """What the journals hold beyond what is pending.

    Args:
        numbers: released numbers by journal.
    """

    def __init__(self, numbers: Mapping[int, Ranges] = MappingProxyType({})) -> None:
        self._kept = dict(numbers)
        self._wanted: dict[int, Ranges] = {}

    # --- queries -----------------------------------------------------------------------------

    @property
    def numbers(self) -> Ranges:
        """All that is kept, and nobody wants."""
        return Ranges.of(span for numbers in self._kept.values() for span in numbers.spans)

    def is_in(self, journal: int) -> bool:
        """Whether a journal holds something of this lane."""
        return journal in self._kept or journal in self._wanted

    def wanted_in(self, journal: int) -> Ranges:
        """What is wanted of a journal."""
        return self._wanted.get(journal, _NONE)

    def wanted_from(self, start: int) -> list[int]:
        """The journals of which a number at or above ``start`` is wanted, oldest first."""
        return sorted(number for number, wanted in self._wanted.items() if wanted.end > start)

    def count_wanted(self, start: int, stop: int) -> int:
        """How many of ``start <= n < stop`` are wanted."""
        span = stop - start
        return sum(span - len(wanted.gaps(start, stop)) for wanted in self._wanted.values())

    # --- what happens ------------------------------------------------------------------------

    def keep(self, released: Mapping[int, Iterable[Span]]) -> None:
        """Frames were released; by journal."""
        for journal, spans in released.items():
            self._kept[journal] = self._kept.get(journal, _NONE) | Ranges.of(spans)

    def want(self, lost: Ranges) -> Ranges:
        """Wants what is kept of these numbers; returns it."""
        return self._move(self._kept, self._wanted, lost)

    def release(self, numbers: Ranges) -> None:
        """What was wanted of these numbers is kept again."""
        if self._wanted:
            self._move(self._wanted, self._kept, numbers)

    def _move(self, source: dict[int, Ranges], target: dict[int, Ranges], chosen: Ranges) -> Ranges:
        moved = _NONE
        for journal in list(source):
            numbers = source[journal] & chosen
            if numbers:
                target[journal] = target.get(journal, _NONE) | numbers
                _set(source, journal, source[journal] - numbers)
                moved |= numbers
        return moved

    def stand_elsewhere(self, journal: int, numbers: Ranges) -> Ranges:
        """Numbers of a journal have become frames or batches; returns those that were wanted."""
        found = self.wanted_in(journal) & numbers
        for known in (self._kept, self._wanted):
            if journal in known:
                _set(known, journal, known[journal] - numbers)
        return found

    def miss(self, journal: int, numbers: Ranges) -> Ranges:
        """What of these numbers is still wanted of a journal is not there; returns it."""
        return self.stand_elsewhere(journal, self.wanted_in(journal) & numbers)

    def forget(self, journal: int) -> None:
        """A journal goes."""
        assert journal not in self._wanted, "what is pending does not go"
        self._kept.pop(journal, None)


def _set(known: dict[int, Ranges], journal: int, numbers: Ranges) -> None:
    if numbers:
        known[journal] = numbers
    else:
        del known[journal]
